"""The configured nodes that can be asked and fetched from."""

from __future__ import annotations

from collections.abc import Sequence

from imaging.errors import NotFound
from services.delivery.destinations import DICOMWEB, Destinations
from services.retrieve.dicom_archive import DicomArchive
from services.retrieve.found import Archive
from services.settings import Settings
from services.transport_security import sender_context

UNKNOWN_NODE = "retrieve.unknown_node"


def archive_named(name: str, destinations: Destinations, settings: Settings) -> Archive:
    """What can be fetched from, by the AE title of a node or as "dicomweb:NAME".

    Raises:
        NotFound: it is not listed, or nobody said how it is fetched from (code `retrieve.unknown_node`).
        ConfigurationError: TLS is asked for and its certificates cannot be read.
    """
    check_node(name, destinations.retrieved_from())
    archive = _archive(name, destinations, settings)
    assert archive is not None
    return archive


def check_node(name: str, known: Sequence[str]) -> None:
    """Raises NotFound as `archive_named` does, without opening anything."""
    if name not in known:
        raise NotFound(
            f"no node {name!r} to fetch from in destinations.toml",
            code=UNKNOWN_NODE,
            remedy=f"known: {', '.join(known) or 'none'}; its table there needs `retrieve`",
        )


def counting_archive(name: str, settings: Settings) -> Archive | None:
    """The node that a series came from, where it is to be asked how many instances the series has.

    Raises:
        ConfigurationError: the destinations or the certificates cannot be read.
    """
    destinations = Destinations.load(settings.destinations)
    counting = [node.ae_title for node in destinations.nodes if node.count_instances]
    counting += [DICOMWEB + service.name for service in destinations.dicomweb if service.count_instances]
    return _archive(name, destinations, settings) if name in counting else None


def _archive(name: str, destinations: Destinations, settings: Settings) -> Archive | None:
    if name.startswith(DICOMWEB):
        from services.retrieve.dicomweb_archive import DicomWebArchive  # and httpx, which every start would pay for

        service = destinations.dicomweb_service(name.removeprefix(DICOMWEB))
        return None if service is None else DicomWebArchive(service, settings)
    if (node := destinations.node(name)) is None:
        return None
    return DicomArchive(node, our_ae_title=settings.ae_title, tls=sender_context(settings) if node.tls else None)

"""The configured nodes that can be asked and fetched from."""

from __future__ import annotations

from imaging.errors import NotFound
from services.delivery.destinations import Destinations, Node
from services.retrieve.dicom_archive import DicomArchive
from services.retrieve.found import Archive
from services.settings import Settings
from services.transport_security import sender_context

UNKNOWN_NODE = "retrieve.unknown_node"


def archive_named(name: str, destinations: Destinations, settings: Settings) -> Archive:
    """A node that can be fetched from, by its AE title.

    Raises:
        NotFound: it is not listed, or nobody said how it is fetched from (code `retrieve.unknown_node`).
        ConfigurationError: TLS is asked for and its certificates cannot be read.
    """
    check_node(name, destinations)
    node = destinations.node(name)
    assert node is not None
    return _archive_of(node, settings)


def check_node(name: str, destinations: Destinations) -> None:
    """Raises NotFound as `archive_named` does, without opening anything."""
    if name not in (known := retrieved_from(destinations)):
        raise NotFound(
            f"no node {name!r} to fetch from in destinations.toml",
            code=UNKNOWN_NODE,
            remedy=f"known: {', '.join(known) or 'none'}; a node says how with `retrieve`",
        )


def retrieved_from(destinations: Destinations) -> list[str]:
    """The names of what can be fetched from."""
    return [node.ae_title for node in destinations.nodes if node.retrieve is not None]


def counting_archive(ae_title: str, settings: Settings) -> Archive | None:
    """The node that a series came from, where it is to be asked how many instances the series has.

    Raises:
        ConfigurationError: the destinations or the certificates cannot be read.
    """
    node = Destinations.load(settings.destinations).node(ae_title)
    return _archive_of(node, settings) if node is not None and node.count_instances else None


def _archive_of(node: Node, settings: Settings) -> DicomArchive:
    return DicomArchive(node, our_ae_title=settings.ae_title, tls=sender_context(settings) if node.tls else None)

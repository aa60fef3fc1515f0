"""Who gets the results and who is told of them, by routes: one TOML (deploy/destinations.toml)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, HttpUrl, model_validator

from imaging.findings import Outcome
from services.delivery.reported_result import ReportedResult, message_id
from services.delivery.webhook_body import webhook_body
from services.dicom.result_kind import ResultKind
from services.retrieve.rules import RetrieveRule
from services.store.jobs import Delivery, Notification
from services.store.rows import JobRow, Source
from services.store.study_store import relative_result_path
from services.toml_file import TomlTable
from services.worklist.worklist_table import Worklist

if TYPE_CHECKING:
    from services.dicom.result_files import ResultFiles

ORIGIN = "origin"
NODE = "node:"
FOLDER = "folder:"
DICOMWEB = "dicomweb:"
WEBHOOK = "webhook:"
HL7 = "hl7:"
AVAILABILITY = "availability:"  # a node that is told what another one has; no route leads there
_KINDS = (NODE, FOLDER, DICOMWEB, WEBHOOK, HL7)


def _known_kind(destination: str) -> str:
    if destination != ORIGIN and not destination.startswith(_KINDS):
        raise ValueError(
            f'{destination!r} is none of "origin", "node:AE_TITLE", "folder:NAME", "dicomweb:NAME", "webhook:NAME", '
            '"hl7:NAME"'
        )
    return destination


AeTitle = Annotated[str, Field(min_length=1, max_length=16)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
RouteTarget = Annotated[str, AfterValidator(_known_kind)]


DEFAULT_OBJECTS = (ResultKind.SEG, ResultKind.SR)
Objects = Annotated[tuple[ResultKind, ...], Field(min_length=1)]


class Node(TomlTable):
    """A DICOM node that takes C-STORE, whether and where what it took is followed up, and how it is fetched from.

    Attributes:
        commitment: it is asked to commit to keeping what it took (PS3.4 Annex J); without a report for
            `commitment_limit_s` it is asked again.
        announce_to: nodes that are told once it has a job's objects (PS3.4 Annex R).
        count_instances: it is asked how many instances a series has that it sent (C-FIND).
    """

    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    tls: bool = False
    objects: Objects = DEFAULT_OBJECTS
    retrieve: Literal["c-get", "c-move"] | None = None
    count_instances: bool = False
    commitment: bool = False
    commitment_limit_s: float = Field(3600.0, gt=0)
    announce_to: tuple[AeTitle, ...] = ()


class Folder(TomlTable):
    """A directory that objects are copied into."""

    name: Name
    path: Path
    objects: Objects = DEFAULT_OBJECTS


class DicomWeb(TomlTable):
    """A DICOMweb service (PS3.18): `url` is the base below which its `/studies` lie.

    Secrets lie in files of their own: a bearer token, or the password that goes with `username`.
    """

    name: Name
    url: HttpUrl
    objects: Objects = DEFAULT_OBJECTS
    token_file: Path | None = None
    username: str | None = Field(None, min_length=1)
    password_file: Path | None = None
    retrieve: bool = False
    count_instances: bool = False

    @model_validator(mode="after")
    def _one_kind_of_credentials(self) -> DicomWeb:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file go together")
        if self.username is not None and self.token_file is not None:
            raise ValueError("either token_file, or username and password_file")
        if self.url.username or self.url.password:
            raise ValueError("no credentials in the url: name token_file, or username and password_file")
        return self


Events = Annotated[tuple[Outcome, ...], Field(min_length=1)]


class Webhook(TomlTable):
    """A URL that results are posted to, signed with the secret in a file."""

    name: Name
    url: HttpUrl
    secret_file: Path
    token_file: Path | None = None
    events: Events = tuple(Outcome)
    format: Literal["json", "fhir"] = "json"
    allow_private: bool = False

    @model_validator(mode="after")
    def _no_credentials_in_the_url(self) -> Webhook:
        if self.url.username or self.url.password:
            raise ValueError("no credentials in the url: name token_file")
        return self


class Hl7(TomlTable):
    """An interface engine that takes HL7 v2 over MLLP."""

    name: Name
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    tls: bool = False
    receiving_application: str = ""
    receiving_facility: str = ""
    events: Events = tuple(Outcome)


Destination = Node | Folder | DicomWeb | Webhook | Hl7


class Route(TomlTable):
    """Where the results of some jobs go."""

    source: Source | None = None
    calling_ae_title: str | None = None
    to: tuple[RouteTarget, ...]

    def fits(self, job: JobRow) -> bool:
        return (self.source is None or self.source.value == job.source) and (
            self.calling_ae_title is None or self.calling_ae_title == (job.calling_ae_title or "").strip()
        )


_BACK_TO_WHERE_IT_CAME_FROM = Route(to=(ORIGIN,))


class Destinations(TomlTable):
    """The content of deploy/destinations.toml, where it is explained."""

    nodes: tuple[Node, ...] = ()
    folders: tuple[Folder, ...] = ()
    dicomweb: tuple[DicomWeb, ...] = ()
    webhooks: tuple[Webhook, ...] = ()
    hl7: tuple[Hl7, ...] = ()
    routes: tuple[Route, ...] = ()
    retrieve: tuple[RetrieveRule, ...] = ()
    worklists: tuple[Worklist, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique_and_known(self) -> Destinations:
        names = [name for name, _ in self._listed()]
        if len(set(names)) < len(names):
            raise ValueError("two destinations of a kind have the same name")
        for route in self.routes:
            if unknown := set(route.to) - set(names) - {ORIGIN}:
                raise ValueError(f"a route leads to {', '.join(sorted(unknown))}, which is not listed")
        for node in self.nodes:
            if unknown := {NODE + told for told in node.announce_to} - set(names):
                raise ValueError(f"{node.ae_title} is announced to {', '.join(sorted(unknown))}, which is not listed")
        return self

    @model_validator(mode="after")
    def _rules_fetch_from_known_nodes(self) -> Destinations:
        if len({rule.name for rule in self.retrieve}) < len(self.retrieve):
            raise ValueError("two rules to retrieve have the same name")
        for rule in self.retrieve:
            if rule.node not in self.retrieved_from():
                raise ValueError(
                    f"the rule {rule.name} retrieves from {rule.node}, which is not listed with `retrieve`"
                )
        return self

    @model_validator(mode="after")
    def _worklists_are_of_known_services(self) -> Destinations:
        if len({worklist.name for worklist in self.worklists}) < len(self.worklists):
            raise ValueError("two worklists have the same name")
        for worklist in self.worklists:
            if self.dicomweb_service(worklist.server) is None:
                raise ValueError(f"the worklist {worklist.name} is of {worklist.server}, no [[dicomweb]] service")
            if worklist.retrieve_from not in (None, *self.retrieved_from()):
                raise ValueError(
                    f"the worklist {worklist.name} retrieves from {worklist.retrieve_from}, "
                    "which is not listed with `retrieve`"
                )
        return self

    def deliveries_for(self, job: JobRow, written: ResultFiles) -> list[Delivery | Notification]:
        """The outbox rows of a finished job: for every destination of its route the objects that it wants, or what it
        is told. The objects are read where `written` says that they lie.

        A node that nobody has listed gets its rows all the same: they wait, visibly, instead of being lost.
        """
        rows: list[Delivery | Notification] = []
        for name in self.destinations_of(job):
            destination = self.find(name)
            if isinstance(destination, Webhook | Hl7):
                rows += _notification(name, destination, job, written)
                continue
            objects = DEFAULT_OBJECTS if destination is None else destination.objects
            sent = [
                Delivery(
                    destination=name,
                    object_path=relative_result_path(job.id, one.path.name),
                    sop_class_uid=one.sop_class_uid,
                    sop_instance_uid=one.sop_instance_uid,
                )
                for one in written.objects_of(objects)
            ]
            rows += sent
            if sent and isinstance(destination, Node):
                rows += [
                    Notification(
                        AVAILABILITY + told,
                        message_id(job, written.findings, AVAILABILITY + told, name),
                        waits_for=name,
                    )
                    for told in destination.announce_to
                ]
        return rows

    def destinations_of(self, job: JobRow) -> list[str]:
        """Where the job's results go, as written into the outbox: "node:AE_TITLE", "folder:NAME" and so on."""
        route = next((route for route in self.routes if route.fits(job)), _BACK_TO_WHERE_IT_CAME_FROM)
        origin = (job.calling_ae_title or "").strip() or None
        if origin is not None and not origin.startswith(DICOMWEB):
            origin = NODE + origin
        named = [origin if target == ORIGIN else target for target in route.to]
        return list(dict.fromkeys(destination for destination in named if destination is not None))

    def names(self) -> list[str]:
        """Every destination as it is written into the outbox."""
        return [name for name, _ in self._listed()] + [AVAILABILITY + node.ae_title for node in self.nodes]

    def find(self, destination: str) -> Destination | None:
        """What is listed under the name that the outbox has for it; for "availability:AE_TITLE" the node."""
        listed = dict(self._listed())
        return listed.get(destination.replace(AVAILABILITY, NODE, 1))

    def node(self, ae_title: str) -> Node | None:
        return next((node for node in self.nodes if node.ae_title == ae_title), None)

    def retrieved_from(self) -> list[str]:
        """What can be fetched from: the AE titles of nodes, and "dicomweb:NAME"."""
        return [
            *(node.ae_title for node in self.nodes if node.retrieve is not None),
            *(DICOMWEB + service.name for service in self.dicomweb if service.retrieve),
        ]

    def retrieve_rule(self, name: str) -> RetrieveRule | None:
        return next((rule for rule in self.retrieve if rule.name == name), None)

    def dicomweb_service(self, name: str) -> DicomWeb | None:
        return next((service for service in self.dicomweb if service.name == name), None)

    def _listed(self) -> list[tuple[str, Destination]]:
        return [
            *((NODE + node.ae_title, node) for node in self.nodes),
            *((FOLDER + folder.name, folder) for folder in self.folders),
            *((DICOMWEB + service.name, service) for service in self.dicomweb),
            *((WEBHOOK + webhook.name, webhook) for webhook in self.webhooks),
            *((HL7 + engine.name, engine) for engine in self.hl7),
        ]


def _notification(name: str, destination: Webhook | Hl7, job: JobRow, written: ResultFiles) -> list[Notification]:
    """What this destination is told of a result; nothing where it is not to hear of such a one.

    FHIR and HL7 v2 speak of a patient's study: without DICOM images of one there is nothing that they could say. Their
    writers bring pydicom's dictionary of codes, 16 MB, which only who writes has to hold.
    """
    if written.findings.outcome not in destination.events:
        return []
    identity = message_id(job, written.findings, name)
    result = ReportedResult.of(job, written)
    if isinstance(destination, Webhook) and destination.format == "json":
        return [Notification(name, identity, webhook_body(result))]
    if result.study is None:
        return []
    if isinstance(destination, Webhook):
        from services.delivery.fhir_bundle import fhir_bundle

        return [Notification(name, identity, fhir_bundle(result, result.study))]
    from services.delivery.hl7_message import oru_message

    message = oru_message(
        result,
        result.study,
        message_id=identity,
        receiving_application=destination.receiving_application,
        receiving_facility=destination.receiving_facility,
    )
    return [Notification(name, identity, message)]

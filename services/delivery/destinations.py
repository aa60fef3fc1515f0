"""Who gets the results: known DICOM nodes, DICOMweb services, folders and routes in one TOML
(deploy/destinations.toml)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, HttpUrl, model_validator

from services.dicom.result_kind import ResultKind
from services.retrieve.rules import RetrieveRule
from services.store.jobs import Delivery
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


def _known_kind(destination: str) -> str:
    if destination != ORIGIN and not destination.startswith((NODE, FOLDER, DICOMWEB)):
        raise ValueError(f'{destination!r} is none of "origin", "node:AE_TITLE", "folder:NAME", "dicomweb:NAME"')
    return destination


AeTitle = Annotated[str, Field(min_length=1, max_length=16)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
RouteTarget = Annotated[str, AfterValidator(_known_kind)]


DEFAULT_OBJECTS = (ResultKind.SEG, ResultKind.SR)
Objects = Annotated[tuple[ResultKind, ...], Field(min_length=1)]


class Node(TomlTable):
    """A DICOM node that takes C-STORE, and may be asked and fetched from."""

    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    tls: bool = False
    objects: Objects = DEFAULT_OBJECTS
    retrieve: Literal["c-get", "c-move"] | None = None
    count_instances: bool = False


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

    @model_validator(mode="after")
    def _one_kind_of_credentials(self) -> DicomWeb:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file go together")
        if self.username is not None and self.token_file is not None:
            raise ValueError("either token_file, or username and password_file")
        if self.url.username or self.url.password:
            raise ValueError("no credentials in the url: name token_file, or username and password_file")
        return self


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
    routes: tuple[Route, ...] = ()
    retrieve: tuple[RetrieveRule, ...] = ()
    worklists: tuple[Worklist, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique_and_known(self) -> Destinations:
        known = set(self.names())
        if len(known) < len(self.names()):
            raise ValueError("two nodes, two folders or two DICOMweb services have the same name")
        for route in self.routes:
            if unknown := set(route.to) - known - {ORIGIN}:
                raise ValueError(f"a route leads to {', '.join(sorted(unknown))}, which is not listed")
        return self

    @model_validator(mode="after")
    def _rules_fetch_from_known_nodes(self) -> Destinations:
        if len({rule.name for rule in self.retrieve}) < len(self.retrieve):
            raise ValueError("two rules to retrieve have the same name")
        for rule in self.retrieve:
            if (node := self.node(rule.node)) is None or node.retrieve is None:
                raise ValueError(f"the rule {rule.name} retrieves from {rule.node}, no node that says how (`retrieve`)")
        return self

    @model_validator(mode="after")
    def _worklists_are_of_known_services(self) -> Destinations:
        if len({worklist.name for worklist in self.worklists}) < len(self.worklists):
            raise ValueError("two worklists have the same name")
        for worklist in self.worklists:
            if self.dicomweb_service(worklist.server) is None:
                raise ValueError(f"the worklist {worklist.name} is of {worklist.server}, no [[dicomweb]] service")
        return self

    def deliveries_for(self, job: JobRow, written: ResultFiles) -> list[Delivery]:
        """The outbox rows of a finished job: for every destination of its route the objects that it wants.

        A node that nobody has listed gets its rows all the same: they wait, visibly, instead of being lost.
        """
        return [
            Delivery(
                destination=destination,
                object_path=relative_result_path(job.id, one.path.name),
                sop_class_uid=one.sop_class_uid,
                sop_instance_uid=one.sop_instance_uid,
            )
            for destination in self.destinations_of(job)
            for one in written.objects_of(self._objects_for(destination))
        ]

    def destinations_of(self, job: JobRow) -> list[str]:
        """Where the job's results go, as written into the outbox: "node:AE_TITLE", "folder:NAME" or "dicomweb:NAME"."""
        route = next((route for route in self.routes if route.fits(job)), _BACK_TO_WHERE_IT_CAME_FROM)
        origin = NODE + job.calling_ae_title.strip() if job.calling_ae_title else None
        named = [origin if target == ORIGIN else target for target in route.to]
        return list(dict.fromkeys(destination for destination in named if destination is not None))

    def _objects_for(self, destination: str) -> tuple[ResultKind, ...]:
        known: Node | Folder | DicomWeb | None
        if destination.startswith(FOLDER):
            known = self.folder(destination.removeprefix(FOLDER))
        elif destination.startswith(DICOMWEB):
            known = self.dicomweb_service(destination.removeprefix(DICOMWEB))
        else:
            known = self.node(destination.removeprefix(NODE))
        return DEFAULT_OBJECTS if known is None else known.objects

    def names(self) -> list[str]:
        """Every destination as it is written into the outbox."""
        return [
            *(NODE + node.ae_title for node in self.nodes),
            *(FOLDER + folder.name for folder in self.folders),
            *(DICOMWEB + service.name for service in self.dicomweb),
        ]

    def node(self, ae_title: str) -> Node | None:
        return next((node for node in self.nodes if node.ae_title == ae_title), None)

    def retrieve_rule(self, name: str) -> RetrieveRule | None:
        return next((rule for rule in self.retrieve if rule.name == name), None)

    def folder(self, name: str) -> Folder | None:
        return next((folder for folder in self.folders if folder.name == name), None)

    def dicomweb_service(self, name: str) -> DicomWeb | None:
        return next((service for service in self.dicomweb if service.name == name), None)

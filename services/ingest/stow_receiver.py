"""The STOW-RS side of the intake: parts of a multipart body become instances in the study store (PS3.18 section 10.5).

What holds for C-STORE holds here: CT storage classes only, the same instance again changes nothing, and an instance is
acknowledged when it lies complete under its final name and a job is receiving its series. The listener, another
process, notices that job and completes it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.dataset import Dataset

from imaging.errors import InputError, InputTooLarge, StorageFull
from services.dicom.file_meta import FILE_PREFIX, FileMeta, mapped, read_file_meta
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES
from services.dicomweb.resource_urls import ResourceUrls
from services.ingest.arriving_data_set import InMemory
from services.ingest.held_instances import HeldInstances
from services.ingest.identifiers import Identifiers, check_is_ct, check_is_named, read_identifiers
from services.ingest.storage_status import MISMATCH, OUT_OF_RESOURCES, UNSUPPORTED_TRANSFER_SYNTAX, storage_status
from services.store.disk_room import means_full, no_room
from services.store.jobs import JobStore
from services.store.rows import DEFAULT_TENANT, Source
from services.store.study_store import StudyStore

log = logging.getLogger(__name__)

_NAMING_BYTES = 128 * 1024
_FILE_META_BEGIN = b"\x02\x00"  # group 0002 in little endian
_COUNTED_EVERY_S = 0.5  # far less than any series is waited for: its job sees that more comes


class StowReceiver:
    """Takes the parts of one request in, one after the other (`services.multipart.Parts`).

    Attributes:
        stored: items of the Referenced SOP Sequence, for instances held now, whether they are new or not.
        failed: items of the Failed SOP Sequence.
        received: number of instances held now, by Study Instance UID and SOP Class UID.
        unreadable: items of the Other Failures Sequence, for parts that are no instance at all.
        lacked_room: whether something of this was refused because the disk is full: it may come again.
    """

    def __init__(
        self,
        store: StudyStore,
        jobs: JobStore,
        held: HeldInstances,
        directory: Path,
        urls: ResourceUrls,
        *,
        study_instance_uid: str | None,
        calling_address: str | None,
        max_bytes: int,
        max_parts: int,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        """`directory` is where a part lies while it arrives, on the file system of the study store."""
        self.stored: list[Dataset] = []
        self.failed: list[Dataset] = []
        self.unreadable: list[Dataset] = []
        self.lacked_room = False
        self.received: dict[str, Counter[str]] = {}
        self._store = store
        self._jobs = jobs
        self._held = held
        self._urls = urls
        self._part = directory / "part"
        self._study_instance_uid = study_instance_uid
        self._calling_address = calling_address
        self._max_bytes = max_bytes
        self._max_parts = max_parts
        self._tenant = tenant
        self._bytes = self._parts = 0
        self._has_no_room = False
        self._beginning = bytearray()  # of a part: names the instance also where the disk does not take it
        self._file: BinaryIO | None = None
        self._arrived: Counter[tuple[str, str]] = Counter()  # by study and series: not yet counted in the series' job
        self._counted_at = time.monotonic()
        self._opened: set[tuple[str, str]] = set()  # series with a job that was receiving when it was last counted

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part's content decides what it is, not its headers.

        Raises:
            InputTooLarge: `input.too_many_files`.
        """
        self._parts += 1
        if self._parts > self._max_parts:
            raise InputTooLarge(
                f"more than {self._max_parts} instances in one request",
                code="input.too_many_files",
                remedy="send a series in several requests",
            )
        self._has_no_room = False
        self._beginning.clear()
        self._file = self._part.open("wb", buffering=0)  # so that a full disk says so in `write`

    def write(self, piece: bytes | memoryview) -> None:
        """Raises InputTooLarge over the limit of bytes."""
        assert self._file is not None
        self._bytes += len(piece)
        if self._bytes > self._max_bytes:
            raise InputTooLarge(
                f"the request is over the limit of {self._max_bytes} bytes", remedy="send a series in several requests"
            )
        self._beginning += piece[: _NAMING_BYTES - len(self._beginning)]
        if not self._has_no_room:
            self._has_no_room = not self._has_written(piece)

    def end(self) -> None:
        """The instance is stored, or its refusal noted, also that there is no room for it. What else is no fault of it
        (the database) is raised."""
        assert self._file is not None
        self._file.close()
        self._file = None
        named: Identifiers | None = None
        try:
            if self._has_no_room:
                named = _named_in(bytes(self._beginning))
                raise no_room()
            self._give_a_preamble()
            content = mapped(self._part)
            meta = read_file_meta(content)
            data_set = content[meta.data_set_begin :]
            in_memory = cast(BinaryIO, InMemory(data_set))
            named = read_identifiers(in_memory, meta.transfer_syntax_uid, with_announcement=False)
            self._check(meta, named)
            self._take_in(named, data_set)
        except (InputError, StorageFull) as error:
            log.warning("refused %s over STOW-RS: %s", named.sop_instance_uid if named else "a part", error.code)
            item = Dataset() if named is None else _named_item(named)
            item.FailureReason = OUT_OF_RESOURCES if self._has_no_room else storage_status(error)
            self.lacked_room = self.lacked_room or item.FailureReason == OUT_OF_RESOURCES
            (self.unreadable if named is None else self.failed).append(item)
        else:
            self.received.setdefault(named.study_instance_uid, Counter())[named.sop_class_uid] += 1
            self.stored.append(_named_item(named))
            self.stored[-1].RetrieveURL = self._urls.instance(
                named.study_instance_uid, named.series_instance_uid, named.sop_instance_uid
            )

    def answer(self) -> Dataset:
        """The Store Instances Response Module (PS3.18 Annex I)."""
        answer = Dataset()
        if self._study_instance_uid is not None:
            answer.RetrieveURL = self._urls.study(self._study_instance_uid)
        for keyword, items in (
            ("ReferencedSOPSequence", self.stored),
            ("FailedSOPSequence", self.failed),
            ("OtherFailuresSequence", self.unreadable),
        ):
            if items:
                setattr(answer, keyword, items)
        return answer

    def close(self) -> None:
        """Call in the end, also where the request broke off."""
        if self._file is not None:
            with suppress(OSError):  # a full disk has said so already
                self._file.close()

    def _has_written(self, piece: bytes | memoryview) -> bool:
        assert self._file is not None
        try:
            self._store.check_room(len(piece))
            return self._file.write(piece) == len(piece)
        except (OSError, StorageFull) as error:
            if not means_full(error):
                raise
            return False

    def _give_a_preamble(self) -> None:
        """Before file meta information that a client sends without one, as pydicom writes what was never a file."""
        with self._part.open("rb") as bare:
            if bare.read(len(_FILE_META_BEGIN)) != _FILE_META_BEGIN:
                return
            bare.seek(0)
            whole = self._part.with_name("whole")
            with whole.open("wb") as file:
                file.write(FILE_PREFIX)
                shutil.copyfileobj(bare, file)
        whole.replace(self._part)

    def _check(self, meta: FileMeta, named: Identifiers) -> None:
        check_is_ct(named.sop_class_uid)
        check_is_named(named, meta.sop_class_uid, meta.sop_instance_uid)
        if meta.transfer_syntax_uid not in ACCEPTED_TRANSFER_SYNTAXES:
            raise InputError(
                f"transfer syntax {meta.transfer_syntax_uid} is not read here", code=UNSUPPORTED_TRANSFER_SYNTAX
            )
        if self._study_instance_uid not in (None, named.study_instance_uid):
            raise InputError("the instance belongs to another study than the URL names", code=MISMATCH)

    def _take_in(self, named: Identifiers, data_set: memoryview) -> None:
        study, series, sop = named.study_instance_uid, named.series_instance_uid, named.sop_instance_uid
        self._count_where_due()  # what was known of a job is old where the instance came slowly
        is_arriving = (study, series) in self._opened or self._jobs.is_receiving(study, series, tenant=self._tenant)
        path = self._store.instance_path(study, series, sop, tenant=self._tenant)
        if self._held.holds(path, named, data_set, is_arriving=is_arriving, tenant=self._tenant):
            if not is_arriving:
                return
        else:
            if not is_arriving:  # from here on nothing of the series is purged
                self._open_receiving(study, series, arrivals=0)
            try:
                self._store.put_in_place(self._part, path)
            except OSError as error:
                raise (no_room() if means_full(error) else error) from error
        self._opened.add((study, series))
        self._arrived[study, series] += 1
        self._count_where_due()

    def _count_where_due(self) -> None:
        if time.monotonic() - self._counted_at >= _COUNTED_EVERY_S:
            self.count_arrivals()

    def count_arrivals(self) -> None:
        """In the jobs that receive them, what lies in the study store since the last time.

        After the files: a completion that has not seen one of them is called off by this, or over already, and then
        there is a new job. Call before anything is acknowledged, and where the request broke off.
        """
        while self._arrived:
            (study, series), arrivals = self._arrived.popitem()
            self._open_receiving(study, series, arrivals=arrivals)
        self._opened.clear()
        self._counted_at = time.monotonic()

    def _open_receiving(self, study_instance_uid: str, series_instance_uid: str, *, arrivals: int) -> None:
        self._jobs.open_receiving(
            study_instance_uid=study_instance_uid,
            series_instance_uid=series_instance_uid,
            calling_address=self._calling_address,
            source=Source.DICOMWEB,
            arrivals=arrivals,
            tenant=self._tenant,
        )


def _named_in(beginning: bytes) -> Identifiers:
    if beginning.startswith(_FILE_META_BEGIN):
        beginning = FILE_PREFIX + beginning
    meta = read_file_meta(memoryview(beginning))
    return read_identifiers(
        BytesIO(beginning[meta.data_set_begin :]), meta.transfer_syntax_uid, with_announcement=False
    )


def _named_item(named: Identifiers) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = named.sop_class_uid, named.sop_instance_uid
    return item

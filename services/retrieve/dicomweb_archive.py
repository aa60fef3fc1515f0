"""Asking a DICOMweb service what it has (QIDO-RS), and having it sent (WADO-RS); PS3.18 sections 10.4 and 10.6."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

import httpx
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_partial

from imaging.errors import InputError, NodeUnavailable
from services.delivery.destinations import DICOMWEB, DicomWeb
from services.dicom.headers import MALFORMED
from services.dicomweb_client import dicomweb_client
from services.ingest.arriving_series import Calling
from services.retrieve.found import (
    FoundSeries,
    FoundStudy,
    Receiver,
    found_series,
    found_studies,
    sop_instance_uids,
    without_ct,
)
from services.retrieve.multipart_related import parts_of
from services.settings import Settings

log = logging.getLogger(__name__)

_PAGE = 1000
_FETCH_TIMEOUT_S = 300.0
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_META_LENGTH = slice(140, 144)  # value of (0002,0000), the first element: how many bytes of file meta follow it
_MORE_RESULTS = "299"  # PS3.18 section 8.3.4.4: the Warning of a service that gives no more than so many at once


class DicomWebArchive:
    """One DICOMweb service."""

    def __init__(self, service: DicomWeb, settings: Settings) -> None:
        self._service = service
        self._settings = settings

    def studies(self, *, modality: str, study_dates: str) -> list[FoundStudy]:
        keys = {"ModalitiesInStudy": modality, "StudyDate": study_dates, "includefield": "StudyDescription"}
        return found_studies(self._find("studies", keys))

    def study(self, study_instance_uid: str) -> FoundStudy | None:
        keys = {"StudyInstanceUID": study_instance_uid, "includefield": "StudyDescription"}
        return next(iter(found_studies(self._find("studies", keys), study_instance_uid)), None)

    def series(
        self, study_instance_uid: str, series_instance_uid: str | None = None, *, with_contrast: bool = False
    ) -> list[FoundSeries]:
        attributes = "SeriesDescription,NumberOfSeriesRelatedInstances"
        keys = {"includefield": f"{attributes},ContrastBolusAgent" if with_contrast else attributes}
        if series_instance_uid is not None:
            keys["SeriesInstanceUID"] = series_instance_uid
        return found_series(self._find(f"studies/{study_instance_uid}/series", keys), series_instance_uid)

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        path = f"studies/{study_instance_uid}/series/{series_instance_uid}/instances"
        return sop_instance_uids(self._find(path, {}))

    def other_than_ct(self, study_instance_uid: str, series_instance_uid: str, uids: Sequence[str]) -> frozenset[str]:
        path = f"studies/{study_instance_uid}/series/{series_instance_uid}/instances"
        answers = self._find(path, {"includefield": "SOPClassUID"})
        return sop_instance_uids(without_ct(answers)) & frozenset(uids)

    def fetch(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        uids: Sequence[str] | None,
        *,
        receiver: Receiver,
        on_progress: Callable[[int], bool],
    ) -> None:
        series = f"studies/{study_instance_uid}/series/{series_instance_uid}"
        paths = [series] if uids is None else [f"{series}/instances/{uid}" for uid in uids]
        calling = Calling(DICOMWEB + self._service.name, self._service.url.host or "", threading.current_thread())
        failed = 0
        with self._client() as client:
            for path in paths:
                for part in self._parts(client, path, may_be_gone=uids is not None):
                    try:
                        if part is None:
                            raise InputError(f"{self._service.name} has lost {path}", code="input.lost")
                        _take_in(part, receiver, calling)
                    except InputError as error:
                        log.warning("refused an instance of series %s: %s", series_instance_uid, error.code)
                        failed += 1
                    if not on_progress(failed):
                        return

    def _parts(self, client: httpx.Client, path: str, *, may_be_gone: bool) -> Iterator[bytes | None]:
        """The instances below a path; None for one that the service lists and no longer has."""
        timeout = httpx.Timeout(_FETCH_TIMEOUT_S, connect=client.timeout.connect)
        with client.stream("GET", path, headers={"Accept": _AS_STORED}, timeout=timeout) as response:
            if may_be_gone and response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
                yield None
                return
            self._check(response)
            yield from parts_of(response.headers.get("Content-Type", ""), response.iter_bytes())

    def _find(self, path: str, keys: dict[str, str]) -> list[Dataset]:
        found: list[Dataset] = []
        seen: set[str] = set()
        with self._client() as client:
            while True:
                paging = {"limit": str(_PAGE), "offset": str(len(found))}
                response = client.get(path, params=keys | paging, headers={"Accept": "application/dicom+json"})
                self._check(response)
                page = [] if response.status_code == httpx.codes.NO_CONTENT else self._answers(response)
                new = {text: answer for answer in page if (text := answer.to_json()) not in seen}
                seen |= new.keys()
                found += new.values()
                is_last = len(page) < _PAGE and _MORE_RESULTS not in response.headers.get("Warning", "")
                if not new or is_last:  # nothing new: a service that knows no `offset` gives the same for ever
                    return found

    def _answers(self, response: httpx.Response) -> list[Dataset]:
        try:
            return [Dataset.from_json(answer) for answer in response.json()]
        except MALFORMED as error:
            raise NodeUnavailable(f"{self._service.name} sent an answer that cannot be read") from error

    def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            raise NodeUnavailable(f"{self._service.name} answered {response.status_code}", remedy="see its log")

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        with dicomweb_client(self._service, self._settings) as client:
            try:
                yield client
            except httpx.HTTPError as error:
                raise NodeUnavailable(
                    f"{self._service.name} does not answer: {type(error).__name__}", remedy="is it running?"
                ) from error


def _take_in(part: bytes, receiver: Receiver, calling: Calling) -> None:
    """One DICOM file; its data set is kept as it is."""
    try:
        meta = read_partial(BytesIO(part), stop_when=lambda tag, vr, length: True).file_meta
        own = FileMetaDataset()
        own.MediaStorageSOPClassUID = meta.MediaStorageSOPClassUID
        own.MediaStorageSOPInstanceUID = meta.MediaStorageSOPInstanceUID
        own.TransferSyntaxUID = meta.TransferSyntaxUID
    except MALFORMED as error:
        raise InputError("not a DICOM file", code="input.not_dicom") from error
    data_set = BytesIO(part[_META_LENGTH.stop + int.from_bytes(part[_META_LENGTH], "little") :])
    receiver.take_in(data_set, own, calling)

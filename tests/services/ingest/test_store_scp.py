"""What the Storage SCP answers, and what then lies on disk."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tarfile
import threading
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from imaging.errors import InputError, StorageFull
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES, CT_STORAGE_SOP_CLASSES
from services.ingest.identifiers import read_identifiers
from services.ingest.intake_rules import IntakeRules
from services.ingest.storage_status import storage_status
from services.requestor import Requestor
from services.settings import Settings
from services.store.database import Database
from tests.services.ingest.peers import Receiving, association, ct_series, push, save, wait_until

# Without it Debian's dcmtk stalls 40 ms for every slice.
DCMTK = {**os.environ, "TCP_NODELAY": "1"}


def path_of(receiving: Receiving, one: Dataset) -> Path:
    return receiving.store.instance_path(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)


def test_a_pushed_series_lies_on_disk_and_becomes_a_queued_job(receiving: Receiving) -> None:
    slices = ct_series(5)
    push(receiving.port, slices)
    (job,) = receiving.wait_for_state(slices[0], "queued")
    assert job.completion_reason == "associations released, quiet for 0.4 s"
    assert job.instance_count == 5
    assert job.calling_ae_title == "CT1"
    assert len(receiving.store.read_inputs(job.id)) == 5
    wait_until(lambda: job.id in receiving.queue.waiting())


def test_success_is_said_only_when_the_file_is_there(receiving: Receiving) -> None:
    slices = ct_series(10)
    with association(receiving.port) as opened:
        for one in slices:
            assert opened.send_c_store(one).Status == 0x0000
            assert path_of(receiving, one).is_file()
            assert [job.state for job in receiving.jobs_of(one)] == ["receiving"]


def test_the_data_set_is_kept_byte_for_byte(receiving: Receiving) -> None:
    (one,) = ct_series(1)
    push(receiving.port, [one])
    received = dcmread(path_of(receiving, one))
    assert received.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert received.PixelData == one.PixelData
    assert {element.tag: element.value for element in received} == {element.tag: element.value for element in one}


@pytest.mark.parametrize("sender", [("storescu", "+sd"), ("dcmsend", "+sd")])
def test_dcmtk_is_answered_and_its_series_received(
    receiving: Receiving, tmp_path: Path, sender: tuple[str, ...]
) -> None:
    port = str(receiving.port)
    slices = ct_series(12)
    save(slices, tmp_path / "study")
    for command in (["echoscu"], [*sender, "-aet", "PACS"]):
        if shutil.which(command[0]) is None:
            pytest.fail(f"{command[0]} is not installed (Debian: dcmtk)")
        where = ["127.0.0.1", port, *([] if command[0] == "echoscu" else [str(tmp_path / "study")])]
        subprocess.run([*command, "-aec", "EMBOLENS", *where], env=DCMTK, check=True, timeout=30)
    (job,) = receiving.wait_for_state(slices[0], "queued")
    assert (job.calling_ae_title, job.instance_count) == ("PACS", 12)


@pytest.mark.parametrize("sop_class", [MRImageStorage, "1.2.840.10008.5.1.4.1.1.88.33"])
def test_another_modality_is_refused_when_contexts_are_negotiated(receiving: Receiving, sop_class: str) -> None:
    ae = Requestor("MR1")
    ae.add_requested_context(sop_class)
    opened = ae.associate("127.0.0.1", receiving.port)
    assert not opened.accepted_contexts
    opened.abort()


def test_every_ct_class_is_accepted_in_every_transfer_syntax(receiving: Receiving) -> None:
    ae = Requestor("CT1")
    for sop_class in CT_STORAGE_SOP_CLASSES.values():
        for transfer_syntax in ACCEPTED_TRANSFER_SYNTAXES:
            ae.add_requested_context(sop_class, transfer_syntax)
    opened = ae.associate("127.0.0.1", receiving.port)
    assert len(opened.accepted_contexts) == len(ae.requested_contexts)
    opened.release()


def test_the_same_instance_twice_is_one_file(receiving: Receiving) -> None:
    slices = ct_series(3)
    push(receiving.port, [*slices, slices[0], slices[0]])
    (job,) = receiving.wait_for_state(slices[0], "queued")
    assert job.instance_count == 3
    assert len(list(path_of(receiving, slices[0]).parent.iterdir())) == 3


def test_a_copy_of_an_instance_of_a_completed_series_opens_no_job(receiving: Receiving) -> None:
    slices = ct_series(3)
    push(receiving.port, slices)
    receiving.wait_for_state(slices[0], "queued")
    push(receiving.port, slices)
    assert [job.state for job in receiving.jobs_of(slices[0])] == ["queued"]


@pytest.mark.parametrize("kept_bytes", [0, 100, 600, -2])
def test_a_torn_file_is_replaced_when_the_instance_comes_again(receiving: Receiving, kept_bytes: int) -> None:
    slices = ct_series(3)
    push(receiving.port, slices)
    receiving.wait_for_state(slices[0], "queued")
    path = path_of(receiving, slices[1])
    whole = path.read_bytes()
    path.write_bytes(whole[:kept_bytes])
    push(receiving.port, slices)
    assert path.read_bytes() == whole


def test_a_series_of_which_a_torn_file_was_read_gets_another_job(receiving: Receiving) -> None:
    slices = ct_series(3)
    push(receiving.port, slices[:2])
    receiving.wait_for_state(slices[0], "queued")
    torn = path_of(receiving, slices[2])
    torn.touch()
    push(receiving.port, slices)
    jobs = receiving.wait_for_state(slices[0], "cancelled", "queued")
    assert jobs[-1].instance_count == 3
    assert torn.stat().st_size > len(slices[2].PixelData)


def test_of_two_different_instances_with_one_uid_the_first_stays_and_the_log_tells(
    receiving: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = ct_series(1)[0], ct_series(1)[0]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(other, keyword, one[keyword].value)
    other.PatientName = "Other^Person"
    other.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    with caplog.at_level(logging.WARNING, logger="services"):
        push(receiving.port, [one, one])
        assert "different content" not in caplog.text
        push(receiving.port, [other])
    assert "different content" in caplog.text
    assert dcmread(path_of(receiving, one)).PatientName == "Secret^Person"


def test_two_interleaved_associations_make_one_series(receiving: Receiving) -> None:
    slices = ct_series(40)
    senders = [threading.Thread(target=push, args=(receiving.port, slices[k::2])) for k in range(2)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    (job,) = receiving.wait_for_state(slices[0], "queued")
    assert job.instance_count == 40


def test_a_series_is_not_complete_while_an_association_is_open(receiving: Receiving) -> None:
    slices = ct_series(3)
    with association(receiving.port) as opened:
        for one in slices:
            opened.send_c_store(one)
        threading.Event().wait(1.2)  # three times the quiet time
        assert [job.state for job in receiving.jobs_of(slices[0])] == ["receiving"]
    receiving.wait_for_state(slices[0], "queued")


def test_an_aborted_association_does_not_hold_its_series_back(receiving: Receiving) -> None:
    slices = ct_series(3)
    ae = Requestor("CT1")
    ae.add_requested_context(slices[0].SOPClassUID, ExplicitVRLittleEndian)
    opened = ae.associate("127.0.0.1", receiving.port)
    for one in slices:
        opened.send_c_store(one)
    opened.abort()
    receiving.wait_for_state(slices[0], "queued")


def test_a_data_set_that_is_not_what_the_request_names_is_refused(receiving: Receiving) -> None:
    (one,) = ct_series(1)
    for wrong, expected in (({"SOPInstanceUID": "1.2.3"}, 0xA900), ({"StudyInstanceUID": ""}, 0xC000)):
        statuses = send_with_other_data_set(receiving.port, one, wrong)
        assert statuses == [expected]
    assert not receiving.jobs_of(one)
    assert not list(receiving.store.data_dir.rglob("*.dcm"))


def send_with_other_data_set(port: int, one: Dataset, wrong: dict[str, str]) -> list[int]:
    """A request that names `one`, carrying something else."""
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = one.SOPClassUID
    request.AffectedSOPInstanceUID = one.SOPInstanceUID
    request.Priority = 0
    carried = Dataset()
    for element in one:
        carried.add(element)
    for keyword, value in wrong.items():
        setattr(carried, keyword, value)
    encoded = encode(carried, False, True)
    assert encoded is not None
    request.DataSet = BytesIO(encoded)
    with association(port) as opened:
        context = next(c for c in opened.accepted_contexts if c.abstract_syntax == one.SOPClassUID)
        opened._reactor_checkpoint.clear()
        opened.dimse.send_msg(request, context.context_id)
        _, response = opened.dimse.get_msg(block=True)
        opened._reactor_checkpoint.set()
        return [response.Status]


def test_a_full_disk_is_told_to_the_sender(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = ct_series(2)

    def full(path: Path, pieces: object) -> object:
        raise StorageFull("no room left in the data directory")

    with association(receiving.port) as opened:
        with monkeypatch.context() as patched:
            patched.setattr(receiving.store, "put", full)
            assert opened.send_c_store(slices[0]).Status == 0xA700
        assert opened.send_c_store(slices[0]).Status == 0x0000
    receiving.wait_for_state(slices[0], "not_analysable")


def test_statuses_follow_the_error_tree() -> None:
    assert storage_status(InputError("", code="input.unsupported_sop_class")) == 0x0122
    assert storage_status(InputError("", code="input.identifier_mismatch")) == 0xA900
    assert storage_status(InputError("")) == 0xC000
    assert storage_status(StorageFull("")) == 0xA700
    assert storage_status(OSError()) == 0xA700


def test_nothing_that_names_the_patient_is_logged(receiving: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    slices = ct_series(3, SeriesDescription="Secret^Person CTPA")
    with caplog.at_level(logging.DEBUG, logger="services"):
        push(receiving.port, slices)
        wait_until(lambda: f"series {slices[0].SeriesInstanceUID} complete" in caplog.text)
    for secret in ("Secret", "Person", "PHI"):  # no bare digits: a UID may hold them by chance
        assert secret not in caplog.text


def test_identifiers_are_read_in_every_transfer_syntax(shared_data: Path) -> None:
    files = sorted((shared_data / "hard_dicom" / "transfer_syntaxes_MISTER-CT").glob("*.dcm"))
    assert len(files) >= 10
    for file in files:
        whole = dcmread(file)
        encoded = encoded_part_of(file)
        found = read_identifiers(BytesIO(encoded), UID(whole.file_meta.TransferSyntaxUID), with_announcement=True)
        assert found.series_instance_uid == whole.SeriesInstanceUID, file.name
        assert found.sop_instance_uid == whole.SOPInstanceUID, file.name


def encoded_part_of(file: Path) -> bytes:
    raw = file.read_bytes()
    length = int.from_bytes(raw[140:144], "little")  # (0002,0000)
    return raw[144 + length :]


def test_compressed_instances_are_kept_in_their_transfer_syntax(shared_data: Path, receiving: Receiving) -> None:
    kept = set()
    for file in sorted((shared_data / "hard_dicom" / "transfer_syntaxes_MISTER-CT").glob("*.dcm")):
        sent = dcmread(file)
        if sent.file_meta.TransferSyntaxUID not in ACCEPTED_TRANSFER_SYNTAXES:
            continue  # retired processes of JPEG
        ae = Requestor("CT1")
        ae.add_requested_context(sent.SOPClassUID, sent.file_meta.TransferSyntaxUID)
        opened = ae.associate("127.0.0.1", receiving.port)
        assert opened.send_c_store(sent).Status == 0x0000, file.name
        opened.release()
        path = path_of(receiving, sent)
        received = dcmread(path)
        assert received.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert received.PixelData == sent.PixelData
        kept.add(received.file_meta.TransferSyntaxUID)
        path.unlink()  # they are all the same instance
    assert kept == set(ACCEPTED_TRANSFER_SYNTAXES) - {HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K}  # no such CT is there


def test_a_real_series_pushed_by_dcmtk_is_taken_by_the_shipped_rules(
    shared_data: Path, settings: Settings, database: Database, tmp_path: Path
) -> None:
    with tarfile.open(shared_data / "chest_ct" / "LIDC-IDRI-0001_contrast_133sl.tar.xz") as packed:
        packed.extractall(tmp_path / "study", filter="data")
    one = dcmread(next((tmp_path / "study").rglob("*.dcm")), stop_before_pixels=True)
    receiving = Receiving(settings, database, IntakeRules.load(settings.intake_rules))
    where = ["127.0.0.1", str(receiving.port), str(tmp_path / "study")]
    subprocess.run(["storescu", "+sd", "+r", "-aec", "EMBOLENS", *where], env=DCMTK, check=True, timeout=60)
    (job,) = receiving.wait_for_state(one, "queued")
    assert job.instance_count == 133
    receiving.stop()


def test_the_announcement_is_read_and_nonsense_is_refused() -> None:
    from pynetdicom.dsutils import encode

    (one,) = ct_series(1, NumberOfSeriesRelatedInstances=7)
    encoded = encode(one, True, True)
    assert encoded is not None
    found = read_identifiers(BytesIO(encoded), ImplicitVRLittleEndian, with_announcement=True)
    assert found.announced_instances == 7
    without = read_identifiers(BytesIO(encoded), ImplicitVRLittleEndian, with_announcement=False)
    assert without.announced_instances is None
    for nonsense in (b"", os.urandom(64), b"\x08\x00", encoded[:40]):
        with pytest.raises(InputError):
            read_identifiers(BytesIO(nonsense), ImplicitVRLittleEndian, with_announcement=True)

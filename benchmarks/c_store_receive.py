"""C-STORE into the listener, beside other receivers: dcmtk's storescu pushes a CT series of 526 kB slices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from benchmarks.emptied_files import emptied_afterwards
from benchmarks.machine import program_version, version
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.peak_memory import peak_memory_of_process_mb
from benchmarks.side_by_side import side_by_side
from services.embedded_redis import free_port

SLICES = 400
WARMING_SLICES = 8  # of another series; two for each association
STALLED_SLICES = 10  # some stall for 40 ms at each
CROWD = 50  # associations, as many as are served at once as shipped
_NO_DELAY = {"TCP_NODELAY": "1"}
_LISTENER = "from services.ingest.listener import *; from services.settings import *; run_listener(Settings())"
# As its documentation has it, with the longest PDUs; writing the encoded data set is its fastest way.
_PYNETDICOM = """
import sys
from pathlib import Path
from pynetdicom import AE, AllStoragePresentationContexts, evt

def store(event):
    Path(sys.argv[2], event.request.AffectedSOPInstanceUID + ".dcm").write_bytes(event.encoded_dataset())
    return 0x0000

ae = AE()
ae.maximum_pdu_size = 0
ae.supported_contexts = AllStoragePresentationContexts
ae.start_server(("127.0.0.1", int(sys.argv[1])), evt_handlers=[(evt.EVT_C_STORE, store)])
"""
_HOW = """\
`storescu` sends {slices} CT slices of {kilobytes} kB over one association, or a quarter of them over each of four that
begin at once; the time is from starting `storescu` to its end, so that its own start counts. Every receiver begins
with an empty folder in every round, has received {warming} slices of another series over four associations before, as
one has that is in service, and has to hold every slice in the end. Ours runs with durability `process`, as it is
shipped: series register, database, audit trail and completion included; memory is the listener's, and what its
receivers have beside it.

Receivers: {versions}. `storescp` without `--fork` serves one association after the other. Orthanc's storage and index
lie on the same disk as everybody's files. pynetdicom runs a handler that writes the encoded data set, with PDUs of any
length. What was stored is emptied, and deleted when all is measured: for a while after it has deleted files ext4
makes new ones slowly. All have `TCP_NODELAY=1` in their environment, and so has `storescu`, save in the row that says
so: there Nagle's algorithm and delayed acknowledgements may hold each slice up for 40 ms.

The floor is a process that receives as many bytes over TCP, writes each slice to a file and answers with one byte, the
sender being another such process.
"""


@dataclass(frozen=True, slots=True)
class _Receiver:
    port: int
    pid: int
    folder: Path
    ready_after_s: float


_Started = Callable[[Path, Mapping[str, str]], AbstractContextManager[_Receiver]]


def measure(rounds: int) -> Page:
    with tempfile.TemporaryDirectory() as folder:
        series, other = Path(folder) / "series", Path(folder) / "other"
        return _measure(_slices(series, SLICES), _slices(other, WARMING_SLICES), rounds)


def _measure(files: list[Path], other: list[Path], rounds: int) -> Page:
    memory: dict[str, list[float]] = {}
    starts: dict[str, list[float]] = {}
    receivers: dict[str, _Started] = {
        "Embolens": _embolens,
        "dcmtk storescp": _storescp,
        "dcmtk storescp --fork": partial(_storescp, options=("--fork",)),
        "Orthanc": _orthanc,
        "pynetdicom": _pynetdicom,
    }

    def run(name: str, associations: int, sent: list[Path], environment: Mapping[str, str] = _NO_DELAY) -> float:
        folder = Path(tempfile.mkdtemp(dir=files[0].parent))
        with emptied_afterwards(folder), receivers[name](folder, environment) as receiver:
            _push(other, receiver.port, 4, environment)
            took_s = _push(sent, receiver.port, associations, environment)
            memory.setdefault(name, []).append(_memory_mb(receiver.pid))
            starts.setdefault(name, []).append(receiver.ready_after_s)
            stored = _stored(receiver.folder)
            assert stored >= len(sent) + len(other), f"{name} has {stored} of {len(sent)} slices"
        return len(sent) / took_s

    rows = []
    for associations in (1, 4):
        ways: dict[str, Callable[[], float]] = {name: partial(run, name, associations, files) for name in receivers}
        ways["raw TCP + write"] = partial(_raw, files, associations)
        figures = side_by_side(ways, rounds=rounds, unit="slices/s")
        floor = figures.pop("raw TCP + write").median
        rows.append(_row(figures, associations, floor))
    stalled = side_by_side(
        {name: partial(run, name, 1, files[:STALLED_SLICES], {}) for name in receivers},
        rounds=min(rounds, 3),
        warm_up=False,
        unit="slices/s",
    )
    ours = stalled.pop("Embolens")
    what = f"{STALLED_SLICES} slices, 1 association, nobody with TCP_NODELAY"
    rows.append(Row(what=what, unit="slices/s", higher_is_better=True, ours=ours, others=tuple(stalled.values())))
    by_slices = tuple((count, count / run("Embolens", 1, files[:count])) for count in (100, 200, 400))
    by_associations = tuple((count, len(files) / run("Embolens", count, files)) for count in (1, 2, 4, 8))
    run("Embolens", CROWD, files)
    rows += [_memory_row(memory), _start_row(starts)]
    return Page(
        title="C-STORE receive",
        how=_HOW.format(
            slices=len(files),
            warming=len(other),
            kilobytes=round(files[0].stat().st_size / 1000),
            versions=", ".join(_versions()),
        ),
        rows=tuple(rows),
        growths=(
            Growth(what="one association", size="slices", unit="s", points=by_slices),
            Growth(what=f"{len(files)} slices", size="associations", unit="s", points=by_associations),
        ),
    )


def _row(figures: dict[str, Figure], associations: int, floor: float) -> Row:
    ours = figures.pop("Embolens")
    dcmtk = max(figures["dcmtk storescp"].median, figures["dcmtk storescp --fork"].median)
    orthanc = figures["Orthanc"].median
    if associations == 1:
        goal = Goal(says="0.6 x storescp", met=ours.median >= 0.6 * figures["dcmtk storescp"].median)
    else:
        goal = Goal(says="level with dcmtk's best", met=ours.median >= dcmtk)
    return Row(
        what=f"{SLICES} slices, {associations} association{'s' if associations > 1 else ''}",
        unit="slices/s",
        higher_is_better=True,
        ours=ours,
        others=tuple(figures.values()),
        floor=Floor(value=floor, why="raw TCP + write, measured in the same rounds"),
        goals=(goal, Goal(says="2 x Orthanc", met=ours.median >= 2 * orthanc)),
    )


def _memory_row(memory: dict[str, list[float]]) -> Row:
    peaks = {name: Figure(name=name, samples=(max(found),)) for name, found in memory.items()}
    ours = peaks.pop("Embolens")
    return Row(
        what=f"peak memory of all runs; ours with {CROWD} associations at once too",
        unit="MB",
        higher_is_better=False,
        ours=ours,
        others=tuple(peaks.values()),
        goals=(Goal(says="under 250 MB", met=ours.median < 250),),
    )


def _start_row(starts: dict[str, list[float]]) -> Row:
    found = {name: Figure(name=name, samples=tuple(times)) for name, times in starts.items()}
    ours = found.pop("Embolens")
    return Row(
        what="from start to accepting connections",
        unit="s",
        higher_is_better=False,
        ours=ours,
        others=tuple(found.values()),
        goals=(Goal(says="within 2 s", met=ours.median <= 2),),
    )


def _push(files: list[Path], port: int, associations: int, environment: Mapping[str, str]) -> float:
    """Seconds for all of them."""
    command = ["storescu", "-aet", "BENCH", "-aec", "EMBOLENS", "127.0.0.1", str(port)]
    environment = {**_own_environment(), **environment}
    began = time.perf_counter()
    senders = [
        subprocess.Popen([*command, *map(str, files[number::associations])], env=environment)
        for number in range(associations)
    ]
    codes = [sender.wait() for sender in senders]
    took_s = time.perf_counter() - began
    assert not any(codes), "storescu failed"
    return took_s


def _memory_mb(pid: int) -> float:
    """The most that the process had, and what its children have for themselves now."""
    own_bytes = 0
    for one in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # storescp's, which end with their association
            own_bytes += one.memory_full_info().uss
    return peak_memory_of_process_mb(pid) + own_bytes / 1e6


def _own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NO_DELAY}


@contextmanager
def _running(
    command: list[str], port: int, folder: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[_Receiver]:
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**_own_environment(), **environment},
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _accepts(port):
            assert process.poll() is None, f"{command[0]} ended"
            time.sleep(0.005)
        yield _Receiver(port, process.pid, folder, time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _embolens(folder: Path, environment: Mapping[str, str]) -> AbstractContextManager[_Receiver]:
    port = free_port()
    (folder / "intake.toml").write_text("[associations]\npromiscuous = true\n")
    own = {
        "EMBOLENS_DATA_DIR": str(folder),
        "EMBOLENS_DICOM_PORT": str(port),
        "EMBOLENS_INTAKE_RULES": str(folder / "intake.toml"),
        "EMBOLENS_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",  # nothing is enqueued
        "EMBOLENS_SERIES_QUIET_S": "600",  # what becomes of the series afterwards is not measured
    }
    root = Path(__file__).resolve().parents[1]
    return _running([sys.executable, "-c", _LISTENER], port, folder, {**own, **environment}, cwd=root)


def _storescp(
    folder: Path, environment: Mapping[str, str], options: tuple[str, ...] = ()
) -> AbstractContextManager[_Receiver]:
    port = free_port()
    return _running(["storescp", *options, "-od", str(folder), str(port)], port, folder, environment)


def _orthanc(folder: Path, environment: Mapping[str, str]) -> AbstractContextManager[_Receiver]:
    port = free_port()
    configuration = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomPort": port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "HttpServerEnabled": False,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    return _running(["Orthanc", str(folder / "orthanc.json")], port, folder, environment)


def _pynetdicom(folder: Path, environment: Mapping[str, str]) -> AbstractContextManager[_Receiver]:
    port = free_port()
    return _running([sys.executable, "-c", _PYNETDICOM, str(port), str(folder)], port, folder, environment)


def _stored(folder: Path) -> int:
    """Files that hold pixels; Orthanc's have no names to go by."""
    return sum(path.stat().st_size > SLICE_PIXEL_BYTES for path in folder.rglob("*") if path.is_file())


def _raw(files: list[Path], connections: int) -> float:
    """Slices per second over plain sockets."""
    spawning = get_context("fork")
    folder = Path(tempfile.mkdtemp(dir=files[0].parent))
    with emptied_afterwards(folder), socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        receivers = [
            spawning.Process(target=_receive_raw, args=(server, folder, number)) for number in range(connections)
        ]
        senders = [
            spawning.Process(target=_send_raw, args=(port, files[number::connections])) for number in range(connections)
        ]
        for one in receivers:
            one.start()
        began = time.perf_counter()
        for one in senders:
            one.start()
        for one in (*senders, *receivers):
            one.join()
        took_s = time.perf_counter() - began
        assert _stored(folder) == len(files)
    return len(files) / took_s


def _send_raw(port: int, files: list[Path]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for file in files:
            content = file.read_bytes()
            connection.sendall(len(content).to_bytes(4, "big"))
            connection.sendall(content)
            assert connection.recv(1)


def _receive_raw(server: socket.socket, folder: Path, number: int) -> None:
    connection, _ = server.accept()
    room = memoryview(bytearray(1 << 20))
    received = 0
    while header := connection.recv(4, socket.MSG_WAITALL):
        length = int.from_bytes(header, "big")
        connection.recv_into(room[:length], length, socket.MSG_WAITALL)
        descriptor = os.open(folder / f"{number}-{received}", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, room[:length])
        os.close(descriptor)
        connection.send(b"\0")
        received += 1


SLICE_PIXEL_BYTES = 512 * 512 * 2


def _slices(folder: Path, count: int) -> list[Path]:
    """A CT series with the header that scanners write, and noise."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    pixels = np.random.default_rng(0).integers(-1000, 1000, (512, 512), dtype=np.int16).tobytes()
    paths = []
    folder.mkdir()
    for number in range(count):
        one = Dataset()
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, f"{series[:58]}.{number + 1}"
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.ImageType, one.Modality, one.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT", "MAKER"
        one.InstitutionName, one.StationName, one.ManufacturerModelName = "Hospital", "CT1", "Scanner"
        one.StudyDate = one.SeriesDate = one.AcquisitionDate = one.ContentDate = "20260101"
        one.StudyTime = one.SeriesTime = one.AcquisitionTime = one.ContentTime = "120000.000000"
        one.AccessionNumber, one.StudyDescription, one.SeriesDescription = "4711", "CT chest", "CTPA 1.0"
        one.ReferringPhysicianName, one.PatientName, one.PatientID = "A^B", "C^D", "0815"
        one.PatientBirthDate, one.PatientSex, one.PatientAge, one.PatientWeight = "19500101", "F", "076Y", 70
        one.BodyPartExamined, one.KVP, one.SliceThickness, one.ContrastBolusAgent = "CHEST", 100, 1.0, "Iodine"
        one.DataCollectionDiameter, one.ReconstructionDiameter, one.GantryDetectorTilt = 500, 360, 0
        one.TableHeight, one.ExposureTime, one.XRayTubeCurrent, one.Exposure = 150, 500, 300, 150
        one.ConvolutionKernel, one.PatientPosition, one.ProtocolName, one.DeviceSerialNumber = "B30", "FFS", "PE", "1"
        one.StudyID, one.SeriesNumber, one.AcquisitionNumber, one.InstanceNumber = "1", 2, 1, number + 1
        one.ImagePositionPatient, one.ImageOrientationPatient = [-180, -180, number], [1, 0, 0, 0, 1, 0]
        one.SliceLocation, one.PixelSpacing = number, [0.7, 0.7]
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 1
        one.Rows, one.Columns, one.BitsAllocated, one.BitsStored, one.HighBit = 512, 512, 16, 16, 15
        one.RescaleIntercept, one.RescaleSlope, one.WindowCenter, one.WindowWidth = 0, 1, 100, 700
        one.PixelData = pixels
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(folder / f"{number:04d}.dcm")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


def _versions() -> list[str]:
    dcmtk = f"dcmtk {program_version('storescp')} (`storescp`, `storescu`)"
    return [dcmtk, f"Orthanc {program_version('Orthanc')}", version("pynetdicom")]

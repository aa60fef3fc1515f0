"""Masks -> DICOM SEG file: beside highdicom as documented and dcmqi."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.uid import UID
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from benchmarks import machine
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.peak_memory import peak_memory_mb
from benchmarks.side_by_side import seconds, side_by_side
from imaging.findings import ArteryLevel, Findings, Lesion, Outcome
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.identity import ResultIdentity
from services.dicom.seg_options import SegOptions, SegType
from services.dicom.seg_writer import segment_numbers, write_seg
from services.dicom.series_reader import SourceSeries, read_series

SHAPE_ZYX = (400, 512, 512)
IDENTITY = ResultIdentity("0", "benchmark", "0", "ab" * 32, "cd" * 32, "ef" * 32)
_DCMQI = Path(sys.executable).parent / "itkimage2segimage"


@dataclass(frozen=True)
class Case:
    """A series, the masks of some segments, and both as peers want them: headers, label map."""

    files: list[Path]
    source: SourceSeries
    result: SegmentationResult

    @property
    def numbers(self) -> NDArray[np.uint8]:
        return np.asarray(segment_numbers(self.result))


def made_result(volume: CtVolume, segments: int, seed: int = 6) -> SegmentationResult:
    """An artery of tubes through two thirds of the slices, and round lesions of 3 to 9 mm radius beside each other."""
    rng = np.random.default_rng(seed)
    depth, height, width = volume.shape_zyx
    artery = np.zeros(volume.shape_zyx, dtype=bool)
    rows, columns = np.ogrid[:height, :width]
    for start in rng.uniform(0.3, 0.7, (24, 2)) * (height, width):
        drift = rng.uniform(-0.2, 0.2, 2)
        for step, index in enumerate(range(depth // 6, depth - depth // 6)):
            row, column = start + drift * step
            artery[index] |= (rows - row) ** 2 + (columns - column) ** 2 < 36
    labelmap = np.zeros(volume.shape_zyx, dtype=np.uint16)
    probability = np.zeros(volume.shape_zyx, dtype=np.uint8)
    lesions = []
    for number in range(1, segments):
        centre = rng.uniform(0.25, 0.75, 3) * volume.shape_zyx
        radius = rng.uniform(4, 12)
        box = tuple(slice(int(c - radius), int(c + radius) + 2) for c in centre)
        z, y, x = np.ogrid[box]
        inside = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2
        labelmap[box][inside] = number
        probability[box][inside] = 200
        left, posterior, superior = (float(value) for value in volume.point_lps_mm(centre))
        place = (left, posterior, superior)
        lesions.append(Lesion(number, 0.9, 1.0, place, place, 10.0, 50.0, ArteryLevel.LOBAR))
    findings = Findings(
        Outcome.EMBOLUS_FOUND if lesions else Outcome.NO_EMBOLUS, scan_probability=0.9, lesions=tuple(lesions)
    )
    return SegmentationResult(labelmap, artery, findings, lesion_probability=probability)


def made_series(directory: Path) -> list[Path]:
    affine = np.diag([0.0, 0.7, 0.0, 1.0])
    affine[2, 0], affine[0, 2] = 0.75, 0.7
    volume = CtVolume(np.zeros(SHAPE_ZYX, dtype=np.int16), affine)
    return write_ct_series(volume, directory, patient_id="P1", patient_name="Bench^Mark")


def case_of(files: list[Path], segments: int) -> Case:
    source = read_series(files)
    return Case(files, source, made_result(source.volume, segments))


def ours(case: Case, path: Path, kind: SegType = SegType.BINARY) -> None:
    write_seg(case.source, case.result, path, identity=IDENTITY, options=SegOptions(kind))


def by_highdicom(
    headers: list[pydicom.Dataset],
    numbers: NDArray[np.uint8],
    path: Path,
    kind: SegType = SegType.BINARY,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> None:
    """As its documentation has it: the source images' data sets, a label map, empty frames left out."""
    algorithm = AlgorithmIdentificationSequence("A", codes.DCM.ArtificialIntelligence, "1")
    described = [
        SegmentDescription(
            number,
            f"Segment {number}",
            codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Embolus,
            "AUTOMATIC",
            algorithm,
        )
        for number in range(1, int(numbers.max()) + 1)
    ]
    Segmentation(
        source_images=headers,
        pixel_array=numbers,
        segmentation_type=kind.value.upper(),
        segment_descriptions=described,
        series_instance_uid=UID(),
        series_number=100,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="M",
        manufacturer_model_name="N",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=transfer_syntax_uid,
        omit_empty_frames=True,
    ).save_as(path)


def by_dcmqi(case: Case, directory: Path) -> Callable[[Path], None]:
    """From a label map in an uncompressed NRRD file beside the series."""
    label_map = directory / f"label-map-{case.numbers.max()}.nrrd"
    volume, steps = case.source.volume, case.source.volume.direction_cosines
    image = SimpleITK.GetImageFromArray(case.numbers)
    image.SetSpacing(volume.spacing_zyx_mm[::-1])
    image.SetOrigin([float(value) for value in volume.affine_lps[:3, 3]])
    image.SetDirection([float(value) for value in steps[:, ::-1].flatten()])
    SimpleITK.WriteImage(image, str(label_map))
    code = {"CodeValue": "49755003", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Morphologically abnormal"}
    segments = [
        {
            "labelID": number,
            "SegmentDescription": "s",
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": "A",
            "SegmentedPropertyCategoryCodeSequence": code,
            "SegmentedPropertyTypeCodeSequence": code,
        }
        for number in range(1, int(case.numbers.max()) + 1)
    ]
    described = directory / f"segments-{len(segments)}.json"
    described.write_text(json.dumps({"ContentCreatorName": "B", "segmentAttributes": [segments]}))

    def write(path: Path) -> None:
        subprocess.run(
            [
                str(_DCMQI),
                *("--inputImageList", str(label_map)),
                *("--inputDICOMDirectory", str(case.files[0].parent)),
                *("--inputMetadata", str(described)),
                *("--outputDICOM", str(path)),
                "--skip",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    return write


def measure(rounds: int) -> Page:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        files = made_series(directory / "series")
        headers: list[pydicom.Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
        full = case_of(files, 10)
        rows = [
            _row(full, headers, segments, kind, rounds, directory)
            for segments, kind in (
                (1, SegType.BINARY),
                (2, SegType.BINARY),
                (10, SegType.BINARY),
                (10, SegType.LABELMAP),
                (10, SegType.FRACTIONAL),
            )
        ]
        rows += [_sizes(full, headers, directory), _memory(full, headers, directory)]
        growths = _growths(full, rounds, directory)
    versions = ", ".join([*map(machine.version, ("highdicom", "pydicom", "dcmqi"))])
    how = f"""A series of 400 slices of 512 x 512, an artery of tubes and round lesions; a SEG of all of them, written
into the page cache. highdicom gets the source images' data sets, read before, and a label map, and leaves
out empty frames; ours gets what the cascade gives, artery and lesions in two arrays. Our object says more of itself
(provenance, tracking). dcmqi's `itkimage2segimage` is a program of its own: its time holds the reading of the series'
headers, and of the label map from an uncompressed NRRD file in the page cache. What we write is highdicom's object:
highdicom makes it around one frame, the others' bytes are made directly; the tests compare the files. Memory is what
the writing adds to a process that holds series and masks. Floor: the label map read once, the file written once.
{versions}."""
    return Page(title="DICOM SEG", how=how, rows=tuple(rows), growths=growths)


def _row(full: Case, headers: list[pydicom.Dataset], segments: int, kind: SegType, rounds: int, directory: Path) -> Row:
    case = full if segments == 10 else Case(full.files, full.source, made_result(full.source.volume, segments))
    # Nothing but emboli is FRACTIONAL in ours: an artery has no probabilities
    numbers = case.numbers if kind is not SegType.FRACTIONAL else case.result.embolus_labelmap.astype(np.uint8)
    mine = directory / "ours.dcm"
    theirs = directory / "highdicom.dcm"
    ways: dict[str, Callable[[], object]] = {
        "Embolens": partial(ours, case, mine, kind),
        "highdicom": partial(by_highdicom, headers, numbers, theirs, kind),
    }
    if kind is SegType.BINARY and segments > 1:
        ways["dcmqi"] = partial(by_dcmqi(case, directory), directory / "dcmqi.dcm")
    figures = side_by_side({name: seconds(way) for name, way in ways.items()}, rounds=rounds)
    mine_s, theirs_s = figures["Embolens"].median, figures["highdicom"].median
    goals = [Goal(says="never slower than highdicom", met=mine_s <= theirs_s)]
    if segments == 10:
        goals.insert(0, Goal(says="at most 1 s", met=mine_s <= 1))
    written = mine.stat().st_size
    floor_s = written / machine.file_write_bytes_per_s() + numbers.nbytes / machine.memory_copy_bytes_per_s()
    return Row(
        what=f"{kind.value.upper()}, {segments} segment{'s' if segments > 1 else ''}",
        unit="s",
        higher_is_better=False,
        ours=figures["Embolens"],
        others=tuple(figure for name, figure in figures.items() if name != "Embolens"),
        floor=Floor(value=floor_s, why=f"{written / 1e6:.0f} MB written, {numbers.nbytes / 1e6:.0f} MB read"),
        goals=tuple(goals),
    )


def _sizes(case: Case, headers: list[pydicom.Dataset], directory: Path) -> Row:
    def megabytes(name: str, write: Callable[[Path], None]) -> Figure:
        path = directory / "size.dcm"
        write(path)
        return Figure(name=name, samples=(path.stat().st_size / 1e6,))

    return Row(
        what="size, 10 segments",
        unit="MB",
        higher_is_better=False,
        ours=megabytes("Embolens BINARY", lambda path: ours(case, path)),
        others=(
            megabytes("Embolens LABELMAP", lambda path: ours(case, path, SegType.LABELMAP)),
            megabytes("Embolens FRACTIONAL", lambda path: ours(case, path, SegType.FRACTIONAL)),
            megabytes("highdicom BINARY", lambda path: by_highdicom(headers, case.numbers, path)),
            megabytes("dcmqi BINARY", by_dcmqi(case, directory)),
            megabytes(
                "highdicom LABELMAP JPEG-LS",
                lambda path: by_highdicom(headers, case.numbers, path, SegType.LABELMAP, JPEGLSLossless),
            ),
        ),
    )


_LOAD = (
    "import pickle, sys; from benchmarks.seg_writing import *; case, headers = pickle.load(open(sys.argv[1], 'rb'))\n"
)


def _memory(case: Case, headers: list[pydicom.Dataset], directory: Path) -> Row:
    """Of what the writing adds to a process that holds the series and the masks."""
    given = directory / "given.pickle"
    given.write_bytes(pickle.dumps((case, headers)))
    arguments = [str(given), str(directory / "peak.dcm")]
    before = peak_memory_mb(_LOAD, arguments)
    mine = peak_memory_mb(_LOAD + "ours(case, Path(sys.argv[2]))", arguments)
    theirs = peak_memory_mb(_LOAD + "by_highdicom(headers, case.numbers, Path(sys.argv[2]))", arguments)
    return Row(
        what="peak memory of the writing, BINARY, 10 segments",
        unit="MB",
        higher_is_better=False,
        ours=Figure(name="Embolens", samples=(max(1.0, mine - before),)),
        others=(Figure(name="highdicom", samples=(max(1.0, theirs - before),)),),
        floor=Floor(value=case.numbers.nbytes / 1e6, why="the label map itself"),
    )


def _growths(full: Case, rounds: int, directory: Path) -> tuple[Growth, ...]:
    by_slices = {count: case_of(full.files[:count], 10) for count in (100, 200)} | {400: full}
    by_segments = {
        count: Case(full.files, full.source, made_result(full.source.volume, count)) for count in (5, 10, 50)
    }
    path = directory / "growth.dcm"
    return tuple(
        Growth(
            what=f"SEG, BINARY, by {size}",
            size=size,
            unit="s",
            points=tuple(
                (float(count), figure.median)
                for count, figure in zip(
                    cases,
                    side_by_side(
                        {f"{count} {size}": seconds(partial(ours, case, path)) for count, case in cases.items()},
                        rounds=rounds,
                    ).values(),
                    strict=True,
                )
            ),
        )
        for size, cases in (("slices", by_slices), ("segments", by_segments))
    )

"""What an export holds, and what it does not hold any more."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from imaging.errors import InputError
from services.deidentification.basic_profile import Treatment, table, treatment_of
from services.deidentification.cleaning import CleaningOptions
from services.deidentification.exporter import export_files
from services.deidentification.pseudonyms import Pseudonyms
from services.dicom.result_files import write_results
from services.dicom.series_reader import read_series
from tests.services.dicom.checked_objects import dcentvfy_errors, dciodvfy_errors, dsrdump
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import IDENTITY, counting_volume, edit, made_result, written_series

# Each value of a text VR holds one of these, and none of them may be left. UIDs are searched for by their root.
MARKER, UID_ROOT = "QZXMARKER", "1.2.826.0.4711"
DATE, TIME, NUMBER = "19630215", "112233.447", "471147"
MARKERS = (MARKER, UID_ROOT, DATE, TIME, NUMBER)
_MARKED: dict[str, Any] = {
    **dict.fromkeys(("LO", "LT", "SH", "ST", "UC", "UT"), MARKER),
    "AE": MARKER,
    "CS": MARKER,
    "PN": f"{MARKER}^PERSON",
    "UR": f"http://x/{MARKER}",
    "DA": DATE,
    "TM": TIME,
    "DT": DATE + TIME,
    "AS": "077Y",
    "DS": NUMBER,
    "IS": NUMBER,
    "UI": f"{UID_ROOT}.9",
    **dict.fromkeys(("OB", "OW", "UN", "OF", "OD", "OL", "OV"), MARKER.encode() * 8),
    **dict.fromkeys(("US", "SS", "UL", "SL", "FL", "FD"), 4711),
    "AT": 0x00100010,
}
# Of an image and its pixels: filled they would make it another kind of object.
_OF_THE_OBJECT = {Tag(0x0008, 0x0018), Tag(0x0020, 0x000D), Tag(0x0020, 0x000E), Tag(0x0020, 0x0052)}


def of_the_table() -> list[int]:
    """Every tag that a data set can hold: no file meta, no commands."""
    return sorted(tag for tag in table() if tag >> 16 not in (0x0000, 0x0002, 0x0004))


def mark(dataset: Dataset, *, depth: int = 1) -> None:
    """Fill every attribute of the table, inside its sequences too, and private blocks."""
    for number in of_the_table():
        tag = Tag(number)
        if (tag in _OF_THE_OBJECT and depth == 1) or tag == Tag("ContentSequence"):
            continue
        try:
            vr = dictionary_VR(tag).split(" or ")[0]
        except KeyError:  # newer than pydicom's dictionary
            vr = "LO"
        if vr == "SQ":
            if depth == 0:
                continue
            items = Sequence([Dataset()])
            mark(items[0], depth=depth - 1)
            if table()[number] is not Treatment.CLEAN_ITEMS:
                items[0].CodeValue, items[0].CodingSchemeDesignator, items[0].CodeMeaning = MARKER, "99LOCAL", MARKER
            dataset[tag] = DataElement(tag, "SQ", items)
        else:
            dataset[tag] = DataElement(tag, vr, _MARKED[vr])
    block = dataset.private_block(0x0009, f"{MARKER} CREATOR", create=True)
    block.add_new(0x01, "LO", MARKER)
    block.add_new(0x02, "SQ", Sequence([_item_with_a_name()]))
    block.add_new(0x03, "UN", MARKER.encode())
    dataset.add_new(0x50000010, "US", 1)
    dataset.add_new(0x60000022, "LO", MARKER)
    dataset.add_new(0x60004000, "LT", MARKER)


def _item_with_a_name() -> Dataset:
    item = Dataset()
    item.PatientName = MARKER
    return item


def elements(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


@pytest.fixture
def study(tmp_path: Path) -> list[Path]:
    """A CT series, and SEG, SR, key images and report of it."""
    series = written_series(tmp_path / "series")
    source = read_series(series)
    write_results(source, made_result(source.volume), tmp_path / "result", IDENTITY)
    return [*series, *sorted((tmp_path / "result").glob("*.dcm"))]


def exported(study: list[Path], target: Path, **options: Any) -> list[Path]:
    export_files(study, target, Pseudonyms(b"secret"), CleaningOptions(**options))
    return sorted(target.rglob("*.dcm"))


def by_modality(files: list[Path], modality: str) -> list[FileDataset]:
    return [one for one in map(dcmread, files) if one.Modality == modality]


@pytest.mark.fault(
    "privacy",
    "every attribute of PS3.15 Table E.1-1 filled with a marker, in sequences and beside private blocks",
    "no byte of an exported CT, SEG or SR holds a marker",
)
@pytest.mark.parametrize("modality", ["CT", "SEG", "SR"])
@pytest.mark.parametrize("transfer_syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_no_marked_value_is_left_anywhere(
    modality: str, transfer_syntax: str, study: list[Path], tmp_path: Path
) -> None:
    path = next(path for path in study if dcmread(path, stop_before_pixels=True).Modality == modality)
    dataset = dcmread(path)
    mark(dataset)
    for item in dataset.get("ContentSequence", []):
        mark(item, depth=0)
    dataset.file_meta.SourceApplicationEntityTitle = MARKER
    dataset.file_meta.PrivateInformationCreatorUID = f"{UID_ROOT}.8"
    dataset.file_meta.PrivateInformation = MARKER.encode()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.preamble = MARKER.encode().ljust(128, b"\0")
    marked = tmp_path / "marked.dcm"
    dataset.save_as(marked, enforce_file_format=True)
    assert all(marker.encode() in marked.read_bytes() for marker in MARKERS)
    (file,) = exported([marked], tmp_path / "export")
    content = file.read_bytes()
    assert [marker for marker in MARKERS if marker.encode() in content] == []
    for element in elements(dcmread(file)):
        assert not element.tag.is_private
        assert element.VR not in ("US", "SS", "UL", "SL", "FL", "FD") or 4711 not in np.atleast_1d(element.value)
        assert treatment_of(element.tag) is not Treatment.REMOVE or element.tag == Tag("PatientName")
    assert MARKER not in str(file.relative_to(tmp_path))


def test_what_was_exported_is_valid_and_fits_together(study: list[Path], tmp_path: Path) -> None:
    before = {dcmread(path).Modality: dciodvfy_errors(path) for path in study}
    files = exported(study, tmp_path / "export")
    kinds = [dcmread(path).Modality for path in files]
    assert sorted(set(kinds)) == ["CT", "SEG", "SR"]  # no key images, no report
    for path, kind in zip(files, kinds, strict=True):
        assert [error for error in dciodvfy_errors(path) if error not in before[kind]] == []
    assert dcentvfy_errors(files) == []
    dsrdump(next(path for path, kind in zip(files, kinds, strict=True) if kind == "SR"))

    series = read_series([path for path, kind in zip(files, kinds, strict=True) if kind == "CT"])
    segmentation = highdicom.seg.Segmentation.from_dataset(by_modality(files, "SEG")[0])
    images = {str(one.SOPInstanceUID) for one in by_modality(files, "CT")}
    referenced = {sop for _, _, sop in segmentation.get_source_image_uids()}
    assert referenced <= images
    assert referenced
    assert segmentation.FrameOfReferenceUID == by_modality(files, "CT")[0].FrameOfReferenceUID
    assert series.volume.shape_zyx == counting_volume().shape_zyx
    report = highdicom.sr.srread(next(path for path, kind in zip(files, kinds, strict=True) if kind == "SR"))
    in_report = {str(e.value) for e in elements(report) if e.tag == Tag("ReferencedSOPInstanceUID")}
    assert in_report
    assert in_report <= images | {str(segmentation.SOPInstanceUID)}
    tracked = {str(item.TrackingUID) for item in segmentation.SegmentSequence if "TrackingUID" in item}
    assert tracked & {str(e.value) for e in elements(report) if e.tag == Tag("UID")}


def test_the_objects_say_how_they_were_de_identified(study: list[Path], tmp_path: Path) -> None:
    for options, codes, dates in (
        ({}, ["113100", "113104"], "REMOVED"),
        ({"modified_dates": True, "retain_uids": True}, ["113100", "113104", "113107", "113110"], "MODIFIED"),
    ):
        for path in exported(study, tmp_path / dates, **options):
            one = dcmread(path)
            assert one.PatientIdentityRemoved == "YES"
            assert [item.CodeValue for item in one.DeidentificationMethodCodeSequence] == codes
            assert one.LongitudinalTemporalInformationModified == dates
            assert one.PatientID == one.PatientName
            assert one.PatientID.startswith("ANON")


def test_uids_are_new_ones_or_stay_with_the_option(study: list[Path], tmp_path: Path) -> None:
    old = {str(dcmread(path).SOPInstanceUID) for path in study}
    new = {str(dcmread(path).SOPInstanceUID) for path in exported(study, tmp_path / "new")}
    same = {str(dcmread(path).SOPInstanceUID) for path in exported(study, tmp_path / "same", retain_uids=True)}
    assert not new & old
    assert same < old


def test_moved_dates_keep_their_distance(study: list[Path], tmp_path: Path) -> None:
    def set_dates(one: FileDataset) -> None:
        one.StudyDate, one.AcquisitionDateTime, one.PatientBirthDate = "20240228", "20240301081500.5", "19630215"
        one.AcquisitionTime = "081500.5"
        one.add_new("SeriesTime", "TM", MARKER)  # no time at all
        one.add_new("SeriesDate", "DA", f"20240228{MARKER}")

    edit(study[0], set_dates)
    (file,) = exported(study[:1], tmp_path / "export", modified_dates=True)
    moved = dcmread(file)
    assert moved.StudyDate != "20240228"
    first, second = (np.datetime64(f"{t[:4]}-{t[4:6]}-{t[6:8]}") for t in (moved.StudyDate, moved.AcquisitionDateTime))
    assert second - first == np.timedelta64(2, "D")  # 2024 has a 29 February
    assert moved.AcquisitionDateTime.endswith("081500.5")
    assert moved.AcquisitionTime == "081500.5"
    assert moved.PatientBirthDate == ""
    assert MARKER.encode() not in file.read_bytes()


def test_without_the_secret_two_exports_have_nothing_in_common(study: list[Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_files(study[:1], tmp_path / name, Pseudonyms(), CleaningOptions())
    one, two = (dcmread(next((tmp_path / name).rglob("*.dcm"))) for name in ("one", "two"))
    assert one.PatientID != two.PatientID
    assert one.StudyInstanceUID != two.StudyInstanceUID


def test_a_zip_holds_the_same_files(study: list[Path], tmp_path: Path) -> None:
    files = exported(study, tmp_path / "export")
    exported(study, tmp_path / "export.zip")
    with zipfile.ZipFile(tmp_path / "export.zip") as archive:
        assert sorted(archive.namelist()) == [str(path.relative_to(tmp_path / "export")) for path in files]


@pytest.mark.fault("privacy", "an image with annotation burnt in among the files", "nothing is exported at all")
def test_burned_in_annotation_is_refused_unless_told(study: list[Path], tmp_path: Path) -> None:
    edit(study[2], lambda one: setattr(one, "BurnedInAnnotation", "YES"))
    with pytest.raises(InputError, match="burnt into") as raised:
        exported(study, tmp_path / "export")
    assert raised.value.code == "export.burned_in"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result", "series"]
    export_files(study, tmp_path / "export", Pseudonyms(), CleaningOptions(), allow_burned_in=True)


def test_what_is_there_already_is_not_touched(study: list[Path], tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    with pytest.raises(InputError, match="there already"):
        exported(study, tmp_path / "export")


def test_an_enhanced_ct_keeps_its_geometry_and_is_as_valid_as_before(tmp_path: Path) -> None:
    volume = counting_volume()
    path = written_multi_frame(volume, tmp_path / "enhanced.dcm", frame_order=range(volume.shape_zyx[0]))

    def name_somebody(one: FileDataset) -> None:
        content = one.PerFrameFunctionalGroupsSequence[0].FrameContentSequence = Sequence([Dataset()])
        content[0].FrameComments, content[0].FrameAcquisitionDateTime = MARKER, DATE + TIME

    edit(path, name_somebody)
    (file,) = exported([path], tmp_path / "export")
    assert not any(marker.encode() in file.read_bytes() for marker in MARKERS)
    assert set(dciodvfy_errors(file)) <= set(dciodvfy_errors(path))
    np.testing.assert_array_equal(read_series([file]).volume.hu, volume.hu)


@pytest.mark.parametrize("transfer_syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"])
def test_compressed_pixels_come_through_as_they_are(transfer_syntax: str, study: list[Path], tmp_path: Path) -> None:
    one = dcmread(study[0])
    pixels = one.pixel_array
    if transfer_syntax == "1.2.840.10008.1.2.5":
        one.compress(transfer_syntax, generate_instance_uid=False)
    one.file_meta.TransferSyntaxUID = transfer_syntax
    one.save_as(tmp_path / "compressed.dcm")
    (file,) = exported([tmp_path / "compressed.dcm"], tmp_path / "export")
    clean = dcmread(file)
    assert clean.file_meta.TransferSyntaxUID == transfer_syntax
    np.testing.assert_array_equal(clean.pixel_array, pixels)

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import InputError, NotAnalysable
from services.dicom.input_reader import read_input
from services.dicom.seg_writer import write_seg
from services.dicom.series_reader import read_series
from tests.services.dicom.made_series import IDENTITY, counting_volume, edit, made_result, written_series
from tests.services.dicom.test_nifti_reader import counting_nifti


def test_a_folder_its_files_and_a_nifti_of_it_are_the_same_volume(tmp_path: Path) -> None:
    paths = written_series(tmp_path / "study" / "series")
    nifti = counting_nifti(tmp_path / "ct.nii.gz")
    for way in (tmp_path / "study", paths, nifti, [nifti]):
        volume = read_input(way).volume
        assert (volume.hu == counting_volume().hu).all()
        assert volume.affine_lps == pytest.approx(counting_volume().affine_lps, abs=1e-6)


def test_an_earlier_result_in_the_folder_is_left_out_with_a_warning(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path))
    write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY)
    again = read_input(tmp_path)
    assert again.content_digest() == source.content_digest()
    assert [reason.code for reason in again.reasons] == ["input.other_objects_ignored"]


@pytest.mark.parametrize(
    ("keyword", "code"), [("PatientID", "input.multiple_patients"), ("SeriesInstanceUID", "input.multiple_series")]
)
def test_two_patients_or_two_ct_series_are_refused(tmp_path: Path, keyword: str, code: str) -> None:
    written_series(tmp_path / "first")
    for path in written_series(tmp_path / "second"):
        edit(path, lambda dataset: setattr(dataset, keyword, "1.2.3"))
    with pytest.raises(NotAnalysable) as refusal:
        read_input(tmp_path)
    assert refusal.value.code == code


def test_nothing_at_all_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no files"):
        read_input(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_input(tmp_path / "absent")

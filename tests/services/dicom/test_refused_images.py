from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from services.dicom.ct_series_writer import write_ct_series
from services.dicom.refused_images import refused_images
from tests.services.dicom.made_series import counting_volume, edit, written_series


def test_every_instance_is_there_once_whatever_lies_beside_it(tmp_path: Path) -> None:
    files = written_series(tmp_path / "series")
    (tmp_path / "notes.txt").write_text("exported by the viewer")
    images = refused_images([*files, files[0], tmp_path / "notes.txt"])
    uids = {pydicom.dcmread(file).SOPInstanceUID for file in files}
    assert {image.SOPInstanceUID for image in images} == uids
    assert len(images) == len(files)
    assert [image.SOPInstanceUID for image in refused_images(files[::-1])] == [one.SOPInstanceUID for one in images]


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_images_of_two_patients_or_studies_belong_to_no_report(tmp_path: Path, keyword: str) -> None:
    files = written_series(tmp_path / "series")
    edit(files[0], lambda dataset: setattr(dataset, keyword, "2.25.1"))
    assert refused_images(files) == []


def test_several_series_of_a_study_are_referred_to_together(tmp_path: Path) -> None:
    files = [
        file
        for number in (1, 2)
        for file in write_ct_series(
            counting_volume(),
            tmp_path / str(number),
            patient_id="P1",
            patient_name="Phantom^One",
            series_number=number,
        )
    ]
    assert len(refused_images(files)) == len(files)


def test_a_patient_whose_identity_was_removed_stays_so(tmp_path: Path) -> None:
    files = written_series(tmp_path / "series")
    for file in files:
        edit(file, lambda dataset: setattr(dataset, "PatientIdentityRemoved", "YES"))
    image = refused_images(files)[0]
    assert (image.PatientIdentityRemoved, image.DeidentificationMethod) == ("YES", "as of the source images")


def test_an_image_without_uids_cannot_be_referred_to(tmp_path: Path) -> None:
    files = written_series(tmp_path / "series")
    edit(files[0], lambda dataset: setattr(dataset, "SeriesInstanceUID", ""))
    assert len(refused_images(files)) == len(files) - 1
    assert refused_images([]) == []

"""docs/inputs.md says what is made of each real file; here it is held to that."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from imaging.errors import InputError, NotAnalysable
from imaging.geometry import to_canonical
from services.dicom import reason_codes
from services.dicom.headers import read_header
from services.dicom.image_plane import planes_of
from services.dicom.input_reader import read_input
from services.dicom.pixel_reader import read_hu
from services.ingest.upload import inspect_upload
from tests.services.dicom.made_series import REAL_DATA

PAGE = (Path(__file__).parents[3] / "docs/inputs.md").read_text(encoding="utf-8")
FOLDERS = ("hard_dicom", "nifti_nrrd")
# | `hard_dicom/a.zip`, 1 to 14 | what it is | what comes of it |
_ROW = re.compile(
    r"^\| `((?:hard_dicom|nifti_nrrd)/[^`]+)`(?:, (\d+) to (\d+))? \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE
)
ROWS = [match.groups() for match in _ROW.finditer(PAGE)]


def outcome_of(files: Sequence[Path]) -> str:
    """What a client gets who uploads these files, in the words of the page."""
    try:
        contents = inspect_upload(files)
        source = read_input(contents.files)
    except (InputError, NotAnalysable) as refusal:
        return f"refused: `{refusal.code}`"
    volume, _ = to_canonical(source.volume)
    extents = " x ".join(str(n) for n in volume.shape_zyx[::-1])
    spacing = " x ".join(f"{step:.3f}" for step in volume.spacing_zyx_mm[::-1])
    warnings = [reason.code for reason in (*contents.warnings, *source.reasons)]
    return f"{extents}, {spacing} mm" + "".join(f", `{code}`" for code in warnings)


def hu_of(file: Path) -> str:
    """The range of HU over the planes of one file."""
    planes = [read_hu(plane) for plane in planes_of(file, read_header(file))]
    return f"{min(int(hu.min()) for hu in planes)} to {max(int(hu.max()) for hu in planes)} HU"


def test_every_code_of_this_package_is_explained() -> None:
    codes = [value for name, value in vars(reason_codes).items() if name.isupper()]
    assert [code for code in codes if f"| `{code}` |" not in PAGE] == []


@pytest.mark.skipif(not (REAL_DATA / "hard_dicom").is_dir(), reason="../shared/data/hard_dicom is absent")
@pytest.mark.parametrize(("pattern", "first", "last", "what", "said"), ROWS, ids=[f"{r[0]} {r[1] or ''}" for r in ROWS])
def test_what_the_page_says_of_a_real_file_is_so(
    pattern: str, first: str | None, last: str | None, what: str, said: str
) -> None:
    paths = sorted(REAL_DATA.glob(pattern))
    assert paths
    for path in paths:
        if said.endswith(" HU"):
            assert hu_of(path) == said
        elif path.suffix == ".zip":
            with TemporaryDirectory() as directory, zipfile.ZipFile(path) as archive:
                archive.extractall(directory)
                files = sorted(file for file in Path(directory).rglob("*") if file.is_file())
                if first and last:
                    files = files[int(first) - 1 : int(last)]
                assert outcome_of(files) == said
        else:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            assert outcome_of(files) == said


@pytest.mark.skipif(not (REAL_DATA / "hard_dicom").is_dir(), reason="../shared/data/hard_dicom is absent")
def test_no_real_file_is_left_out() -> None:
    told = {file for pattern, *_ in ROWS for path in REAL_DATA.glob(pattern) for file in (path, *path.glob("*"))}
    files = {path for folder in FOLDERS for path in (REAL_DATA / folder).rglob("*") if path.is_file()}
    assert files - told == set()

"""One process of fuzzing: damages seeds and hands them to the readers until its time is over or something happens.

python -m tests.fuzzing.batch SEEDS WORK KIND SEED FIRST SECONDS

The number of the case at work stands in WORK/case before it begins, so that whoever waits knows it after a crash; the
damaged files lie in WORK/input. A finding is written to WORK/finding and ends the process with status 3.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from python_multipart.multipart import parse_options_header

from imaging.errors import EmbolensError
from services.dicom.input_reader import read_input
from services.dicom.reference_headers import reference_headers
from services.dicom.refused_images import refused_images
from services.dicom.seg_reader import is_seg, read_seg
from services.dicom.series_reader import SourceSeries
from services.dicom.series_summary import inspect_headers
from services.ingest.upload import inspect_upload, unpack_uploads
from services.multipart import MultipartReader
from tests.fuzzing.damage import damaged

FOUND_SOMETHING = 3
MORE_MEMORY_BYTES = 1 << 30  # than the process has when it begins: no case here holds a megabyte
# Kinds of which every case is a finding, so that a test can see each being seen.
TROUBLES: dict[str, Callable[[], object]] = {
    "raises": lambda: 1 // 0,
    "crashes": os.abort,
    "allocates": lambda: bytearray(2 * MORE_MEMORY_BYTES),
    "hangs": lambda: time.sleep(60),
}


def read(kind: str, files: list[Path]) -> None:
    """All that reads such files; answers are of no interest here, only that there is one of ours."""
    if kind in TROUBLES:
        TROUBLES[kind]()
    if kind == "multipart":
        read_multipart(files[0].read_bytes())
        return
    if kind == "upload":
        files = unpack_uploads(files, max_bytes=1 << 26, max_files=100)
        files = list(inspect_upload(files).files)
    elif kind == "dicom":
        inspect_headers(files)
    elif kind == "seg":
        is_seg(files[0])
        read_seg(files[0])
        return
    try:
        source = read_input(files)
    except EmbolensError:
        refused_images(files)  # for the answer that says so
        raise
    if isinstance(source, SourceSeries):
        reference_headers(source)


def read_multipart(body: bytes) -> None:
    """As a request brings it, in pieces, its first line the boundary."""

    class Dropped:
        def begin(self, headers: Mapping[str, str]) -> None:
            parse_options_header(headers.get("content-disposition", ""))

        def write(self, piece: memoryview) -> None:
            pass

        def end(self) -> None:
            pass

    reader = MultipartReader(body.split(b"\r\n", 1)[0].removeprefix(b"--"), Dropped())
    for at in range(0, len(body), 37):
        reader.feed(body[at : at + 37])
    reader.end()


def run(seeds: Path, work: Path, kind: str, seed: str, first: int, seconds: float) -> int:
    started = time.monotonic()
    case = first
    while time.monotonic() < started + seconds:
        (work / "case").write_text(str(case))
        files = damaged_case(seeds, work, kind, seed, case)
        if (trouble := trouble_with(kind, files)) is not None:
            (work / "finding").write_text(trouble)
            return FOUND_SOMETHING
        case += 1
    (work / "case").write_text(str(case))
    return 0


def damaged_case(seeds: Path, work: Path, kind: str, seed: str, case: int) -> list[Path]:
    chance = random.Random(f"{kind} {seed} {case}")
    whole = sorted(chance.choice(sorted((seeds / kind).iterdir())).iterdir())
    shutil.rmtree(work / "input", ignore_errors=True)
    (work / "input").mkdir()
    same_everywhere = chance.random() < 0.4  # as a scanner does it: the readers compare the files of a series
    one = chance.randrange(len(whole))
    mishap = chance.randrange(1 << 60)
    files = []
    for index, file in enumerate(whole):
        content = file.read_bytes()
        if same_everywhere or index == one:
            content = damaged(content, random.Random(mishap))
        files.append(work / "input" / file.name)
        files[-1].write_bytes(content)
    return files


def trouble_with(kind: str, files: list[Path]) -> str | None:
    """None where the answer was a volume or an error of ours with a code."""
    try:
        read(kind, files)
    except EmbolensError as error:
        return None if error.code and error.message else f"an error without a word: {error!r}"
    except (Exception, MemoryError):  # noqa: BLE001  this is what is looked for
        return traceback.format_exc()
    return None


def main() -> int:
    seeds, work, kind, seed, first, seconds = sys.argv[1:]
    faulthandler.enable()
    tempfile.tempdir = work
    _limit_memory()
    return run(Path(seeds), Path(work), kind, seed, int(first), float(seconds))


def _limit_memory() -> None:
    import gdcm  # noqa: F401  what readers load on demand counts before, not as theirs
    import highdicom  # noqa: F401
    import openjpeg  # noqa: F401
    import SimpleITK  # noqa: F401

    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + MORE_MEMORY_BYTES,) * 2)


if __name__ == "__main__":
    sys.exit(main())

"""A conversion in a process of its own: decoders read what strangers sent, and none of them may take the caller down.

The request comes in as JSON on standard input, the answer goes out as JSON on standard output: the file made, or the
error. A process that ends without an answer crashed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaging.errors import EmbolensError, InputError, InputTooLarge, NotAnalysable, Reason, StorageFull
from services.dicom.conversion_options import ConversionOptions, Drawn, LabelSegOptions
from services.dicom.seg_options import SegType
from services.parent_death import die_with_parent

COMMAND = (sys.executable, "-m", "services.dicom.conversion_process")
_ERRORS = {error.__name__: error for error in (InputError, InputTooLarge, StorageFull)}


@dataclass(frozen=True, slots=True)
class Converted:
    """The file made."""

    path: Path
    media_type: str
    warnings: tuple[Reason, ...]


def request_of(files: list[Path], directory: Path, options: ConversionOptions, *, max_memory_bytes: int) -> bytes:
    """What `COMMAND` reads."""
    return json.dumps(
        {
            "asked_by_pid": os.getpid(),
            "files": [str(file) for file in files],
            "directory": str(directory),
            "max_memory_bytes": max_memory_bytes,
            "rounded": options.rounded,
            "resample": options.resample,
            "only_segment": options.only_segment,
            "patient_id": options.patient_id,
            "patient_name": options.patient_name,
            "seg_type": options.seg.type,
            "drawn": options.seg.drawn,
            "algorithm": options.seg.algorithm,
        }
    ).encode()


def converted(answer: bytes) -> Converted:
    """What `COMMAND` answered.

    Raises:
        EmbolensError: the one that the conversion raised; InputError where the process ended without an answer.
    """
    try:
        said = json.loads(answer)
    except ValueError:
        raise InputError(
            "the conversion ended before its answer: the files made a decoder crash",
            code="input.decoder_crashed",
            remedy="send files of another export",
        ) from None
    reasons = tuple(Reason(**reason) for reason in said["reasons"])
    if "path" in said:
        return Converted(Path(said["path"]), said["media_type"], reasons)
    if said["error"] == NotAnalysable.__name__:
        raise NotAnalysable(reasons)
    raise _ERRORS.get(said["error"], EmbolensError)(said["message"], code=said["code"], remedy=said["remedy"])


def main() -> None:
    request = json.load(sys.stdin)
    die_with_parent(request["asked_by_pid"], signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (request["max_memory_bytes"],) * 2)
    options = ConversionOptions(
        rounded=request["rounded"],
        resample=request["resample"],
        only_segment=request["only_segment"],
        patient_id=request["patient_id"],
        patient_name=request["patient_name"],
        seg=LabelSegOptions(SegType(request["seg_type"]), Drawn(request["drawn"]), request["algorithm"]),
    )
    json.dump(_answer([Path(file) for file in request["files"]], Path(request["directory"]), options), sys.stdout)


def _answer(files: list[Path], directory: Path, options: ConversionOptions) -> dict[str, Any]:
    from services.dicom.conversion_by_content import convert_by_content  # here: whoever waits need not load it

    try:
        made = convert_by_content(files, directory, options)
    except MemoryError:
        return _error(InputTooLarge("the conversion needs more memory than it may have"))
    except EmbolensError as error:
        return _error(error)
    return {
        "path": str(made.path),
        "media_type": made.media_type,
        "reasons": [reason.to_dict() for reason in made.warnings],
    }


def _error(error: EmbolensError) -> dict[str, Any]:
    reasons = error.reasons if isinstance(error, NotAnalysable) else ()
    return {
        "error": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "remedy": error.remedy,
        "reasons": [reason.to_dict() for reason in reasons],
    }


if __name__ == "__main__":
    main()

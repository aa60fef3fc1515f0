"""Compressed pixels decoded in processes of their own, which stay for the next image.

Decoders are C++ that other people's damaged files reach: GDCM ends its process over some broken JPEG. Such an image
costs its decoder and is answered as unreadable; whoever asked lives on.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

LONGEST_S = 120.0  # for one image
MAX_MEMORY_BYTES = 8 << 30  # address space
_PIPE_BYTES = 1 << 20  # a slice of 512 x 512 goes through at once; what an unprivileged process may have
MOST_AT_ONCE = min(4, os.cpu_count() or 1)  # who asks for more waits


def decoded(path: Path, frame_index: int | None) -> NDArray[Any]:
    """Stored values (row, column) of one image, as `pixel_reader.stored_values` gives them.

    Raises:
        ValueError: what the decoder said. RuntimeError: it ended.
        OSError: the file system refuses.
    """
    with _at_once:
        values = _by_idle_decoder(path, frame_index)
        if values is None:
            values = _asked(_Decoder(), path, frame_index)
    if isinstance(values, Exception):
        raise values
    return values


def _by_idle_decoder(path: Path, frame_index: int | None) -> NDArray[Any] | Exception | None:
    """None where none is idle, or where it ended: maybe while it was idle, which says nothing about the image."""
    with contextlib.suppress(queue.Empty, RuntimeError):
        return _asked(_idle.get_nowait(), path, frame_index)
    return None


def _asked(decoder: _Decoder, path: Path, frame_index: int | None) -> NDArray[Any] | Exception:
    values = decoder.ask(path, frame_index)
    _idle.put(decoder)  # not where it ended
    return values


class _Decoder:
    """One process: a line of JSON in; a line of JSON and the values, or the error, out."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.dicom.decoder_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            pipesize=_PIPE_BYTES,
        )

    def ask(self, path: Path, frame_index: int | None) -> NDArray[Any] | Exception:
        """Values, or the error that it answered with. Raises RuntimeError where it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        too_long = threading.Timer(LONGEST_S, self._process.kill)
        too_long.start()
        try:
            self._process.stdin.write(json.dumps([str(path.absolute()), frame_index]).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            content = self._process.stdout.read(answer.get("bytes", 0))
            if len(content) < answer.get("bytes", 0):
                raise ValueError("it ended in the middle of its answer")
        except (OSError, ValueError) as error:
            self.end()
            raise RuntimeError("the decoder crashed or took too long") from error
        finally:
            too_long.cancel()
        if "errno" in answer:
            return OSError(answer["errno"], os.strerror(answer["errno"]))
        if "error" in answer:
            return ValueError(answer["error"])
        return np.frombuffer(content, answer["dtype"]).reshape(answer["shape"])

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()


_idle: queue.LifoQueue[_Decoder] = queue.LifoQueue()
_at_once = threading.BoundedSemaphore(MOST_AT_ONCE)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Until whoever asks is gone, and the requests with them."""
    from services.dicom.headers import MALFORMED
    from services.dicom.pixel_reader import stored_values

    for line in requests:
        path, frame_index = json.loads(line)
        content = b""
        try:
            values = np.ascontiguousarray(stored_values(Path(path), frame_index))
            content = values.tobytes()
            said: dict[str, Any] = {"dtype": values.dtype.str, "shape": values.shape, "bytes": len(content)}
        except OSError as error:
            said = {"errno": error.errno} if error.errno is not None else {"error": str(error)}
        except (*MALFORMED, RuntimeError, MemoryError, ImportError) as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said).encode() + b"\n" + content)
        answers.flush()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > MAX_MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # libraries that print must not write into the answers
        _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()

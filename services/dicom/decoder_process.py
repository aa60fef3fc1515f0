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
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

LONGEST_S = 120.0  # for one image
MAX_MEMORY_BYTES = 8 << 30  # address space
_KEPT_BYTES = 8 << 20  # of memory that the values of an image were handed over in
# A decoder keeps what it has freed, for the next image: taking memory from the system anew takes as long as decoding.
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": f"{4 << 20}", "MALLOC_TRIM_THRESHOLD_": f"{32 << 20}"}
MOST_AT_ONCE = min(4, os.cpu_count() or 1)  # who asks for more waits


def decoded(path: Path, frame_index: int | None, *, out: NDArray[np.int16] | None = None) -> NDArray[Any]:
    """Stored values (row, column) of one image, as `pixel_reader.stored_values` gives them.

    Args:
        out: contiguous; what is returned lies there where it is of this shape and 16 bits.

    Raises:
        ValueError: what the decoder said. RuntimeError: it ended.
        OSError: the file system refuses.
    """
    with _at_once:
        values = _by_idle_decoder(path, frame_index, out)
        if values is None:
            values = _asked(_Decoder(), path, frame_index, out)
    if isinstance(values, Exception):
        raise values
    return values


def _by_idle_decoder(
    path: Path, frame_index: int | None, out: NDArray[np.int16] | None
) -> NDArray[Any] | Exception | None:
    """None where none is idle, or where it ended: maybe while it was idle, which says nothing about the image."""
    with contextlib.suppress(queue.Empty, RuntimeError):
        return _asked(_idle.get_nowait(), path, frame_index, out)
    return None


def _asked(
    decoder: _Decoder, path: Path, frame_index: int | None, out: NDArray[np.int16] | None
) -> NDArray[Any] | Exception:
    values = decoder.ask(path, frame_index, out)
    _idle.put(decoder)  # not where it ended
    return values


class _Decoder:
    """One process: a line of JSON in, one out; the values lie in a file in memory that both have open."""

    def __init__(self) -> None:
        self._values = os.memfd_create("decoded-values")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.dicom.decoder_process", str(self._values)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _KEEP_FREED_MEMORY | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            bufsize=0,
            pass_fds=[self._values],
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._has_answered = select.poll()
        self._has_answered.register(self._answers, select.POLLIN)

    def ask(
        self, path: Path, frame_index: int | None, out: NDArray[np.int16] | None = None
    ) -> NDArray[Any] | Exception:
        """Values, in `out` where they fit there, or the error that it answered with.

        Raises:
            RuntimeError: it ended, or took too long and was ended.
        """
        try:
            self._requests.write(json.dumps([str(path.absolute()), frame_index]).encode() + b"\n")
            answer = json.loads(self._line())
            if "errno" in answer:
                return OSError(answer["errno"], os.strerror(answer["errno"]))
            if "error" in answer:
                return ValueError(answer["error"])
            values = _room_for(np.dtype(answer["dtype"]), tuple(answer["shape"]), out)
            if values.size and os.preadv(self._values, [values.data], 0) != values.nbytes:
                raise ValueError("it handed over less than it announced")
            if values.nbytes > _KEPT_BYTES:
                os.ftruncate(self._values, 0)
        except (OSError, ValueError) as error:
            self.end()
            raise RuntimeError("the decoder crashed or took too long") from error
        return values

    def _line(self) -> bytes:
        """Raises ValueError where the process ended before, TimeoutError where it took too long."""
        give_up_at = time.monotonic() + LONGEST_S
        line = b""
        while not line.endswith(b"\n"):
            if not self._has_answered.poll(max(0.0, give_up_at - time.monotonic()) * 1000):
                raise TimeoutError
            more = os.read(self._answers.fileno(), 1 << 16)
            if not more:
                raise ValueError("it ended in the middle of its answer")
            line += more
        return line

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()
        os.close(self._values)


def _room_for(dtype: np.dtype[Any], shape: tuple[int, ...], out: NDArray[np.int16] | None) -> NDArray[Any]:
    fits = out is not None and out.shape == shape and dtype in (np.int16, np.uint16)
    return out.view(dtype) if fits and out is not None else np.empty(shape, dtype)


_idle: queue.LifoQueue[_Decoder] = queue.LifoQueue()
_at_once = threading.BoundedSemaphore(MOST_AT_ONCE)


def _serve(requests: BinaryIO, answers: BinaryIO, handed_over: int) -> None:
    """Until whoever asks is gone, and the requests with them."""
    from services.dicom.headers import MALFORMED
    from services.dicom.pixel_reader import stored_values

    for line in requests:
        path, frame_index = json.loads(line)
        try:
            values = np.ascontiguousarray(stored_values(Path(path), frame_index))
            if values.size and os.pwrite(handed_over, values.data, 0) != values.nbytes:
                raise ValueError("the values have not all been handed over")  # what lies there is of an image before
            said: dict[str, Any] = {"dtype": values.dtype.str, "shape": values.shape}
        except OSError as error:
            said = {"errno": error.errno} if error.errno is not None else {"error": str(error)}
        except (*MALFORMED, RuntimeError, MemoryError, ImportError) as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > MAX_MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # libraries that print must not write into the answers
        _serve(sys.stdin.buffer, answers, int(sys.argv[1]))


if __name__ == "__main__":
    main()

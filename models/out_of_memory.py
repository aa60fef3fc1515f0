"""What torch and numpy say when memory runs out, of the GPU or of the machine, as one error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imaging.errors import OutOfMemory

OUT_OF_GPU_MEMORY = "out_of_gpu_memory"
# Torch's allocator, and oneDNN, which does not say why; a network that has been loaded lacks nothing but memory. Then
# OpenVINO's, and the C++ library's.
_ON_THE_CPU = (
    "DefaultCPUAllocator: can't allocate memory",
    "could not create a primitive",
    "Failed to allocate",
    "bad_alloc",
)


@contextmanager
def memory_running_out() -> Iterator[None]:
    """Raises OutOfMemory where what is done within needs more than there is.

    What was taken is free again when the error has been handled, so with less at once it can be tried anew.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:  # of an accelerator alone
        raise OutOfMemory("the GPU has not enough memory for this scan", code=OUT_OF_GPU_MEMORY) from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(said in str(error) for said in _ON_THE_CPU):
            raise
        raise OutOfMemory("the analysis needs more memory than it may have") from error

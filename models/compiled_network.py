"""A network ready to run: by OpenVINO in bf16 where the processor multiplies bf16 matrices, else by torch as it is.

OpenVINO fuses what torch runs one after the other, and keeps activations in cache-sized blocks. Both round to bf16
(torch by autocast), so that neither is nearer to the other's answer than to float32's.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from imaging.errors import ConfigurationError, OutOfMemory
from models.out_of_memory import memory_running_out

log = logging.getLogger(__name__)

_AT_ONCE = 2  # each takes working memory of its own
_SHAPES_KEPT = 6  # compiled programs of one network, the last used ones; each has its own working memory
_OPENVINO_TELEMETRY = "openvino_telemetry"


class InferenceBackend(StrEnum):
    """Who runs the networks; `AUTO` is OpenVINO on a CPU with bf16 instructions, torch on any other and on a GPU."""

    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"


class CompiledNetwork:
    """Called with a tensor it gives the network's answer, float32. Not to be shared between threads.

    Args:
        network: one tensor in, one tensor out, of a size that follows from the input's; in evaluation mode.
        example_shape: the smallest input it takes; any other whose dimensions differ is compiled when it first comes.

    Raises:
        ConfigurationError: OpenVINO is asked for by name and cannot run here.
    """

    def __init__(
        self,
        network: nn.Module,
        example_shape: Sequence[int],
        device: torch.device,
        backend: InferenceBackend = InferenceBackend.AUTO,
    ) -> None:
        self.network = network.eval().to(device)
        self._device = device
        self._bf16 = _has_fast_bf16(device)
        self._image = len(example_shape) == 4
        self._programs: OrderedDict[tuple[int, ...], list[Any]] = OrderedDict()
        self._graph = None
        if _takes_openvino(device, backend):
            try:
                self._graph = _graph(network, example_shape)
            except Exception as error:  # noqa: BLE001  of a foreign compiler; torch runs what it does not understand
                self._fall_back(error)
        if self._graph is None and self._image:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def at_once(self) -> int:
        """Inputs that are best given together: where OpenVINO runs it each has its share of the cores, which takes a
        tenth less time than all of them on one and then on the next."""
        return 1 if self._graph is None else min(_AT_ONCE, torch.get_num_threads())

    @property
    def backend(self) -> InferenceBackend:
        """Who runs it; `AUTO` never."""
        return InferenceBackend.TORCH if self._graph is None else InferenceBackend.OPENVINO

    def __call__(self, x: Tensor) -> Tensor:
        """Raises OutOfMemory where there is too little for an input of this size."""
        with memory_running_out():
            if self._graph is not None:
                try:
                    with memory_running_out():
                        return self._by_openvino(x)
                except OutOfMemory:
                    self._programs.clear()  # what smaller inputs need may be what these hold
                    raise
                except Exception as error:  # noqa: BLE001  as above
                    self._fall_back(error)
            return self._by_torch(x)

    def _by_torch(self, x: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            if self._image:
                x = x.contiguous(memory_format=torch.channels_last)
            answer: Tensor = self.network(x)
        return answer.float()

    def _by_openvino(self, x: Tensor) -> Tensor:
        openvino = _openvino()
        requests = self._program(tuple(x.shape[1:]), min(len(x), self.at_once))
        answer = torch.empty((len(x), *requests[0].get_output_tensor().shape[1:]))
        # Both are read and written where they are.
        sources, targets = (
            [openvino.Tensor(one[None], shared_memory=True) for one in tensor.numpy()]
            for tensor in (x.detach().float().contiguous(), answer)
        )
        for first in range(0, len(x), len(requests)):
            with ExitStack() as all_have_ended:  # whatever one of them raises: those that still run write
                for source, target, request in zip(sources[first:], targets[first:], requests, strict=False):
                    request.set_input_tensor(source)
                    request.set_output_tensor(target)
                    request.start_async()
                    all_have_ended.callback(request.wait)
        return answer

    def _program(self, shape: tuple[int, ...], at_once: int) -> list[Any]:
        """Requests for an input of this very shape, each with its working memory; as many as were wanted at first."""
        if shape in self._programs:
            self._programs.move_to_end(shape)
            return self._programs[shape]
        assert self._graph is not None
        graph = self._graph.clone()
        graph.reshape([1, *shape])
        while len(self._programs) >= _SHAPES_KEPT:
            self._programs.popitem(last=False)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "NUM_STREAMS": at_once,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # another worker's threads would be pinned to the same cores
        }
        program = _core().compile_model(graph, "CPU", settings)
        self._programs[shape] = [program.create_infer_request() for _ in range(at_once)]
        return self._programs[shape]

    def _fall_back(self, error: Exception) -> None:
        log.warning("OpenVINO cannot run %s, torch does: %s", type(self.network).__name__, error)
        self._graph = None
        self._programs.clear()


def _takes_openvino(device: torch.device, backend: InferenceBackend) -> bool:
    match backend:
        case InferenceBackend.TORCH:
            return False
        case InferenceBackend.AUTO:
            return device.type == "cpu" and can_run_openvino()
        case InferenceBackend.OPENVINO:
            if device.type == "cpu" and can_run_openvino():
                return True
            raise ConfigurationError(
                f"OpenVINO cannot run the networks on {device}: it is for CPUs with bf16 instructions",
                code="inference.backend",
                remedy="set EMBOLENS_INFERENCE_BACKEND to auto or torch",
            )


def _has_fast_bf16(device: torch.device) -> bool:
    """bf16 costs time where the processor has no instruction for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _graph(network: nn.Module, example_shape: Sequence[int]) -> Any:
    """The network as OpenVINO's graph, of any input size: batch norms are folded into the convolutions before them."""
    example = torch.zeros(tuple(example_shape))
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # that a check of sizes is not traced
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        return _openvino().convert_model(traced, example_input=example)


@cache
def _openvino() -> Any:
    """The module, without its telemetry, which sends as soon as it is imported and leaves files in the home directory.

    A module that is None cannot be imported; OpenVINO has an empty one of its own for that case.
    """
    sys.modules.setdefault(_OPENVINO_TELEMETRY, None)  # type: ignore[arg-type]
    import openvino

    return openvino


@cache
def _core() -> Any:
    return _openvino().Core()


@cache
def can_run_openvino() -> bool:
    """Whether it is installed, and knows bf16 instructions on this processor."""
    try:
        return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ImportError:
        return False

"""CUDA graphs: a pass is recorded once for each of a few batch sizes, and then replayed with one launch."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from service.inference.device import Precision
from service.inference.runtimes.eager import EagerRuntime
from service.model_spec import ModelSpec
from service.networks.cascade import Carried, Cascade

LADDER = (1, 2, 4, 8, 16, 32, 64)
WARM_UPS = 3  # before a capture: libraries choose their kernels


class CudaRuntime:
    """``network`` on ``device``. It may change the network.

    Each calling thread has its own stream and graphs, so that the copies of one thread overlap with the compute of
    another. A batch is padded to the next recorded size; a larger batch runs operator by operator.
    """

    name = "cuda"

    def __init__(self, network: Cascade, spec: ModelSpec, device: torch.device, precision: Precision) -> None:
        self._eager = EagerRuntime(network, spec, device, precision)
        self._device = device
        self._own = threading.local()
        self._capturing = threading.Lock()

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """See ``Runtime``."""
        logits, *handed_on = self._run(stage, [images, *carried])
        return logits, tuple(handed_on)

    def _run(self, stage: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        def forward(images: Tensor, *carried: Tensor) -> list[Tensor]:
            logits, handed_on = self._eager.run(stage, images, carried)
            return [logits, *handed_on]

        rows = len(inputs[0])
        rung = bisect_left(LADDER, rows)
        graphs = self._own_graphs()
        if rung == len(LADDER):
            return forward(*(tensor.to(self._device) for tensor in inputs))
        key = (stage, LADDER[rung])
        if key not in graphs:
            with self._capturing:
                graphs[key] = _Graph(forward, inputs, LADDER[rung], self._device)
        return graphs[key].replay(inputs)

    def _own_graphs(self) -> dict[tuple[int, int], _Graph]:
        graphs: dict[tuple[int, int], _Graph] | None = getattr(self._own, "graphs", None)
        if graphs is None:  # of this thread alone, as its stream is
            torch.cuda.set_stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]
            graphs = self._own.graphs = {}
        return graphs


class _Graph:
    """One pass, recorded for ``size`` rows, with its input and output memory."""

    def __init__(
        self, forward: Callable[..., list[Tensor]], examples: Sequence[Tensor], size: int, device: torch.device
    ) -> None:
        self._inputs = [_like(example, size, device) for example in examples]
        pixels = examples[0]
        self._pinned = _like(pixels, size, torch.device("cpu")).pin_memory()
        with torch.inference_mode():
            for _ in range(WARM_UPS):
                forward(*self._inputs)
            torch.cuda.current_stream(device).synchronize()
            self._graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.current_stream(device)
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._outputs = forward(*self._inputs)

    @torch.inference_mode()
    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Views of the outputs, with as many rows as the inputs. The next replay overwrites them."""
        rows = len(inputs[0])
        pixels, *features = inputs
        if pixels.device.type == "cpu":
            # The last copy from here may still run: whoever read the last outputs on the host has waited for it.
            self._pinned[:rows].copy_(pixels)
            pixels = self._pinned[:rows]
        for static, given in zip(self._inputs, [pixels, *features], strict=True):
            static[:rows].copy_(given, non_blocking=True)
        self._graph.replay()
        return [output[:rows] for output in self._outputs]


def _like(example: Tensor, rows: int, device: torch.device) -> Tensor:
    """Zeros with ``rows`` rows; shape, type and memory layout of a row are the example's."""
    zeros = torch.zeros((rows, *example.shape[1:]), dtype=example.dtype, device=device)
    return zeros.contiguous(memory_format=torch.channels_last) if zeros.dim() == 4 else zeros

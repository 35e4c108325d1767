"""How fast a machine multiplies matrices, by the runtime and in the precision and threads of a predictor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from service.evaluation.throughput import SECONDS, rate, together
from service.inference.predictor import Predictor

SIZE = 1024
PARTS = 5  # of the time: the fastest counts, since nothing but other work makes one slower


def peak(predictor: Predictor, workers: int, seconds: float = SECONDS) -> float:
    """Multiply-adds per second of products of large matrices, on all workers at once."""
    make = _by_openvino if predictor.runtime == "openvino" else _by_torch

    def work() -> float:
        multiply = make(predictor)
        return SIZE**3 * max(rate(multiply, seconds / PARTS) for _ in range(PARTS))

    return sum(together(workers, predictor.threads, work))


def _by_torch(predictor: Predictor) -> Callable[[], object]:
    dtype: torch.dtype = getattr(torch, predictor.precision)
    a, b = (torch.randn(SIZE, SIZE, device=predictor.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=out)
        out[0, 0].item()  # until it is there

    return multiply


def _by_openvino(predictor: Predictor) -> Callable[[], object]:
    """A product with a matrix of constants, as a layer's is: of eight-bit integers where the predictor's are."""
    import openvino as ov
    from openvino import opset13 as ops

    from service.inference.runtimes.openvino import CORE, config

    random = np.random.default_rng(0)
    a = ops.parameter([SIZE, SIZE], np.float32)
    if predictor.precision == "int8":
        levels = ops.fake_quantize(a, np.float32(-4), np.float32(4), np.float32(-4), np.float32(4), 256)
        weights = ops.constant(random.integers(-128, 128, (SIZE, SIZE), dtype=np.int8))
        b = ops.multiply(ops.convert(weights, np.float32), np.float32(1 / 128))
        product = ops.matmul(levels, b, False, False)
    else:
        product = ops.matmul(a, ops.constant(random.standard_normal((SIZE, SIZE), dtype=np.float32)), False, False)
    compiled = CORE.compile_model(ov.Model([product], [a]), "CPU", config(predictor.precision, predictor.threads))
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(random.standard_normal((SIZE, SIZE), dtype=np.float32)))

    def multiply() -> None:
        request.infer()

    return multiply

"""How fast a machine multiplies matrices, by the runtime and in the precision and threads of a predictor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from service.evaluation.throughput import SECONDS, rate, together
from service.inference.device import Precision
from service.inference.predictor import Predictor

if TYPE_CHECKING:
    import openvino as ov

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
    import openvino as ov

    from service.inference.runtimes.openvino import CORE, config

    given = config(predictor.precision, predictor.threads)
    request = CORE.compile_model(product(SIZE, predictor.precision), "CPU", given).create_infer_request()
    request.set_input_tensor(ov.Tensor(np.random.default_rng(1).standard_normal((SIZE, SIZE), dtype=np.float32)))

    def multiply() -> None:
        request.infer()

    return multiply


def product(size: int, precision: Precision) -> ov.Model:
    """A matrix times one of constants, as in a layer; for int8 of integers, as quantisation writes it."""
    import openvino as ov
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    a = ops.parameter([size, size], np.float32)
    if precision == "int8":
        first = ops.fake_quantize(a, np.float32(-4), np.float32(4), np.float32(-4), np.float32(4), 256)
        integers = ops.constant(random.integers(-128, 128, (size, size), dtype=np.int8))
        second = ops.multiply(ops.convert(integers, np.float32), np.float32(1 / 128))
    else:
        first, second = a, ops.constant(random.standard_normal((size, size), dtype=np.float32))
    return ov.Model([ops.matmul(first, second, False, False)], [a])

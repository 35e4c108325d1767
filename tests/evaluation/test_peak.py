"""The peak is measured by the runtime, in the precision and on the threads of the predictor that it is held against."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from service.evaluation import peak as measured
from service.evaluation.peak import peak

pytestmark = pytest.mark.usefixtures("openvino")

PAIRS = [("eager", "float32"), ("eager", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16"),
         ("openvino", "int8")]  # fmt: skip


@dataclass
class Computes:
    """Of a predictor, what decides how fast it may be."""

    runtime: str
    precision: str
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@pytest.mark.parametrize(("runtime", "precision"), PAIRS)
def test_products_of_every_runtime_and_precision_are_timed(
    monkeypatch: pytest.MonkeyPatch, runtime: str, precision: str
) -> None:
    monkeypatch.setattr(measured, "SIZE", 64)
    assert peak(Computes(runtime, precision), 2, seconds=0.01) > 0  # type: ignore[arg-type]


def test_the_product_of_integers_is_one() -> None:
    from service.inference.runtimes.openvino import CORE, config

    compiled = CORE.compile_model(measured.product(64, "int8"), "CPU", config("int8", 1))
    (kind,) = {
        node.get_rt_info()["runtimePrecision"].value
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].value in ("FullyConnected", "MatMul")
    }
    assert kind in ("i8", "u8")

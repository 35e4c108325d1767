"""How much each optimisation contributes: network time alone, before and after, in interleaved rounds.

    python loadtest/gains.py [--rounds 5] [--out runs/bench/gains.json]

Both passes run on ready-made pixels with 35 % of the images escalated, in one thread a core unless a row says
otherwise; a row's ratio is taken in each round, and quoted as its median with the smallest and the largest.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from openvino import CompiledModel, Model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import service.inference.runtimes.eager as eager
import service.inference.runtimes.openvino as openvino
from service.evaluation.throughput import rate, together
from service.images.transforms import Preprocessing
from service.inference.device import Precision, choose_precision, cores
from service.inference.runtimes.base import Runtime
from service.inference.runtimes.eager import EagerRuntime
from service.inference.runtimes.openvino import OpenVINORuntime, convert
from service.model_spec import Architecture, ModelSpec
from service.networks.cascade import Cascade
from service.networks.mobilenet import DepthwiseConv2d
from service.networks.registry import build, resolutions, stage_names
from service.stages import StageSpec

CPU = torch.device("cpu")
NETWORKS = {"MS-ResNet-18 128/256": ("ms_resnet18", 256), "MS-MobileNetV1-0.5 96/192": ("ms_mobilenet_v1_050", 192)}
BATCH = 8
ESCALATED = 0.35
SECONDS = 1.5
MIXED = (5, 3, 8, 6, 4, 7)  # sizes of batches that follow each other

Measure = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Gain:
    """Images a second before and after, and after / before of each round."""

    network: str
    what: str
    before: float
    after: float
    ratios: tuple[float, ...]


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    out: Annotated[Path | None, typer.Option(help="Write JSON there.")] = None,
) -> None:
    """Measure every optimisation by itself."""
    gains = [
        _gain(network, what, before, after, rounds)
        for network, (name, resolution) in NETWORKS.items()
        for what, before, after in _pairs(name, resolution)
    ]
    table = Table("network", "what", "before, images/s", "after", "ratio", "spread")
    for gain in gains:
        table.add_row(
            gain.network, gain.what, f"{gain.before:.0f}", f"{gain.after:.0f}", f"{median(gain.ratios):.2f}",
            f"{min(gain.ratios):.2f} to {max(gain.ratios):.2f}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps([asdict(gain) for gain in gains], indent=1) + "\n")


def _gain(network: str, what: str, before: Measure, after: Measure, rounds: int) -> Gain:
    pairs = [(before(), after()) for _ in range(rounds)]
    return Gain(network, what, median(b for b, _ in pairs), median(a for _, a in pairs), tuple(a / b for b, a in pairs))


def _pairs(name: str, resolution: int) -> Iterator[tuple[str, Measure, Measure]]:
    spec = _spec(name, resolution)
    fast = choose_precision("auto", CPU)
    all_cores = cores()

    def cascade(runtime: Runtime, workers: int = all_cores, threads: int = 1, rebatch: bool = False) -> Measure:
        step = _rebatched if rebatch else _inside
        return lambda: sum(together(workers, threads, lambda: BATCH * rate(step(runtime, resolution), SECONDS)))

    def eager_runtime(precision: Precision) -> Runtime:
        return EagerRuntime(_network(name), spec, CPU, precision)

    with _replaced(eager, "fold_norms", lambda network: network):
        unfolded = eager_runtime(fast)
    plain, exact = eager_runtime(fast), eager_runtime("float32")
    vino = OpenVINORuntime(convert(_network(name), spec), fast, threads=1)
    shared = _SharedStreams(convert(_network(name), spec), fast, threads=1)
    yield f"eager: float32 -> {fast}", cascade(exact), cascade(plain)
    yield f"eager {fast}: norms folded", cascade(unfolded), cascade(plain)
    yield f"eager {fast}: one worker of all cores -> one per core", cascade(plain, 1, all_cores), cascade(plain)
    yield f"{fast}: eager -> OpenVINO", cascade(plain), cascade(vino)
    yield f"OpenVINO {fast}: float32 features -> {fast}", cascade(_float32_features(name, spec, fast)), cascade(vino)
    yield f"OpenVINO {fast}: streams of one model -> one model per worker", cascade(shared), cascade(vino)
    any_size = _AnySize(convert(_network(name), spec), fast, threads=1)
    yield (
        f"OpenVINO {fast}, batches of mixed sizes: compiled for any size -> for a few fixed sizes",
        _in_one_piece(_of_all(_mixed(any_size, resolution))),
        _of_all(_mixed(vino, resolution)),
    )
    batches = "high stage inside each batch -> batched separately"
    yield f"eager {fast}: {batches}", cascade(plain), cascade(plain, rebatch=True)
    yield f"OpenVINO {fast}: {batches}", cascade(vino), cascade(vino, rebatch=True)
    if name.startswith("ms_mobilenet"):
        trained = partial(_training_step, name, resolution, fast)
        yield f"training, {fast}: strided depthwise gradients -> strided after", trained(True), trained(False)


def _network(name: str) -> Cascade:
    torch.manual_seed(0)
    return build(name, 10, {}).eval()


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _spec(name: str, resolution: int) -> ModelSpec:
    sides = resolutions(name, resolution)
    stages = tuple(StageSpec(each, side, float(side)) for each, side in zip(stage_names(name), sides, strict=True))
    labels = tuple(map(str, range(10)))
    return ModelSpec(name, 1, Architecture(name, 10), labels, labels, Preprocessing.at(resolution), stages, "")


def _pixels(resolution: int) -> Tensor:
    return torch.randint(0, 256, (BATCH, resolution, resolution, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def _inside(runtime: Runtime, resolution: int) -> Callable[[], object]:
    """Every batch escalates its own unsure images."""
    low, high = _pixels(resolution // 2), _pixels(resolution)
    counts = _escalated_counts()

    def step() -> None:
        _, carried = runtime.run(0, low, ())
        rows = torch.arange(next(counts))
        runtime.run(1, high[rows], tuple(each[rows] for each in carried))

    return step


def _rebatched(runtime: Runtime, resolution: int) -> Callable[[], object]:
    """Unsure images of several batches wait until a batch of them is full."""
    low, high = _pixels(resolution // 2), _pixels(resolution)
    counts = _escalated_counts()
    waiting = 0

    def step() -> None:
        nonlocal waiting
        _, carried = runtime.run(0, low, ())
        rows = torch.arange(next(counts))
        tuple(each[rows] for each in carried)
        waiting += len(rows)
        if waiting >= BATCH:
            waiting -= BATCH
            runtime.run(1, high, carried)

    return step


def _mixed(runtime: Runtime, resolution: int) -> Callable[[], object]:
    """Batches as they come in serving, where no two are of one size; ``sum(MIXED)`` images."""
    low, high = _pixels(resolution // 2), _pixels(resolution)

    def step() -> None:
        for size in MIXED:
            _, carried = runtime.run(0, low[:size], ())
            rows = torch.arange(max(1, round(size * ESCALATED)))
            runtime.run(1, high[rows], tuple(each[rows] for each in carried))

    return step


def _of_all(step: Callable[[], object]) -> Measure:
    """Images a second of ``_mixed`` in a worker a core."""
    return lambda: sum(together(cores(), 1, lambda: sum(MIXED) * rate(step, SECONDS)))


def _in_one_piece(measure: Measure) -> Measure:
    """With batches of every size run as they are."""

    def measured() -> float:
        whole = tuple(range(BATCH, 0, -1))
        with _replaced(openvino, "FIRST_PIECES", whole), _replaced(openvino, "LATER_PIECES", whole):
            return measure()

    return measured


def _escalated_counts() -> Iterator[int]:
    random = np.random.default_rng(0)
    while True:
        yield max(1, int(random.binomial(BATCH, ESCALATED)))


def _float32_features(name: str, spec: ModelSpec, precision: Precision) -> OpenVINORuntime:
    """OpenVINO with features handed over in float32."""
    with _replaced(openvino, "_with_bfloat16_features", lambda models: models):
        return OpenVINORuntime(convert(_network(name), spec), precision, threads=1)


class _AnySize(OpenVINORuntime):
    """Stages compiled for any batch size, which OpenVINO prepares anew for each size that is not the last one's."""

    def _compile(self, stage: int, size: int) -> CompiledModel:
        del size
        own: dict[int, CompiledModel] = self._own.__dict__.setdefault("compiled", {})
        if stage not in own:
            own[stage] = openvino.CORE.compile_model(self._models[stage], "CPU", self._config)
        return own[stage]


class _SharedStreams(OpenVINORuntime):
    """One compiled model with a stream for each core, called by all threads."""

    def __init__(self, models: Sequence[Model], precision: Precision, threads: int) -> None:
        super().__init__(models, precision, threads)
        self._config |= {"NUM_STREAMS": str(cores()), "INFERENCE_NUM_THREADS": cores()}
        self._compiling = threading.Lock()
        self._shared: dict[tuple[int, int], CompiledModel] = {}

    def _compile(self, stage: int, size: int) -> CompiledModel:
        with self._compiling:
            if (stage, size) not in self._shared:
                self._shared[stage, size] = super()._compile(stage, size)
            return self._shared[stage, size]


def _training_step(name: str, resolution: int, precision: Precision, strided: bool) -> Measure:
    """Images a second of forward and backward passes."""
    network = _network(name).train().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, resolution, resolution).to(memory_format=torch.channels_last)
    targets = torch.zeros(BATCH, dtype=torch.long)

    def step() -> None:
        with torch.autocast("cpu", getattr(torch, precision)):
            low, high = network(images)
            loss = cross_entropy(low.float(), targets) + cross_entropy(high.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]

    def work() -> float:
        if not strided:
            return BATCH * rate(step, SECONDS)
        forward = DepthwiseConv2d.forward
        setattr(DepthwiseConv2d, "forward", nn.Conv2d.forward)  # noqa: B010
        try:
            return BATCH * rate(step, SECONDS)
        finally:
            setattr(DepthwiseConv2d, "forward", forward)  # noqa: B010

    return lambda: sum(together(1, cores(), work))


if __name__ == "__main__":
    typer.run(main)

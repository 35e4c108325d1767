"""What a network takes before anything is trained: parameters, multiply-adds, and time on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from service.images.transforms import Preprocessing
from service.inference.device import choose_device, choose_precision
from service.inference.runtimes import build_runtime, choose_runtime
from service.model_spec import Architecture, ModelSpec
from service.networks.cost import stage_costs
from service.networks.registry import build, reference_resolution
from service.stages import StageSpec

CLASSES = 1000
BATCH = 8
RUNS = 5  # at least, and as many as fit in
SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """A base network with 1000 classes: at half of ``resolution`` (low) and at all of it (high).

    Attributes:
        resolution: pixels, as the paper or torchvision quotes it.
        parameters: of the one network.
        low_mmacs, high_mmacs: millions of multiply-adds per image.
        low_ms, high_ms: milliseconds per image, see ``measured_with``; None where they were not measured.
    """

    name: str
    resolution: int
    parameters: int
    low_mmacs: float
    high_mmacs: float
    low_ms: float | None = None
    high_ms: float | None = None

    @property
    def break_even(self) -> float | None:
        """The exit rate above which two scales are faster than the larger one alone."""
        return None if self.low_ms is None or self.high_ms is None else self.low_ms / self.high_ms


def footprint(name: str, timed: bool = False) -> Footprint:
    """Of base network ``name``; ``timed`` measures it on this machine for a few seconds, with fresh weights."""
    resolution = reference_resolution(name)
    with torch.device("meta"):
        network = build(name, CLASSES)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    low, high = (stage_costs(network, [pixels])[-1] for pixels in (resolution // 2, resolution))
    times = [milliseconds(name, pixels) for pixels in (resolution // 2, resolution)] if timed else []
    return Footprint(name, resolution, parameters, low, high, *times)


def measured_with() -> str:
    """Runtime, precision and size of batches of ``milliseconds``, in words."""
    device = choose_device("auto")
    where = "one core" if device.type == "cpu" else str(device)
    return f"{choose_runtime('auto', device)} in {choose_precision('auto', device)}, {where}, batches of {BATCH}"


def milliseconds(name: str, resolution: int) -> float:
    """Per image, of the shortest of several batches; on a CPU on one core.

    A CPU's is this process's own time: what else the machine does would lengthen the time on the wall.
    """
    device = choose_device("auto")
    network, precision = build(name, CLASSES).eval(), choose_precision("auto", device)
    runtime = build_runtime(
        choose_runtime("auto", device), network, _spec(name, resolution), device, precision, threads=1
    )
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    images = torch.randint(0, 256, (BATCH, resolution, resolution, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runtime.run(0, images, ())[0].cpu()  # chooses its kernels
        runs: list[float] = []
        began = time.perf_counter()
        while len(runs) < RUNS or time.perf_counter() - began < SECONDS:
            before = clock()
            runtime.run(0, images, ())[0].cpu()
            runs.append(clock() - before)
    finally:
        torch.set_num_threads(threads)
    return 1000 * min(runs) / BATCH


def _spec(name: str, resolution: int) -> ModelSpec:
    return ModelSpec(
        name=name.replace("_", "-"),
        version=0,
        architecture=Architecture(name, CLASSES),
        classes=(),
        class_folders=(),
        preprocessing=Preprocessing.at(resolution),
        stages=(StageSpec("single", resolution, 1.0),),
        weights_sha256="",
    )

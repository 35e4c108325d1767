"""A model on a device: pixels in, logits out, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from service.calibration.certify import Calibration
from service.calibration.exit_rule import probabilities
from service.errors import BrokenModel, InvalidOption
from service.images.sizes import in_sizes
from service.inference.device import Precision, choose_device, choose_precision
from service.inference.runtimes import build_converted, build_quantised, build_runtime, choose_runtime
from service.inference.runtimes.base import Runtime
from service.inference.runtimes.eager import EagerRuntime
from service.model_spec import SPEC, ModelSpec
from service.networks.cascade import Carried, Cascade
from service.networks.registry import COMPOSED, build, resolutions
from service.state.base import Goal, ThresholdConfig
from service.store import WEIGHTS, read_spec, read_weights


class Predictor:
    """Runs a network's stages on batches of decoded images. Synchronous; safe to share between threads.

    Attributes:
        calibration: the model's table for this runtime and precision, or its first; None if it has none.
        default_threshold: used until a goal is set.

    Args:
        network: taken over; not needed with a ``runtime``.
        spec: of the network's model.
        device, precision, runtime: None is eager PyTorch.
        threads: for one batch on a CPU; PyTorch's are set by the calling thread.
    """

    def __init__(
        self,
        network: Cascade | None,
        spec: ModelSpec,
        device: torch.device,
        precision: Precision,
        runtime: Runtime | None = None,
        threads: int = 1,
    ) -> None:
        self.spec = spec
        self.device = device
        self.precision = precision
        self.threads = threads
        if runtime is None:
            assert network is not None
            runtime = EagerRuntime(network, spec, device, precision)
        self._runtime = runtime
        self.calibration = Calibration.of(spec, self.runtime, precision)
        start = spec.start_threshold(self.runtime, precision)
        self.default_threshold = ThresholdConfig("threshold", start, start)

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "auto",
        precision: str = "auto",
        runtime: str = EagerRuntime.name,
        threads: int = 1,
        converted: Path | None = None,
    ) -> Predictor:
        """The verified model in ``folder``; ``auto`` uses the fastest available device, precision or runtime.

        Args:
            converted: where ``runtimes.save_converted`` put the stages of this very model, to be taken as they are.

        Raises:
            NotFound, BrokenModel: see ``store``; also weights that do not fit the network.
            InvalidOption: device, precision or runtime is not available.
        """
        spec = read_spec(folder)
        where = choose_device(device)
        what, by = choose_precision(precision, where), choose_runtime(runtime, where)
        if converted is not None:
            return cls(None, spec, where, what, build_converted(converted, spec, what, threads), threads)
        network = load_network(folder, spec)
        built = (
            build_quantised(by, folder, spec, threads)
            if what == "int8"
            else build_runtime(by, network, spec, where, what, threads)
        )
        return cls(network, spec, where, what, built, threads)

    @property
    def runtime(self) -> str:
        """The name of the runtime."""
        return self._runtime.name

    @property
    def depth(self) -> int:
        """Number of stages."""
        return self.spec.depth

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """Run one stage on a batch.

        Args:
            stage: its index.
            images: uint8 (B, 3, r, r), r the stage's resolution.
            carried: features of the same images from the stage before; empty for the first.

        Returns:
            Logits (B, K), and features for the next stage; on the device, valid until the same thread's next call.
        """
        return self._runtime.run(stage, images, carried)

    def probabilities(self, stage: int, logits: Tensor) -> Tensor:
        """Logits of ``stage`` (B, K) -> probabilities, float32 on the host."""
        return probabilities(logits, self.spec.stages[stage].temperature).cpu()

    def answers(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Run every stage on all images: uint8 (B, 3, r, r) for each stage -> logits (B, K) of each, on the host."""
        logits = []
        carried: Carried = ()
        for stage, pixels in enumerate(images):
            found, carried = self.run(stage, pixels, carried)
            logits.append(found.to("cpu", copy=True))
        return logits

    def answers_to(self, crops: Tensor) -> list[Tensor]:
        """The same for decoded crops, uint8 (B, 3, R, R), which are first resized for each stage."""
        return self.answers(in_sizes(crops, self.spec.resolutions))

    def timed(self, images: Sequence[Tensor], clock: Callable[[], float] = time.perf_counter) -> list[float]:
        """Seconds of each stage by ``clock``, until its outputs are on the host."""
        seconds = []
        carried: Carried = ()
        for stage, pixels in enumerate(images):
            began = clock()
            logits, carried = self.run(stage, pixels, carried)
            logits.cpu()
            seconds.append(clock() - began)
        return seconds

    def solve(self, goal: Goal, value: float) -> float:
        """The threshold of a goal. Raises InvalidOption: it cannot be reached, or there is no table."""
        if self.calibration is not None:
            return self.calibration.solve(goal, value)
        if goal == "threshold":
            return value
        raise InvalidOption(goal, value, "absent: the model has no calibration table, so only threshold can be set")

    def noise(self, count: int) -> list[Tensor]:
        """Random images for each stage, uint8 (count, 3, r, r), channels last like decoded ones, for warm-up and
        measurements."""
        return [
            torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
            for side in self.spec.resolutions
        ]


def load_network(folder: Path, spec: ModelSpec) -> Cascade:
    """The network of ``spec`` with the weights in ``folder``, float32 on the CPU. Raises as ``Predictor.load``."""
    architecture = spec.architecture
    weights = read_weights(folder, spec)
    try:
        network = build(architecture.network, architecture.num_classes, architecture.options)
        if architecture.network != COMPOSED and spec.resolutions != resolutions(
            architecture.network, spec.preprocessing.crop
        ):
            raise InvalidOption("stages", spec.resolutions, f"those of {architecture.network}")
    except InvalidOption as error:
        raise BrokenModel(f"{folder / SPEC}: {error.message}", field="model", value=str(folder)) from error
    if network.depth != spec.depth:
        raise BrokenModel(
            f"{folder / SPEC}: {spec.depth} stages for a network of {network.depth}", field="model", value=str(folder)
        )
    foreign = sorted(_shapes(network.state_dict()) ^ _shapes(weights))
    if foreign:
        name, shape = foreign[0]
        raise BrokenModel(
            f"{folder / WEIGHTS} does not fit {architecture.network}: {name!r} {tuple(shape)} is only in one of them",
            field="model",
            value=str(folder),
        )
    network.load_state_dict(weights, strict=False)
    return network


def _shapes(state: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}

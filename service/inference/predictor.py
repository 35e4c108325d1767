"""A model on a device: pixels in, logits out, the low and the high pass each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from service.errors import BrokenModel, InvalidOption
from service.inference.calibration import Calibration
from service.inference.device import Precision, choose_device, choose_precision
from service.inference.runtimes import build_quantised, build_runtime, choose_runtime
from service.inference.runtimes.base import Runtime
from service.inference.runtimes.eager import EagerRuntime
from service.networks.msnet import LowState, MSNet
from service.networks.registry import build
from service.state.base import Goal, ThresholdConfig
from service.store import SPEC, WEIGHTS, ModelSpec, read_spec, read_weights


class Predictor:
    """Runs a network's passes on batches of decoded images. Synchronous; safe to share between threads.

    Attributes:
        calibration: the model's table for this runtime and precision, or its first; None if it has none.
        default_threshold: what it is served with until something is asked.

    Args:
        network: multi-scale, or single-scale (then only ``single`` may be called); taken over.
        spec: of the model the network belongs to.
        device, precision, runtime: where, in what and by what it computes; None is eager PyTorch.
        threads: that one batch may use on a CPU; PyTorch's are for the calling thread to set.
    """

    def __init__(
        self,
        network: nn.Module,
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
        self.is_multi_scale = isinstance(network, MSNet)
        self._runtime = runtime or EagerRuntime(network, spec.preprocessing, device, precision)
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
    ) -> Predictor:
        """The verified model in ``folder``; ``auto`` takes the fastest device, precision or runtime there is.

        Raises:
            NotFound, BrokenModel: see ``store``; also weights that are not the network's.
            InvalidOption: device, precision or runtime not to be had.
        """
        spec = read_spec(folder)
        where = choose_device(device)
        what, by = choose_precision(precision, where), choose_runtime(runtime, where)
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

    def low(self, images: Tensor, wide: bool = False) -> LowState:
        """uint8 (B, 3, R, R) -> low logits (B, K) and the features that ``high`` reuses, on the device.

        They are valid until the same thread's next pass: copy what is kept. ``wide``: on every core of an idle CPU.
        """
        return self._runtime.low(images, wide)

    def high(self, images: Tensor, low: LowState, wide: bool = False) -> Tensor:
        """The same images and their low state -> high logits (B, K), on the device."""
        return self._runtime.high(images, low, wide)

    def single(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) -> logits (B, K) of a single-scale network, on the device."""
        return self._runtime.single(images)

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both passes on everything: (low logits, high logits); of a single-scale network its logits twice."""
        if not self.is_multi_scale:
            logits = self.single(images)
            return logits, logits
        low = self.low(images)
        return low.logits, self.high(images, low)

    def solve(self, goal: Goal, value: float) -> float:
        """The threshold that a goal asks for. Raises InvalidOption: it has no answer, or no table to find it in."""
        if self.calibration is not None:
            return self.calibration.solve(goal, value)
        if goal == "threshold":
            return value
        raise InvalidOption(goal, value, "left out: the model has no calibration table (only threshold can be set)")

    def noise(self, count: int) -> Tensor:
        """Random images, uint8 (count, 3, R, R), channels last as decoded ones are: to warm up and to measure with."""
        crop = self.spec.preprocessing.crop
        return torch.randint(0, 256, (count, crop, crop, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def load_network(folder: Path, spec: ModelSpec) -> nn.Module:
    """The network of ``spec`` with the weights in ``folder``, float32 on the CPU. Raises as ``Predictor.load``."""
    architecture = spec.architecture
    weights = read_weights(folder, spec)
    try:
        network = build(architecture.network, architecture.num_classes, architecture.options)
    except InvalidOption as error:
        raise BrokenModel(f"{folder / SPEC}: {error.message}", field="model", value=str(folder)) from error
    foreign = sorted(_shapes(network.state_dict()) ^ _shapes(weights))
    if foreign:
        name, shape = foreign[0]
        raise BrokenModel(
            f"{folder / WEIGHTS} does not fit {architecture.network}: {name!r} {tuple(shape)} is in one of them only",
            field="model",
            value=str(folder),
        )
    network.load_state_dict(weights, strict=False)
    return network


def _shapes(state: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}

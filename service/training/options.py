"""Everything that decides how a network is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.errors import InvalidOption
from service.networks.registry import names, resolutions, stage_names

MIN_RESOLUTION, MAX_RESOLUTION = 64, 1024
PRECISIONS = ("auto", "float32", "bfloat16")

# Depthwise convolutions are never decayed; MobileNets need less decay elsewhere too.
PAPER_WEIGHT_DECAY = 1e-4
PAPER_MOBILENET_WEIGHT_DECAY = 4e-5


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of one run; a run folder keeps them as ``options.json``.

    Attributes:
        network: a name of ``networks.registry``.
        data: folder with ``train/<class>/`` (or the class folders themselves).
        out: the run folder.
        resolution: side of the last stage's input, pixels, even, 64 to 1024; each stage before sees half of the next.
        epochs: passes over the training images.
        batch_size: images a step, over all processes; None takes 64, or an eighth of the photographs if that is less.
        learning_rate: its peak.
        schedule: ``cosine`` (with a linear warm-up) or ``step`` (divided by 10 after 1/4, 1/2 and 3/4).
        warmup: share of the run with a linear warm-up, ``cosine`` only.
        weight_decay: on weights of convolutions and linear layers; none on norms, biases, depthwise convolutions.
        min_scale: smallest share of a photograph's area that a random crop takes.
        augment: change every crop in a random way, see ``data.RandomCrop``.
        label_smoothing: share of a target that all classes get evenly.
        progressive: train at 2/3 of the resolution for the first 3/5 of the epochs, at 5/6 for the next 1/5.
        distillation: weight of what the other heads learn from the last one, see ``losses``; 0 switches it off.
        ema_epochs: time constant of the weight average, in epochs; 0 switches it off.
        calibration_share: share of each class held out of training for calibration.
        seed: of initial weights, order, crops and the held-out split.
        init: start from a store's model, a weights file, ``torchvision`` or ``efficientnet-lite0``; None: from scratch.
        class_names: JSON file, folder name -> label; None labels with the folders' names.
        dataset: what the model card calls the data; None takes the folder's name.
        network_options: see ``networks.registry.build``.
        device: as in ``inference.predictor``.
        precision: ``float32``, ``bfloat16`` or ``auto``, which takes what the device computes fast.
        workers: processes that crop, unless a GPU does; None is one a core.
        decoded_gb: memory for photographs decoded once: of each GPU where all fit, else of the machine; 0: none.
    """

    network: str
    data: Path
    out: Path
    resolution: int = 192
    epochs: int = 40
    batch_size: int | None = None
    learning_rate: float = 0.06
    schedule: str = "cosine"
    warmup: float = 0.04
    weight_decay: float = 5e-4
    min_scale: float = 0.25
    augment: bool = False
    label_smoothing: float = 0.0
    progressive: bool = True
    distillation: float = 0.0
    ema_epochs: float = 2.0
    calibration_share: float = 0.1
    seed: int = 0
    init: str | None = None
    class_names: Path | None = None
    dataset: str | None = None
    network_options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    decoded_gb: float = 4.0

    def __post_init__(self) -> None:
        if self.network not in names():
            raise InvalidOption("network", self.network, f"one of {', '.join(names())}")
        if self.schedule not in ("cosine", "step"):
            raise InvalidOption("schedule", self.schedule, "cosine or step")
        if self.precision not in PRECISIONS:  # float16 would take a scaler of gradients
            raise InvalidOption("precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        resolutions(self.network, self.resolution)
        if self.resolution % 2:
            raise InvalidOption("resolution", self.resolution, "even")
        _check("resolution", self.resolution, MIN_RESOLUTION, MAX_RESOLUTION)
        _check("epochs", self.epochs, 1, 10_000)
        if self.batch_size is not None:
            _check("batch_size", self.batch_size, 2, 65_536)
        _check("learning_rate", self.learning_rate, 1e-6, 10)
        _check("warmup", self.warmup, 0, 1)
        _check("weight_decay", self.weight_decay, 0, 1)
        _check("min_scale", self.min_scale, 0.01, 1)
        _check("label_smoothing", self.label_smoothing, 0, 0.9)
        _check("distillation", self.distillation, 0, 100)
        _check("ema_epochs", self.ema_epochs, 0, 1000)
        _check("calibration_share", self.calibration_share, 0, 0.5)
        _check("seed", self.seed, 0, 2**32 - 1)
        if self.workers is not None:
            _check("workers", self.workers, 0, 1024)
        _check("decoded_gb", self.decoded_gb, 0, 10_000)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the network's stages, cheapest first."""
        return stage_names(self.network)

    def resolution_in(self, epoch: int) -> int:
        """The crop's side in pixels in ``epoch`` (from 0); even, at most ``resolution``."""
        share = (epoch + 0.5) / self.epochs
        if not self.progressive or share >= 0.8:
            return self.resolution
        scale = 2 / 3 if share < 0.6 else 5 / 6
        return min(self.resolution, max(MIN_RESOLUTION, round(self.resolution * scale / 32) * 32))

    @property
    def shorter_side(self) -> int:
        """The side, pixels, at which the smallest crop is as large as the network takes it."""
        return math.ceil(self.resolution / math.sqrt(self.min_scale))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept in ``options.json`` and ``model.json``."""
        raw = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in raw.items()}

    def recipe(self) -> dict[str, Any]:
        """What decided the weights, for the model card: all but places and machines."""
        kept = {name: value for name, value in self.to_json().items() if name not in PLACES}
        return {**kept, "init": self.init and "/".join(Path(self.init).parts[-2:])}


# Options that name a place on this machine rather than what is trained.
PLACES = {"data", "out", "class_names", "device", "workers", "decoded_gb", "dataset"}

# What resuming may change: where and how fast it runs, not what comes out.
FREE_ON_RESUME = PLACES


def paper_recipe(network: str) -> dict[str, Any]:
    """The paper's recipe, section 4, as far as it is stated; the rest as chosen in ``docs/method.md``."""
    is_mobilenet = "mobilenet" in network
    return {
        "epochs": 120,
        "batch_size": 256,
        "learning_rate": 0.1,
        "schedule": "step",
        "weight_decay": PAPER_MOBILENET_WEIGHT_DECAY if is_mobilenet else PAPER_WEIGHT_DECAY,
        "min_scale": 0.08,
        "progressive": False,
        "ema_epochs": 0.0,
    }


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidOption(name, value, f"between {low} and {high}")

"""All options that determine how a network is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from service.errors import InvalidOption
from service.training.folders import check_text

MIN_RESOLUTION, MAX_RESOLUTION = 64, 1024
PRECISIONS = ("auto", "float32", "bfloat16")

# Depthwise convolutions are never decayed; MobileNets need less decay elsewhere too.
PAPER_WEIGHT_DECAY = 1e-4
PAPER_MOBILENET_WEIGHT_DECAY = 4e-5


@dataclass(frozen=True, slots=True)
class Option:
    """The help text of an option, and its allowed values."""

    help: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raises InvalidOption naming ``name``, ``value`` and the bound."""
        if self.choices and value not in self.choices:
            raise InvalidOption(name, value, f"one of {', '.join(self.choices)}")
        if isinstance(value, int | float) and not self.low <= value <= self.high:
            raise InvalidOption(name, value, f"between {self.low} and {self.high}")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of one run, defined only here; ``lowfirst train`` derives its options from them.

    None means a default that depends on the photographs or the machine.
    """

    network: Annotated[str, Option("Network, see `lowfirst models --architectures`.")]
    data: Annotated[Path, Option("Folder with train/<class>/ photographs, or the class folders themselves.")]
    out: Annotated[Path, Option("Run folder to create.")]
    resolution: Annotated[
        int, Option("Input size of the last stage in pixels, an even number.", MIN_RESOLUTION, MAX_RESOLUTION)
    ] = 192
    epochs: Annotated[int, Option("Passes over the data.", 1, 10_000)] = 40
    batch_size: Annotated[
        int | None,
        Option(
            "Images per step, over all processes. Default: 64, or an eighth of the photographs if that is less.",
            2,
            65_536,
        ),
    ] = None
    learning_rate: Annotated[float, Option("Peak learning rate.", 1e-6, 10)] = 0.06
    schedule: Annotated[
        str, Option("cosine, or step: divided by 10 after 1/4, 1/2 and 3/4.", choices=("cosine", "step"))
    ] = "cosine"
    warmup: Annotated[float, Option("Share of the run used for linear warm-up (cosine only).", 0, 1)] = 0.04
    weight_decay: Annotated[float, Option("Weight decay of dense convolutions and linear layers.", 0, 1)] = 5e-4
    min_scale: Annotated[float, Option("Smallest share of a photograph's area in a crop.", 0.01, 1)] = 0.25
    augment: Annotated[bool, Option("Change shape or colours of every crop at random.")] = False
    label_smoothing: Annotated[float, Option("Share of each target spread over all classes.", 0, 0.9)] = 0.0
    progressive: Annotated[bool, Option("Train 3/5 of the epochs at 2/3 of the resolution, the next 1/5 at 5/6.")] = (
        True
    )
    distillation: Annotated[
        float, Option("Weight with which earlier stages learn from the last one; 0: off.", 0, 100)
    ] = 0.0
    ema_epochs: Annotated[float, Option("Time constant of the weight average; 0: off.", 0, 1000)] = 2.0
    calibration_share: Annotated[float, Option("Share of each class held out for calibration.", 0, 0.5)] = 0.1
    seed: Annotated[int, Option("Random seed for weights, order, crops and the held-out split.", 0, 2**32 - 1)] = 0
    init: Annotated[
        str | None,
        Option(
            "Start from a model of the store, a run folder, a weights file (.safetensors or torchvision's .pth), or "
            "ImageNet weights: torchvision, efficientnet-lite0."
        ),
    ] = None
    class_names: Annotated[Path | None, Option("JSON file: class folder -> label.")] = None
    dataset: Annotated[str | None, Option("Name of the data in the model card. Default: its folder.")] = None
    network_options: Annotated[
        Mapping[str, Any], Option("Option of the network, KEY=VALUE: gated=true, fusion=after_relu, projection=false.")
    ] = field(default_factory=dict)
    device: Annotated[str, Option("auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[
        str, Option("float32, bfloat16, or auto: the one that is fast on the device.", choices=PRECISIONS)
    ] = "auto"
    workers: Annotated[int | None, Option("Processes that load and crop. Default: one per core.", 0, 1024)] = None
    decoded_gb: Annotated[
        float, Option("Memory in GB for decoded photographs, per GPU or on the machine; 0: none.", 0, 10_000)
    ] = 4.0

    def __post_init__(self) -> None:
        from service.networks.registry import names, resolutions  # here: a command line that reads them needs no torch

        if self.network not in names():
            raise InvalidOption("network", self.network, f"one of {', '.join(names())}")
        resolutions(self.network, self.resolution)
        if self.resolution % 2:
            raise InvalidOption("resolution", self.resolution, "even")
        for name, option in described().items():
            value = getattr(self, name)
            option.check(name, value)
            if isinstance(value, str | Path):
                check_text(name, name, str(value))

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the network's stages, cheapest first."""
        from service.networks.registry import stage_names

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
        """Plain values, as stored in ``options.json`` and ``model.json``."""
        raw = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in raw.items()}

    def recipe(self) -> dict[str, Any]:
        """The options that determine the weights, for the model card: all except paths and machines."""
        kept = {name: value for name, value in self.to_json().items() if name not in PLACES}
        return {**kept, "init": self.init and "/".join(Path(self.init).parts[-2:])}


# Options that name a place on this machine rather than what is trained.
PLACES = {"data", "out", "class_names", "device", "workers", "decoded_gb", "dataset"}

# What resuming may change: where and how fast it runs, not what comes out.
FREE_ON_RESUME = PLACES


def paper_recipe(network: str) -> dict[str, Any]:
    """The paper's recipe, section 4; unstated values are those of ``docs/method.md``."""
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


def adapt_recipe(network: str) -> dict[str, Any]:
    """Recipe from existing weights to another data set: few epochs at a low rate, and gates that start closed."""
    from service.networks.registry import depth

    return {
        "epochs": 8,
        "batch_size": 32,
        "learning_rate": 0.03,
        "label_smoothing": 0.1,
        "network_options": {"gated": True} if depth(network) > 1 else {},
    }


@cache
def described() -> dict[str, Option]:
    """Description of each field of ``TrainOptions``."""
    return {name: hint.__metadata__[0] for name, hint in get_type_hints(TrainOptions, include_extras=True).items()}

"""How long each network of a comparison takes here: with fresh weights, which take no other time than trained ones."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import BrokenModel
from service.evaluation.comparison import TIMED_BATCH, stage_seconds
from service.images.transforms import Preprocessing
from service.inference.device import choose_device, choose_precision
from service.inference.predictor import Predictor
from service.inference.runtimes import build_runtime, choose_runtime
from service.model_spec import Architecture, ModelSpec
from service.networks.registry import build, resolutions, stage_names
from service.stages import StageSpec


@dataclass(frozen=True, slots=True)
class Milliseconds:
    """An image's share of a batch at each stage, by network (see ``key``), and where and how that was measured."""

    measured: str
    stages: Mapping[str, tuple[float, ...]]

    @classmethod
    def read(cls, path: Path) -> Milliseconds:
        """What ``write`` wrote; nothing measured where there is no such file. Raises BrokenModel: it is none."""
        if not path.is_file():
            return cls("", {})
        try:
            raw = json.loads(path.read_text())
            return cls(str(raw["measured"]), {name: tuple(map(float, each)) for name, each in raw["stages"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenModel(
                f"{path} holds no milliseconds: {error}", field="milliseconds", value=str(path)
            ) from error

    def write(self, path: Path) -> None:
        """As JSON. Raises OSError."""
        stages = {name: [round(each, 4) for each in times] for name, times in sorted(self.stages.items())}
        path.write_text(json.dumps({"measured": self.measured, "stages": stages}, indent=1) + "\n")


def key(network: str, classes: int, resolution: int, options: Mapping[str, Any]) -> str:
    """``ms_resnet18-128 10 classes fusion=after_relu``: what decides how long a network takes."""
    return " ".join(
        [f"{network}-{resolution}", f"{classes} classes", *(f"{k}={v}" for k, v in sorted(options.items()))]
    )


def measured_with() -> str:
    """Runtime, precision, batches and processor of ``measure``, in words."""
    device = choose_device("auto")
    where = f"one core of {_processor()}" if device.type == "cpu" else str(device)
    return (
        f"{choose_runtime('auto', device)} in {choose_precision('auto', device)}, {where}, "
        f"batches of {TIMED_BATCH[device.type]}"
    )


def measure(network: str, classes: int, resolution: int, options: Mapping[str, Any]) -> tuple[float, ...]:
    """Milliseconds of an image at each stage, with fresh weights, by what the server would run it with."""
    device = choose_device("auto")
    precision, sides = choose_precision("auto", device), resolutions(network, resolution)
    built = build(network, classes, options).eval()
    labels = tuple(map(str, range(classes)))
    spec = ModelSpec(
        name=network.replace("_", "-"),
        version=0,
        architecture=Architecture(network, classes, options),
        classes=labels,
        class_folders=labels,
        preprocessing=Preprocessing.at(resolution),
        stages=tuple(StageSpec(name, side, 1.0) for name, side in zip(stage_names(network), sides, strict=True)),
        weights_sha256="",
    )
    runtime = build_runtime(choose_runtime("auto", device), built, spec, device, precision, threads=1)
    return tuple(1e3 * each for each in stage_seconds(Predictor(built, spec, device, precision, runtime)))


def _processor() -> str:
    """Its name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor() or platform.machine()}, {os.cpu_count()} cores in all"

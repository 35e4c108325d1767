"""``model.json``: everything about a model except its weights, validated when read."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from service.calibration_table import CalibrationTable
from service.errors import DataError
from service.images.transforms import Preprocessing
from service.stages import StageSpec, mean_cost, up_to_each

FORMAT = 2
SPEC = "model.json"

# Stages name fields, labels and parts of headers: allowed names, and names already used there.
STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TAKEN = ("answer", "audit", "bytes_in_flight", "deadline", "decode", "escalation", "images_in_flight", "queue", "total")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The network: a name and options of ``networks.registry``, and the number of logits."""

    network: str
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything about a model except its weights.

    Attributes:
        name, version: in the store; a run has its folder's name and version 0.
        classes, class_folders: label of each logit, and its folder's name in the data set.
        preprocessing: of the largest stage's input; smaller inputs are made from it.
        stages: cheapest first.
        default_threshold: at start-up; None until calibrated.
        calibration: one table per (runtime, precision); empty until calibrated.
        dataset: name of the training data.
        recipe: all training options, including the seed.
        training: measured in training: epochs, seconds, images per second, library versions.
        code_version: of this project, when trained.
        weights_sha256: hexadecimal digest of the weights file.
        files: digests of further files of the model, by path in the folder.
    """

    name: str
    version: int
    architecture: Architecture
    classes: tuple[str, ...]
    class_folders: tuple[str, ...]
    preprocessing: Preprocessing
    stages: tuple[StageSpec, ...]
    weights_sha256: str
    default_threshold: float | None = None
    calibration: tuple[CalibrationTable, ...] = ()
    dataset: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    code_version: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def reference(self) -> str:
        """``name/version``, which names it in the store, in metrics and in logs."""
        return f"{self.name}/{self.version}"

    @property
    def title(self) -> str:
        """For messages: a run folder's title has no version."""
        return self.reference if self.version else f"run {self.name}"

    @property
    def key(self) -> tuple[str, int]:
        """Name and version."""
        return self.name, self.version

    @property
    def depth(self) -> int:
        """Number of stages."""
        return len(self.stages)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Input size of each stage, pixels."""
        return tuple(stage.resolution for stage in self.stages)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Divisor of each stage's logits before the softmax."""
        return tuple(stage.temperature for stage in self.stages)

    def with_temperatures(self, temperatures: Sequence[float]) -> ModelSpec:
        """A copy with other temperatures."""
        stages = tuple(dataclasses.replace(s, temperature=t) for s, t in zip(self.stages, temperatures, strict=True))
        return dataclasses.replace(self, stages=stages)

    @property
    def mmacs(self) -> tuple[float, ...]:
        """Millions of multiply-adds of each stage alone."""
        return tuple(stage.mmacs for stage in self.stages)

    @property
    def mmacs_up_to(self) -> tuple[float, ...]:
        """Million multiply-adds of an image that ends at each stage."""
        return up_to_each(self.mmacs)

    @property
    def single_scale_mmacs(self) -> float:
        """Cost of an image in the single-scale network."""
        return self.mmacs[-1]

    def mean_mmacs(self, ends: Sequence[float]) -> float:
        """Mean million multiply-adds per image if the share ``ends[i]`` of images ends at stage i."""
        return mean_cost(ends, self.mmacs)

    def told(self, name: str) -> Any:
        """The value of ``name`` from training. Raises DataError: another version trained it, and did not record the
        value."""
        known = {**self.recipe, **self.training}
        if name not in known:
            raise DataError(
                f"{SPEC} of {self.title}, which lowfirst {self.code_version or 'of unknown version'} wrote, lacks "
                f"{name!r}: train it again with this version",
                field="model",
                value=self.title,
            )
        return known[name]

    def start_threshold(self, runtime: str, precision: str) -> float:
        """The default threshold of a runtime and precision; 1, so that nothing exits, if none is known."""
        own = [t.default_threshold for t in self.calibration if (t.runtime, t.precision) == (runtime, precision)]
        known = [threshold for threshold in (*own, self.default_threshold) if threshold is not None]
        return known[0] if known else 1.0

    def to_json(self) -> str:
        """The text of ``model.json``; ``from_json`` gives the same spec back."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read this format or an earlier one.

        Raises:
            KeyError, TypeError, ValueError: invalid input; the message names the field.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise TypeError(f"it is a JSON {type(raw).__name__}, not an object")
        if raw["format"] not in range(1, FORMAT + 1):
            raise ValueError(f"format is {raw['format']!r}; this version reads up to {FORMAT}")
        if raw["format"] == 1:
            raw = _from_first_format(raw)
        foreign = sorted(set(raw) - {each.name for each in dataclasses.fields(cls)})
        if foreign:
            raise ValueError(
                f"another version of lowfirst wrote it: {len(foreign)} unknown fields, {foreign[0]!r} first"
            )
        stages = tuple(_stage(stage) for stage in raw["stages"])
        spec = cls(
            **{
                **raw,
                "format": FORMAT,
                "architecture": Architecture(**raw["architecture"]),
                "classes": tuple(raw["classes"]),
                "class_folders": tuple(raw["class_folders"]),
                "preprocessing": Preprocessing(**_with_tuples(raw["preprocessing"])),
                "stages": stages,
                "calibration": tuple(CalibrationTable.from_json(table, len(stages)) for table in raw["calibration"]),
            }
        )
        _check(spec)
        return spec


def _stage(raw: Mapping[str, Any]) -> StageSpec:
    return StageSpec(**_with_tuples(raw))


def _with_tuples(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}


def _from_first_format(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The first format has two costs and two temperatures instead of stages; single-scale runs have a low cost of 0."""
    named = dict(raw)
    low, high = named.pop("low_mmacs"), named.pop("high_mmacs")
    temperature, crop = named.pop("temperature"), named["preprocessing"]["crop"]
    stages = [{"name": "high", "resolution": crop, "mmacs": high, "temperature": temperature["high"]}]
    if low:
        stages.insert(0, {"name": "low", "resolution": crop // 2, "mmacs": low, "temperature": temperature["low"]})
    else:
        stages[0]["name"] = "single"
    return {**named, "stages": stages, "format": FORMAT}


def _check(spec: ModelSpec) -> None:
    """Raise ValueError for values that no model can have."""
    for name, labels in (("classes", spec.classes), ("class_folders", spec.class_folders)):
        if not all(isinstance(label, str) and label and label.isprintable() for label in labels):
            raise ValueError(f"{name} must be printable, non-empty texts")
        if len(set(labels)) != len(labels):
            raise ValueError(f"{name} must be different")
    if len(spec.classes) != spec.architecture.num_classes:
        raise ValueError(f"{len(spec.classes)} classes for {spec.architecture.num_classes} logits")
    if spec.default_threshold is not None and not 0 <= spec.default_threshold <= 1:
        raise ValueError(f"default_threshold is {spec.default_threshold!r}; it must lie between 0 and 1")
    pixels = spec.preprocessing
    if not (isinstance(pixels.crop, int) and isinstance(pixels.resize, int) and 0 < pixels.crop <= pixels.resize):
        raise ValueError(f"preprocessing: crop is {pixels.crop!r}; it must be 1 to resize, which is {pixels.resize!r}")
    _check_channels("preprocessing", pixels.mean, pixels.std)
    _check_stages(spec.stages, pixels)


def _check_stages(stages: Sequence[StageSpec], pixels: Preprocessing) -> None:
    crop = pixels.crop
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) != len(names):
        raise ValueError("stages must be at least one, each with a unique name")
    for name in names:
        if not (isinstance(name, str) and STAGE_NAME.fullmatch(name)) or name in TAKEN:
            raise ValueError(
                f"stages: name is {name!r}; it must be at most 64 lower-case letters, digits, '.', '_' and '-', and "
                f"none of {', '.join(TAKEN)}"
            )
    for stage in stages:
        if not (isinstance(stage.resolution, int) and 0 < stage.resolution <= crop):
            raise ValueError(f"stage {stage.name}: resolution is {stage.resolution!r}; it must be 1 to crop, {crop}")
        for name, value in (("mmacs", stage.mmacs), ("temperature", stage.temperature)):
            if not _is_positive(value):
                raise ValueError(f"stage {stage.name}: {name} is {value!r}; it must be a number above 0")
        own = (pixels.mean if stage.mean is None else stage.mean, pixels.std if stage.std is None else stage.std)
        _check_channels(f"stage {stage.name}", *own)
    if max(stage.resolution for stage in stages) != crop:
        raise ValueError(f"stages: the largest resolution must be the crop, {crop}")
    for before, after in pairwise(stages):
        if after.mmacs <= before.mmacs:
            raise ValueError(
                f"stages: {after.name} costs {after.mmacs:g} million multiply-adds, not more than {before.name} "
                f"before it with {before.mmacs:g}; each stage must cost more than the one before"
            )


def _check_channels(where: str, mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or not all(isinstance(each, int | float) and math.isfinite(each) for each in mean):
        raise ValueError(f"{where}: mean is {mean!r}; it must be three numbers")
    if len(std) != 3 or not all(map(_is_positive, std)):
        raise ValueError(f"{where}: std is {std!r}; it must be three numbers above 0")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf

"""The model store: ``model_store/<name>/<version>/`` and the run folders that become its versions.

A model folder holds ``weights.safetensors`` and ``model.json``, which says everything else about the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.errors import BrokenModel, DataError, InvalidOption, LowfirstError, NotFound
from service.images.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
WEIGHTS = "weights.safetensors"
SPEC = "model.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Architecture:
    """Which network: a name and options of ``networks.registry``, and how many logits it gives."""

    network: str
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Temperature:
    """What each head's logits are divided by before the softmax; 1 until calibrated."""

    low: float = 1.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """Counts over the certifying images at one threshold.

    Attributes:
        threshold: an image exits when its confidence is strictly greater.
        exited: images that exit.
        disagreements: of these, the low answer differs from the high one.
        low_right_high_wrong, low_wrong_high_right: of these, by who is right.
        right: images answered rightly, exited or not.
    """

    threshold: float
    exited: int
    disagreements: int
    low_right_high_wrong: int
    low_wrong_high_right: int
    right: int


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """One row a threshold, ascending from 0 to 1, measured with one runtime at one precision on ``n`` images.

    ``default_threshold`` is what suits that runtime and precision; None takes the model's.
    """

    runtime: str
    precision: str
    n: int
    rows: tuple[CalibrationRow, ...]
    default_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything about a model but its weights.

    Attributes:
        name, version: place in the store; a run has its folder's name and version 0.
        classes, class_folders: label of each logit, and its folder's name in the data set.
        low_mmacs, high_mmacs: millions of multiply-adds of the two passes (see ``networks.cost``).
        default_threshold: what the server starts with; None until calibrated.
        calibration: one table per (runtime, precision); empty until calibrated.
        dataset: what it was trained on, in words.
        recipe: every training option, the seed among them.
        training: what training measured: epochs, seconds, images per second, versions of the libraries.
        code_version: of this project, when trained.
        weights_sha256: hexadecimal digest of the weights file.
        files: digests of what else a runtime reads there, by path in the folder.
    """

    name: str
    version: int
    architecture: Architecture
    classes: tuple[str, ...]
    class_folders: tuple[str, ...]
    preprocessing: Preprocessing
    low_mmacs: float
    high_mmacs: float
    weights_sha256: str
    temperature: Temperature = Temperature()
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
        """For messages: a run folder's has no version."""
        return self.reference if self.version else f"run {self.name}"

    @property
    def key(self) -> tuple[str, int]:
        """Name and version."""
        return self.name, self.version

    def told(self, name: str) -> Any:
        """What its training says of ``name``. Raises DataError: another version trained it, and says nothing."""
        known = {**self.recipe, **self.training}
        if name not in known:
            raise DataError(
                f"{SPEC} of {self.title}, which lowfirst {self.code_version or 'of unknown version'} wrote, says "
                f"nothing of {name!r}: train it anew with this version",
                field="model",
                value=self.title,
            )
        return known[name]

    def start_threshold(self, runtime: str, precision: str) -> float:
        """The default threshold of a runtime and precision; 1, where nothing exits, while none is known to be good."""
        own = [t.default_threshold for t in self.calibration if (t.runtime, t.precision) == (runtime, precision)]
        known = [threshold for threshold in (*own, self.default_threshold) if threshold is not None]
        return known[0] if known else 1.0

    def mean_mmacs(self, exit_rate: float) -> float:
        """Mean millions of multiply-adds an image when the share ``exit_rate`` of images exits."""
        return self.low_mmacs + (1 - exit_rate) * self.high_mmacs

    def to_json(self) -> str:
        """The text of ``model.json``; ``from_json`` gives the same spec back."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what ``to_json`` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise ValueError(f"format is {raw['format']!r}; this version reads {FORMAT}")
        foreign = sorted(set(raw) - {each.name for each in dataclasses.fields(cls)})
        if foreign:
            raise ValueError(
                f"another version of lowfirst wrote it: {len(foreign)} unknown fields, {foreign[0]!r} first"
            )
        if len(raw["classes"]) != raw["architecture"]["num_classes"]:
            raise ValueError(f"{len(raw['classes'])} classes for {raw['architecture']['num_classes']} logits")
        preprocessing = raw["preprocessing"]
        return cls(
            **{
                **raw,
                "architecture": Architecture(**raw["architecture"]),
                "classes": tuple(raw["classes"]),
                "class_folders": tuple(raw["class_folders"]),
                "preprocessing": Preprocessing(
                    **{**preprocessing, "mean": tuple(preprocessing["mean"]), "std": tuple(preprocessing["std"])}
                ),
                "temperature": Temperature(**raw["temperature"]),
                "calibration": tuple(
                    CalibrationTable(**{**table, "rows": tuple(CalibrationRow(**row) for row in table["rows"])})
                    for table in raw["calibration"]
                ),
            }
        )


class ModelStore:
    """A folder of models, ``<root>/<name>/<version>/``. Names cannot lead out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Every model's name, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            path.name for path in self.root.iterdir() if NAME.fullmatch(path.name) and self.versions(path.name)
        )

    def versions(self, name: str) -> list[int]:
        """The versions of model ``name``, ascending; empty if there is none."""
        return sorted(version for version, folder in self._folders(name) if (folder / SPEC).is_file())

    def next_version(self, name: str) -> int:
        """One more than any version of model ``name``, half-written ones too."""
        return max((version for version, _ in self._folders(name)), default=0) + 1

    def _folders(self, name: str) -> list[tuple[int, Path]]:
        folder = self.root / _checked(name)
        if not folder.is_dir():
            return []
        return [(int(path.name), path) for path in folder.iterdir() if VERSION.fullmatch(path.name)]

    def find(self, reference: str) -> Path:
        """The folder of ``name`` (its newest version) or ``name/version``.

        Raises:
            InvalidOption: not of that form.
            NotFound: no such model or version.
        """
        name, version = self.locate(reference)
        return self.root / name / str(version)

    def locate(self, reference: str) -> tuple[str, int]:
        """Name and version of what ``find`` finds. Raises as it does."""
        name, slash, version = reference.partition("/")
        versions = self.versions(name)
        if not versions:
            known = ", ".join(self.names()) or "no model"
            raise NotFound(f"model is {name!r}; {self.root} has {known}", field="model", value=reference)
        if slash and version not in map(str, versions):
            raise NotFound(f"model is {reference!r}; {name} has versions {versions}", field="model", value=reference)
        return name, int(version) if version else versions[-1]

    def specs(self, on_broken: Callable[[str, LowfirstError], None]) -> list[ModelSpec]:
        """Every version of every model, by name and version.

        Args:
            on_broken: told of each that cannot be read (``name/version``, and why), which is left out.
        """
        found = []
        for reference in [f"{name}/{version}" for name in self.names() for version in self.versions(name)]:
            try:
                found.append(read_spec(self.root / reference))
            except (BrokenModel, NotFound) as error:  # not found: removed meanwhile
                on_broken(reference, error)
        return found


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InvalidOption("model", name, "a name of lower-case letters, digits, '.', '_' and '-', at most 64 long")
    return name


def read_spec(folder: Path) -> ModelSpec:
    """The spec in a model or run folder.

    Raises:
        NotFound: no ``model.json`` there.
        BrokenModel: it cannot be read.
    """
    path = folder / SPEC
    if not path.is_file():
        raise NotFound(f"{folder} holds no model: it has no {SPEC}", field="model", value=str(folder))
    try:
        return ModelSpec.from_json(path.read_text())
    except (KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
        raise BrokenModel(f"{path} cannot be read: {error!r}", field="model", value=str(path)) from error


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write ``model.json`` in one step, so that a reader sees the old one or the new one."""
    temporary = folder / (SPEC + ".tmp")
    temporary.write_text(spec.to_json())
    temporary.replace(folder / SPEC)


def verified(folder: Path, name: str, digest: str) -> bytes:
    """The bytes of file ``name`` in a model folder.

    Raises:
        BrokenModel: it is missing, or its SHA-256 is not ``digest``.
    """
    path = folder / name
    if not path.is_file():
        raise BrokenModel(f"{path} is missing", field="model", value=str(folder))
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BrokenModel(f"{path} has SHA-256 {found}; {SPEC} says {digest}", field="model", value=str(path))
    return data


def read_weights(folder: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """The verified weights of a model folder, float32 on the CPU.

    Raises:
        BrokenModel: the file is missing, its hash is not the spec's, or it holds no weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = verified(folder, WEIGHTS, spec.weights_sha256)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise BrokenModel(f"{folder / WEIGHTS} cannot be read: {error}", field="model", value=str(folder)) from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> str:
    """Write weights, in one step, and give their SHA-256.

    Convolution and linear weights are stored as float16; vectors (norms, biases) as float32, because a
    running variance may be smaller than float16 can tell from 0.
    """
    from safetensors.torch import save

    data = save(
        {
            name: (tensor.half() if tensor.dim() > 1 else tensor).detach().cpu().contiguous()
            for name, tensor in state.items()
            if tensor.is_floating_point()
        }
    )
    temporary = folder / (WEIGHTS + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(folder / WEIGHTS)
    return hashlib.sha256(data).hexdigest()

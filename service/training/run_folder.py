"""The folder of one run, which describes it completely.

``options.json`` has the options, ``trained_on.bin`` the training photographs (see ``trained_on``). After every epoch it
writes ``log.csv`` (one line per epoch), the model (``weights.safetensors`` and ``model.json``) and, last,
``checkpoint.pt``: everything to continue from that epoch.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from service.errors import BrokenModel, DataError, InvalidOption, NotFound
from service.images.transforms import Preprocessing
from service.model_spec import SPEC, ModelSpec
from service.store import read_spec, read_weights, write_spec, write_weights
from service.training.data import Photographs
from service.training.options import FREE_ON_RESUME, TrainOptions
from service.training.trained_on import TRAINED_ON, trained_on, write_trained_on

OPTIONS, LOG, CHECKPOINT = "options.json", "log.csv", "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class EpochLog:
    """One line of ``log.csv``. ``waited`` is the share of time that the first process waited for a batch.

    Attributes:
        accuracy: of each stage on training crops, a share of 1, by name.
        held_out: of each stage, with the averaged weights on the calibration photographs; nan without any.
    """

    epoch: int
    resolution: int
    learning_rate: float
    loss: float
    accuracy: Mapping[str, float]
    held_out: Mapping[str, float]
    images_per_second: float
    seconds: float
    waited: float
    unreadable: int

    def columns(self) -> dict[str, float]:
        """As in ``log.csv``: one column per stage and accuracy, ``<stage>_accuracy`` and ``held_out_<stage>_accuracy``.

        A single-scale network's stands under ``high``, with nan under ``low``.
        """
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        accuracies = {f"{name}_accuracy": value for name, value in _in_log(plain.pop("accuracy")).items()}
        held_out = {f"held_out_{name}_accuracy": value for name, value in _in_log(plain.pop("held_out")).items()}
        first = {name: plain.pop(name) for name in ("epoch", "resolution", "learning_rate", "loss")}
        return {**first, **accuracies, **held_out, **plain}

    @classmethod
    def of_columns(cls, columns: Mapping[str, float], stages: Sequence[str]) -> EpochLog:
        """Inverse of ``columns``, for a network with these stages. Raises KeyError."""
        names = stages if len(stages) > 1 else ("high",)
        of = dict(zip(names, stages, strict=True))
        plain = {field.name: columns[field.name] for field in fields(cls) if field.name not in ("accuracy", "held_out")}
        accuracy = {of[name]: columns[f"{name}_accuracy"] for name in names}
        held_out = {of[name]: columns[f"held_out_{name}_accuracy"] for name in names}
        return cls(**plain, accuracy=accuracy, held_out=held_out)  # type: ignore[arg-type]


def _in_log(accuracies: Mapping[str, float]) -> dict[str, float]:
    if len(accuracies) > 1:
        return dict(accuracies)
    (only,) = accuracies.values()
    return {"low": math.nan, "high": only}


CHECKPOINT_KEYS = {"network", "optimiser", "average", "log", "unreadable"}


def _line(columns: Mapping[str, float], stages: Sequence[str]) -> EpochLog:
    """Raises ValueError: not the columns of this version."""
    with suppress(KeyError):
        line = EpochLog.of_columns(columns, stages)
        if set(line.columns()) == set(columns):
            return line
    raise ValueError("another version of lowfirst wrote it")


class RunFolder:
    """Reads and writes the run folder at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_free(self) -> None:
        """Raise InvalidOption if there is a run already."""
        if (self.path / OPTIONS).exists():
            raise InvalidOption("out", str(self.path), "a folder without a run (or pass --resume to continue it)")

    def is_of_older_version(self) -> bool:
        """Whether the model here is of a version that stored only the number of its photographs, not their contents."""
        return (self.path / SPEC).is_file() and not (self.path / TRAINED_ON).is_file()

    def check_same(
        self, options: TrainOptions, photographs: Photographs, held_out: Photographs, contents: frozenset[bytes]
    ) -> None:
        """Check that ``options`` and the photographs are those of the run here.

        Args:
            contents: digests of ``photographs``, the training part.

        Raises:
            NotFound: no run is here.
            InvalidOption: naming the first option that differs, and both values.
            DataError: a run of another version; or other photographs, so that held-out ones would be trained on now.
        """
        path = self.path / OPTIONS
        if not path.is_file():
            raise NotFound(f"{self.path} holds no run to resume", field="out", value=str(self.path))
        before, now = self._options(path), options.to_json()
        off = {name for name, value in now.items() if name not in before and not value}  # as without it
        foreign = sorted((set(before) ^ set(now)) - off - FREE_ON_RESUME)
        if foreign:
            raise DataError(
                f"{path} was written by another version of lowfirst: {len(foreign)} options are known to one of them "
                f"only, {foreign[0]!r} first; train it again, or continue with the version that started it",
                field="out",
                value=str(self.path),
            )
        for name, value in now.items():
            if name not in FREE_ON_RESUME | off and before[name] != value:
                raise InvalidOption(name, value, f"{before[name]!r}, as in the resumed run")
        if self.is_of_older_version():
            self._check_same_numbers(options, photographs, held_out)
        elif (self.path / TRAINED_ON).is_file():
            self._check_same_contents(options, photographs, contents)

    def _check_same_contents(self, options: TrainOptions, photographs: Photographs, contents: frozenset[bytes]) -> None:
        spec = read_spec(self.path) if (self.path / SPEC).is_file() else None
        others = len(contents - trained_on(self.path))
        if others:
            what = f"has {others} training photographs that were not used before, and may have been held out"
        elif spec is not None and spec.class_folders != photographs.folders:
            what = f"has other classes: {', '.join(sorted({*spec.class_folders} ^ {*photographs.folders}))}"
        elif spec is not None and spec.told("train_images") != len(photographs):
            what = f"has {len(photographs)} training photographs, but had {spec.told('train_images')}"
        else:
            return
        raise DataError(
            f"{options.data} {what}: pass the photographs with which the run was started",
            field="data",
            value=str(options.data),
        )

    def _check_same_numbers(self, options: TrainOptions, photographs: Photographs, held_out: Photographs) -> None:
        spec = read_spec(self.path)
        was = spec.told("train_images"), spec.told("calibration_images"), spec.class_folders
        found = len(photographs), len(held_out), photographs.folders
        if was != found:
            raise DataError(
                f"{options.data} has {found[0]} training photographs, {found[1]} held out and {len(found[2])} "
                f"classes; the resumed run had {was[0]}, {was[1]} and {len(was[2])}",
                field="data",
                value=str(options.data),
            )

    def claim(self, options: TrainOptions, known: frozenset[bytes]) -> None:
        """Create the folder, and store ``options`` and the digests ``known`` of the training photographs in it.

        Raises InvalidOption if it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidOption("out", str(self.path), f"a folder that can be made ({error.strerror})") from error
        write_trained_on(self.path, known)
        temporary = self.path / (OPTIONS + ".tmp")
        temporary.write_text(json.dumps(options.to_json(), indent=1) + "\n")
        temporary.replace(self.path / OPTIONS)

    def checkpoint(self, device: torch.device, stages: Sequence[str]) -> dict[str, Any] | None:
        """The argument of the last ``save``, for a network with these stages; None if no epoch was completed.

        Raises BrokenModel if it cannot be read, or another version wrote it.
        """
        path = self.path / CHECKPOINT
        if not path.is_file():
            return None
        try:
            with ZipFile(path) as parts:  # torch.load compares no checksums
                if (part := parts.testzip()) is not None:
                    raise ValueError(f"{part} in it is damaged")
            saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            if not saved.keys() >= CHECKPOINT_KEYS:
                raise ValueError("another version of lowfirst wrote it")
            saved["log"] = [_line(line, stages) for line in saved["log"]]
        except (
            ValueError, RuntimeError, EOFError, OSError, AttributeError, LookupError, TypeError, UnpicklingError,
            BadZipFile,
        ) as error:  # fmt: skip
            reason = str(error).partition("\n")[0]
            raise BrokenModel(
                f"{path}, {path.stat().st_size} bytes, is not a usable checkpoint: {reason}",
                field="out",
                value=str(self.path),
            ) from error
        return saved

    def preprocessing(self) -> Preprocessing | None:
        """Preprocessing of the model here; None if its writing was interrupted. Raises BrokenModel."""
        return read_spec(self.path).preprocessing if (self.path / SPEC).is_file() else None

    def _options(self, path: Path) -> dict[str, Any]:
        try:
            raw: dict[str, Any] = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} cannot be read: {error}", field="out", value=str(self.path)) from error
        return raw

    def save(
        self, log: Sequence[EpochLog], weights: dict[str, Tensor], spec: ModelSpec, checkpoint: dict[str, Any]
    ) -> ModelSpec:
        """Write everything that changes with an epoch; returns ``spec`` with the weights' digest."""
        with (self.path / LOG).open("w", newline="") as file:
            lines = [line.columns() for line in log]
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        spec = dataclasses.replace(spec, weights_sha256=write_weights(self.path, weights))
        write_spec(self.path, spec)
        temporary = self.path / (CHECKPOINT + ".tmp")
        torch.save(checkpoint, temporary)
        temporary.replace(self.path / CHECKPOINT)
        return spec

    def model_after(self, epochs: int) -> ModelSpec | None:
        """The model here, with its calibration if any; None unless it is complete and ``epochs`` old."""
        try:
            spec = read_spec(self.path)
            read_weights(self.path, spec)
        except (NotFound, BrokenModel):
            return None
        return spec if spec.training.get("epochs_done") == epochs else None

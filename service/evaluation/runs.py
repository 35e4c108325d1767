"""Runs to compare: what each one is, how it was trained, and how the training of two runs differs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from service.errors import BrokenModel, DataError
from service.model_spec import SPEC, ModelSpec
from service.networks.registry import COMPOSED, backbone_name, names
from service.store import read_spec
from service.training.run_folder import LOG

OWN_OPTIONS = {"network", "network_options", "resolution", "seed", "distillation"}  # of one network, not of a recipe


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder or a version of the store.

    Attributes:
        name: the name of its folder, or ``name/version``.
        log: a sentence about its training.
    """

    name: str
    folder: Path
    spec: ModelSpec
    log: str

    @property
    def slug(self) -> str:
        """Its name in a form for file names."""
        return self.name.replace("/", "-")

    @property
    def is_multi_scale(self) -> bool:
        """Whether it has more than one stage."""
        return self.spec.depth > 1

    @property
    def is_composed(self) -> bool:
        """Whether it is composed of finished models."""
        return self.spec.architecture.network == COMPOSED

    @property
    def last_network(self) -> tuple[str, Mapping[str, Any]]:
        """The network of its last stage, and the options of that network."""
        of = self.spec.architecture
        if not self.is_composed:
            return of.network, of.options
        member, _ = of.options["order"][-1]
        return of.options["members"][member]["network"], of.options["members"][member]["options"]

    @property
    def backbone(self) -> str:
        """The base network of its last stage."""
        return backbone_name(self.last_network[0])

    @property
    def resolution(self) -> int:
        """Its high resolution in pixels."""
        return self.spec.preprocessing.crop

    @property
    def seed(self) -> object:
        """The seed of its training; None if unknown."""
        return self.spec.recipe.get("seed")

    @property
    def recipe(self) -> dict[str, Any]:
        """The options, epochs and photographs of its training. Options that were off are left out, because older
        versions did not have them.
        """
        had = {"epochs": self._epochs, "photographs": self.spec.training.get("train_images")}
        return {name: value for name, value in {**self.spec.recipe, **had}.items() if value}

    @property
    def _epochs(self) -> object:
        asked = self.spec.recipe.get("epochs")
        done = self.spec.training.get("epochs_done", asked)
        return asked if done == asked else f"{done} of {asked}"

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises NotFound or BrokenModel (see ``store``; also if the network is unknown), and DataError for a log of
        another version.
        """
        spec = read_spec(folder)
        if spec.architecture.network not in (*names(), COMPOSED):
            raise BrokenModel(
                f"{folder / SPEC} has the network {spec.architecture.network!r}, which this version of lowfirst lacks",
                field="runs",
                value=spec.architecture.network,
            )
        name = folder.resolve().name if spec.version == 0 else spec.reference
        return cls(name, folder, spec, _log(folder, spec))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The run of each folder, once. If a name is already used, it gets a number. Raises the errors of ``Run.read``."""
    first: dict[Path, Path] = {}
    for folder in folders:
        first.setdefault(folder.resolve(), folder)
    runs: list[Run] = []
    for run in map(Run.read, first.values()):
        unique, count = run, 1
        while unique.slug in {other.slug for other in runs}:
            count += 1
            unique = replace(run, name=f"{run.name}-{count}")
        runs.append(unique)
    return runs


def check_same_classes(runs: Sequence[Run]) -> None:
    """Check that all runs have the same classes. Raises DataError naming two files that differ, and both counts."""
    first = runs[0]
    for run in runs[1:]:
        if run.spec.class_folders != first.spec.class_folders:
            foreign = sorted(set(run.spec.class_folders) ^ set(first.spec.class_folders)) or ["their order"]
            raise DataError(
                f"{run.folder / SPEC} has {len(run.spec.class_folders)} classes and {first.folder / SPEC} "
                f"{len(first.spec.class_folders)}; not in both: {', '.join(foreign[:5])}",
                field="runs",
                value=len(run.spec.class_folders),
                bound=len(first.spec.class_folders),
            )


def differences(run: Run, single: Run) -> list[str]:
    """Training options that differ between a multi-stage and a single-scale run although they could be equal."""
    if run.is_composed:  # it was not trained
        return []
    one, other = run.recipe, single.recipe
    options = sorted({*one, *other} - OWN_OPTIONS)
    return [
        f"{name} {other.get(name, 'off')} ({one.get(name, 'off')})"
        for name in options
        if other.get(name) != one.get(name)
    ]


def _log(folder: Path, spec: ModelSpec) -> str:
    if "composed_of" in spec.recipe:
        return f"composed of {', '.join(each['model'] for each in spec.recipe['composed_of'])}, not trained"
    training, path = spec.training, folder / LOG
    said = f"{training.get('epochs_done', '?')} epochs, {training.get('train_images', '?')} photographs"
    if "seconds" in training:
        said += f", {training['seconds'] / 60:.0f} min on {training.get('device')} in {training.get('precision')}"
    if not path.is_file():
        return said
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        if not lines:
            raise ValueError("it has no line")
        speed = median(float(line["images_per_second"]) for line in lines)
        last = lines[-1]
        held_out = [f"{stage} {100 * accuracy:.1f} %" for stage, accuracy in held_out_accuracies(last, spec).items()]
        heads = ", ".join(held_out) if spec.depth > 1 else held_out[0].partition(" ")[2]
        return f"{said}, {speed:.0f} images/s; last loss {float(last['loss']):.3f}, held out {heads}"
    except KeyError as error:
        raise _foreign_log(path, f"it has no column {error}") from error
    except (TypeError, ValueError) as error:
        raise _foreign_log(path, str(error)) from error


def held_out_accuracies(line: Mapping[str, str], spec: ModelSpec) -> dict[str, float]:
    """Held-out accuracy of each stage, by name, from a line of ``log.csv``; a single-scale network's is called
    ``high``.
    """
    names = [stage.name for stage in spec.stages] if spec.depth > 1 else ["high"]
    return {name: float(line[f"held_out_{name}_accuracy"]) for name in names}


def _foreign_log(path: Path, why: str) -> DataError:
    return DataError(f"{path} is no log that this version reads: {why}", field="runs", value=str(path))

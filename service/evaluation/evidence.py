"""The runs behind ``docs/results.md``: lists which exist and which are missing, and draws tables and figures.

``python -m service.evaluation.evidence --data imagenette=DIR --data grocery=DIR``, or ``make evidence``.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from service.errors import BrokenModel, LowfirstError
from service.evaluation.contests import Comparison, Evidence
from service.evaluation.kept import LOGITS, Kept, keep
from service.evaluation.milliseconds import Milliseconds, key, measure, measured_with
from service.evaluation.tables import drawn, written
from service.training.run_folder import LOG, OPTIONS

COMPARISONS, RUNS, MILLISECONDS = "comparisons.toml", "runs", "milliseconds.json"
PAGE = "results.md"


@dataclass(frozen=True, slots=True)
class State:
    """The state of a run: ``kept`` (stored with the documents), ``trained`` but not stored, ``begun``, or
    ``missing``.
    """

    run: str
    is_kept: bool
    epochs_done: int = 0
    epochs: int = 0

    @property
    def is_trained(self) -> bool:
        """Whether the run has weights that can be tested."""
        return 0 < self.epochs <= self.epochs_done

    def said(self, command: str) -> str:
        """A line of the list. ``command`` starts or continues the run."""
        if self.is_kept:
            return f"done     {self.run}"
        if self.is_trained:
            return f"trained  {self.run}  (its logits are not kept yet: say where the photographs are)"
        if self.epochs:
            return f"begun    {self.run}  at epoch {self.epochs_done} of {self.epochs}: {command}"
        return f"missing  {self.run}: {command}"


def state(run: str, kept: Path, runs: Path) -> State:
    """The state of ``run``. The folder ``kept`` may have it without weights, the folder ``runs`` with weights."""
    is_kept = (kept / run / LOGITS).is_file()
    options, log = runs / run / OPTIONS, runs / run / LOG
    if not options.is_file():
        return State(run, is_kept)
    lines = []
    if log.is_file():
        with log.open(newline="") as file:
            lines = list(csv.DictReader(file))
    return State(run, is_kept, len(lines), int(json.loads(options.read_text())["epochs"]))


def read(folder: Path) -> tuple[dict[str, Comparison], Mapping[str, Any]]:
    """The comparisons in ``folder``, by name, and the other entries of its file."""
    raw = tomllib.loads((folder / COMPARISONS).read_text())
    found = [Comparison(**{**each, "multi": tuple(each["multi"])}) for each in raw["comparison"]]
    return {comparison.name: comparison for comparison in found}, raw


def evidence(folder: Path) -> Evidence:
    """All comparisons and stored runs in ``folder``.

    Raises BrokenModel if a file cannot be read, or if two runs were tested on different photographs.
    """
    comparisons, raw = read(folder)
    wanted = {run for comparison in comparisons.values() for run in comparison.runs}
    kept = {run: Kept.read(folder / RUNS / run) for run in wanted if (folder / RUNS / run / LOGITS).is_file()}
    for data in {comparison.data for comparison in comparisons.values()}:
        _check_same_photographs(
            {run: kept[run] for each in comparisons.values() if each.data == data for run in each.runs if run in kept}
        )
    return Evidence(comparisons, raw["bar"], raw["contrast"], kept, Milliseconds.read(folder / MILLISECONDS))


def _check_same_photographs(kept: Mapping[str, Kept]) -> None:
    """Check that all runs list the same classes of photographs in the same order. Raises BrokenModel naming two
    runs.
    """
    first, *others = kept or [""]
    for other in others:
        if not torch.equal(kept[first].passes.targets, kept[other].passes.targets):
            raise BrokenModel(f"{first} and {other} were tested on other photographs", field="runs", value=other)


def update(folder: Path, runs: Path, data: Mapping[str, Path], workers: int | None = None) -> Iterator[str]:
    """Store the runs that were trained since, if ``data`` has their data set. Yields the lines of the list of
    states.
    """
    comparisons, _ = read(folder)
    for comparison in comparisons.values():
        yield comparison.title
        where = data.get(comparison.data)
        for run in comparison.runs:
            found = state(run, folder / RUNS, runs)
            if found.is_trained and not found.is_kept and where is not None:
                keep(runs / run, where, folder / RUNS / run, half=run in comparison.high_runs, workers=workers)
                found = state(run, folder / RUNS, runs)
            yield "  " + found.said(
                f"make runs/{run} DATA={where or comparison.data.upper()} {comparison.make}".rstrip()
            )


def time_all(folder: Path) -> Milliseconds:
    """Measure every network with a stored run, in this process. The machine must be otherwise idle."""
    found = evidence(folder)
    stages = {}
    for kept in found.kept.values():
        classes, pixels = kept.passes.logits[0].shape[1], kept.options["resolution"]
        network, options = kept.options["network"], kept.options["network_options"]
        sizes = [pixels] if kept.half is None else [pixels, pixels // 2]
        for side in sizes:
            name = key(network, classes, side, options)
            if name not in stages:
                stages[name] = measure(network, classes, side, options)
    return Milliseconds(measured_with(), stages)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where results.md and results/ are")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="where photographs are")
    parser.add_argument("--workers", type=int, help="processes that decode; default: one per core")
    parser.add_argument("--time", action="store_true", help="measure milliseconds first: on a machine that is idle")
    given = parser.parse_args(arguments)
    folder = given.docs / "results"
    pairs = [each.partition("=") for each in given.data]
    try:
        for line in update(folder, given.runs, {name: Path(at) for name, _, at in pairs if at}, given.workers):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        if given.time:
            time_all(folder).write(folder / MILLISECONDS)
        page = given.docs / PAGE
        page.write_text(written(page.read_text(), drawn(evidence(folder), folder)))
    except LowfirstError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()

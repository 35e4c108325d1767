"""Compares single-scale networks, naive cascades and multi-scale networks over several seeds, from stored logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.evaluation.cascade import Cascade
from service.evaluation.comparison import right
from service.evaluation.kept import Kept
from service.evaluation.milliseconds import Milliseconds, key
from service.evaluation.passes import Bools
from service.evaluation.seeds import Trial
from service.networks.registry import SCALES

Unit = Literal["milliseconds", "multiply-adds"]
UNITS: tuple[Unit, ...] = ("milliseconds", "multiply-adds")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One base network with one recipe, as defined in ``comparisons.toml``.

    Attributes:
        name: name of its table and figure.
        network, pixels, recipe, seeds: those of its runs.
        data: name of its data set.
        multi: kinds of multi-scale networks: ``ms`` or ``ms3``, followed by a word.
        make: further arguments of the command that trains a run.
        low: whether there is a single-scale network at half the resolution.
    """

    name: str
    title: str
    network: str
    pixels: int
    recipe: str
    seeds: int
    data: str
    multi: tuple[str, ...]
    make: str = ""
    low: bool = True

    def high_run(self, seed: int) -> str:
        """Name of the single-scale run at the high resolution."""
        return self._run(self.network, self.pixels, "", seed)

    def low_run(self, seed: int) -> str:
        """Name of the single-scale run at half that resolution."""
        return self._run(self.network, self.pixels // 2, "", seed)

    def multi_run(self, kind: str, seed: int) -> str:
        """Name of a multi-scale run."""
        scales, _, word = kind.partition("-")
        prefix = next(prefix for prefix in SCALES if prefix == f"{scales}_")
        return self._run(prefix + self.network, self.pixels, word, seed)

    @property
    def high_runs(self) -> list[str]:
        """Names of the single-scale runs at the high resolution, for every seed."""
        return [self.high_run(seed) for seed in range(self.seeds)]

    @property
    def runs(self) -> list[str]:
        """Names of all runs; those of the first seed come first."""
        found = []
        for seed in range(self.seeds):
            found += [self.high_run(seed), *([self.low_run(seed)] if self.low else [])]
            found += [self.multi_run(kind, seed) for kind in self.multi]
        return found

    def _run(self, network: str, pixels: int, word: str, seed: int) -> str:
        of_seed = f"seed{seed}" if seed else ""
        return "-".join(filter(None, (network, str(pixels), word, self.recipe, of_seed)))


@dataclass(frozen=True, slots=True)
class Contest:
    """The stored runs of one comparison. A seed is left out wherever a network that it lacks is needed."""

    of: Comparison
    kept: Mapping[str, Kept]
    times: Milliseconds

    def costs(self, run: Kept, unit: Unit, half: bool = False) -> tuple[float, ...] | None:
        """Costs of each single stage, or, with ``half``, of a single-scale network at half its resolution. None if not
        measured.
        """
        if unit == "multiply-adds":
            return (run.half_mmacs,) if half else run.mmacs
        options = run.options
        pixels = options["resolution"] // (2 if half else 1)
        classes = run.passes.logits[0].shape[1]
        return self.times.stages.get(key(options["network"], classes, pixels, options["network_options"]))

    def high(self) -> list[Kept]:
        """The single-scale runs at the high resolution."""
        return self._there([self.of.high_run(seed) for seed in self._seeds])

    def low(self) -> list[Kept]:
        """The single-scale runs at half that resolution."""
        return self._there([self.of.low_run(seed) for seed in self._seeds])

    def multi(self, kind: str) -> list[Kept]:
        """The multi-scale runs of one kind."""
        return self._there([self.of.multi_run(kind, seed) for seed in self._seeds])

    def trials(self, kind: str, unit: Unit) -> list[Trial]:
        """A trial for every seed that has both the multi-scale and the single-scale network."""
        found = []
        for seed in self._seeds:
            high, low = self.kept.get(self.of.high_run(seed)), self.kept.get(self.of.low_run(seed))
            multi = self.kept.get(self.of.multi_run(kind, seed))
            if high is None or multi is None:
                continue
            own, single = self.costs(multi, unit), self.costs(high, unit)
            if own is None or single is None:
                continue
            naive = None if low is None else self._naive(low, high, unit)
            found.append(Trial(_cascade(multi, own), right(high.passes), single[-1], naive))
        return found

    def naive(self, unit: Unit) -> list[tuple[Cascade, float]]:
        """For each seed, the naive cascade of its two single-scale networks, and the cost of the larger one alone."""
        found = []
        for seed in self._seeds:
            high, low = self.kept.get(self.of.high_run(seed)), self.kept.get(self.of.low_run(seed))
            cascade = None if high is None or low is None else self._naive(low, high, unit)
            if cascade is not None:
                found.append((cascade, cascade.full_cost))
        return found

    def alone(self, kind: str, unit: Unit) -> list[Cascade]:
        """The multi-scale networks as cascades, without baselines."""
        costs = [(run, self.costs(run, unit)) for run in self.multi(kind)]
        return [_cascade(run, cost) for run, cost in costs if cost is not None]

    @property
    def _seeds(self) -> range:
        return range(self.of.seeds)

    def _there(self, runs: Sequence[str]) -> list[Kept]:
        return [self.kept[run] for run in runs if run in self.kept]

    def _naive(self, low: Kept, high: Kept, unit: Unit) -> Cascade | None:
        costs = self.costs(low, unit), self.costs(high, unit)
        if costs[0] is None or costs[1] is None:
            return None
        return Cascade.naive([low.passes, high.passes], (costs[0][-1], costs[1][-1]))


def _cascade(run: Kept, costs: Sequence[float]) -> Cascade:
    """The cascade at temperature 1. The naive cascade is at 1 too, because neither is calibrated."""
    return Cascade.of(run.passes, (1.0,) * len(costs), costs)


def averaged(run: Kept) -> Bools:
    """Whether the averaged logits of a single-scale network, at half and at full resolution, are right."""
    assert run.half is not None
    both = run.half.logits[0] + run.passes.logits[0]
    return (both.argmax(1) == run.passes.targets).numpy()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All comparisons, their goals, and their stored runs."""

    comparisons: Mapping[str, Comparison]
    bars: Sequence[Mapping[str, Any]]
    contrasts: Sequence[Mapping[str, Any]]
    kept: Mapping[str, Kept]
    times: Milliseconds

    def contest(self, name: str) -> Contest:
        """The stored runs of the comparison ``name``."""
        return Contest(self.comparisons[name], self.kept, self.times)

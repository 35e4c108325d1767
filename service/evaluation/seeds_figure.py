"""Top-1 against cost, mean over seeds, each seed thin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.evaluation.cascade import Cascade
from service.evaluation.comparison import right
from service.evaluation.contests import UNITS, Contest, Unit
from service.evaluation.figures import CURVES, NAIVE, ORANGE, QUIET, TEAL, draw

LABELS = {"milliseconds": "mean milliseconds per image", "multiply-adds": "mean multiply-adds per image, M"}
POINTS = 200


def figure(path: Path, contest: Contest, kinds: Mapping[str, str]) -> None:
    """One panel for each unit that was measured, milliseconds first; ``kinds``: what networks are called."""
    units = [unit for unit in UNITS if contest.naive(unit) or any(contest.alone(k, unit) for k in contest.of.multi)]

    def paint(figure: Any) -> None:
        panels = figure.subplots(1, len(units), squeeze=False, sharey=True)[0]
        for axes, unit in zip(panels, units, strict=True):
            _naive(axes, [cascade for cascade, _ in contest.naive(unit)])
            for kind, (colour, line) in zip(contest.of.multi, CURVES, strict=False):
                _curve(axes, contest.alone(kind, unit), colour, line, kinds[kind], 2.2)
            _dots(axes, contest, unit)
            axes.set_xlabel(LABELS[unit])
            axes.set_xlim(left=0)
            axes.margins(y=0.08)
        panels[0].set_ylabel("top-1, %")
        panels[0].set_title(contest.of.title, loc="left")
        panels[0].legend(loc="lower right", fontsize=9)

    draw(path, (5.4 * len(units) + 0.6, 4.6), paint)


def _naive(axes: Any, cascades: Sequence[Cascade]) -> None:
    _curve(axes, cascades, QUIET, NAIVE[0], "naive cascade", 1.6)


def _curve(axes: Any, cascades: Sequence[Cascade], colour: str, line: Any, name: str, width: float) -> None:
    if not cascades:
        return
    costs = np.linspace(cascades[0].costs[0], sum(cascades[0].costs), POINTS)
    accuracies = [100 * cascade.accuracy_at(costs) for cascade in cascades]
    for accuracy in accuracies if len(accuracies) > 1 else ():
        axes.plot(costs, accuracy, color=colour, lw=0.6, alpha=0.5)
    axes.plot(costs, np.mean(accuracies, axis=0), color=colour, ls=line, lw=width, label=name)


def _dots(axes: Any, contest: Contest, unit: Unit) -> None:
    """The single-scale networks."""
    for runs, colour, pixels in (
        (contest.high(), ORANGE, contest.of.pixels),
        (contest.low(), TEAL, contest.of.pixels // 2),
    ):
        costs = contest.costs(runs[0], unit) if runs else None
        if costs is not None:
            accuracies = [100 * float(right(run.passes).mean()) for run in runs]
            axes.plot([costs[-1]] * len(runs), accuracies, "s", ms=4, mfc="white", mec=colour, ls="")
            axes.plot(
                costs[-1], np.mean(accuracies), "s", ms=8, color=colour, ls="", label=f"single-scale, {pixels} px"
            )

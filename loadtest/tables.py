"""Results for people: a table of each section, and a plot of the rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from loadtest.ratios import Row, Spread, show
from loadtest.sections.saturation import Saturation

COLOURS = {"lowfirst": "tab:red", "cascade": "tab:blue", "single": "tab:grey"}


def table(title: str, rows: Sequence[Row]) -> Table:
    """One line a row; a column for each name that a row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        numeric = not any(isinstance(row.get(column), str) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        drawn.add_row(*(_cell(row.get(column)) for column in columns))
    return drawn


def _cell(value: str | float | Spread | None) -> str:
    if value is None:
        return ""
    return show(value) if isinstance(value, float) else str(value)


def plot(results: Sequence[Saturation], path: Path) -> None:
    """Images a second of every contender, the median with least and most, a panel for each group and network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (result, network) for result in results for network in dict.fromkeys(lane.network for lane in result.lanes)
    ]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4.5), squeeze=False, layout="constrained")
    for (result, network), axis in zip(panels, axes[0], strict=True):
        lanes = [lane for lane in result.lanes if lane.network == network and lane.rounds]
        lanes.sort(key=lambda lane: Spread.of(lane.rates).median)
        for place, lane in enumerate(lanes):
            rate = Spread.of(lane.rates)
            kind = lane.contender.name if lane.contender.name in COLOURS else lane.contender.kind
            error = [[rate.median - rate.least], [rate.most - rate.median]]
            axis.barh(place, rate.median, xerr=error, color=COLOURS[kind], ecolor="black", capsize=3)
        axis.set_yticks(range(len(lanes)), [lane.contender.label for lane in lanes])
        axis.set_xlabel("images/s at 16 connections")
        axis.set_title(f"{network}, {result.group}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

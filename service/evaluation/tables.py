"""The tables of ``docs/results.md``, between comments that name them, and their figures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from service.errors import DataError
from service.evaluation.cascade import GAP_COSTS, Cascade
from service.evaluation.comparison import right
from service.evaluation.contests import UNITS, Contest, Evidence, Unit, averaged
from service.evaluation.kept import Kept
from service.evaluation.passes import Bools
from service.evaluation.seeds import (
    OverSeeds,
    Trial,
    cost_at_its_accuracy,
    gain_difference,
    lead_between,
    lead_over_naive,
    top1,
    top1_at_its_cost,
)
from service.evaluation.seeds_figure import figure

SHARES = (0.4, 0.6, 0.8, 1.0)
KINDS = {
    "ms": "MSNet",
    "ms-plain": "MSNet, the paper's sum",
    "ms-ungated": "MSNet without gates",
    "ms3": "MSNet of three scales",
}
NOT_MEASURED, NOT_RUN, NONE = "not measured", "not run", "-"
BLOCK = re.compile(r"(<!-- drawn: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def drawn(evidence: Evidence, folder: Path) -> dict[str, str]:
    """Every table as Markdown, by name; figures are written into ``folder``."""
    found = {"bars": _bars(evidence), "contrasts": _contrasts(evidence)}
    for name in evidence.comparisons:
        contest = evidence.contest(name)
        found[name] = _comparison(contest)
        if any(contest.multi(kind) for kind in contest.of.multi):
            picture = folder / f"seeds-{name}.png"
            figure(picture, contest, KINDS)
            found[name] += f"\n\n![{contest.of.title}]({folder.name}/{picture.name})"
    return found


def written(page: str, tables: Mapping[str, str]) -> str:
    """``page`` with each table in its place. Raises DataError: it has a place for a table that is not there."""

    def put(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            raise DataError(f"results.md has a place for {match['name']!r}: it must be one of {', '.join(tables)}")
        return f"{match[1]}\n{tables[match['name']]}\n\n{match[3]}"

    return BLOCK.sub(put, page)


def _comparison(contest: Contest) -> str:
    parts = [_networks(contest), _at_shares(contest), _verdicts(contest)]
    return "\n\n".join(part for part in parts if part) or "Not run."


def _networks(contest: Contest) -> str:
    """Every network by itself."""
    high, low = contest.high(), contest.low()
    pixels, half = contest.of.pixels, contest.of.pixels // 2
    rows = []
    if high:
        at_half = [right(run.half) for run in high if run.half is not None]
        both = [averaged(run) for run in high if run.half is not None]
        rows = [_network(contest, f"single-scale, {pixels} px", high, [right(run.passes) for run in high])]
        if at_half:
            rows += [
                _network(contest, f"the same at {half} px", high, at_half, full=0, half=1),
                _network(contest, f"averaged, {half} + {pixels} px", high, both, half=1),
            ]
    if low:
        rows.append(_network(contest, f"single-scale, trained at {half} px", low, [right(run.passes) for run in low]))
    for kind in contest.of.multi:
        runs = contest.multi(kind)
        depth = len(runs[0].passes.logits) if runs else 0
        for stage in range(depth):
            name = f"{KINDS[kind]}, {'all stages' if stage == depth - 1 else f'stage {stage + 1}'}"
            rights = [run.passes.answers().right[:, stage] for run in runs]
            rows.append(_network(contest, name, runs, rights, full=stage + 1))
    return _table(["", "ms", "multiply-adds, M", "top-1, %", "seeds"], rows) if rows else ""


def _network(
    contest: Contest, name: str, runs: Sequence[Kept], rights: Sequence[Bools], full: int = 1, half: int = 0
) -> list[str]:
    """A line: what the first ``full`` stages cost together, and ``half`` times the network at half its resolution."""
    row = [name]
    for unit in UNITS:
        own = contest.costs(runs[0], unit) if full else ()
        small = contest.costs(runs[0], unit, half=True) if half else ()
        row.append(NOT_MEASURED if own is None or small is None else _cost(sum(own[:full]) + sum(small), unit))
    return [*row, _share(top1(rights)), str(len(rights))]


def _at_shares(contest: Contest) -> str:
    """Top-1 at shares of the single-scale network's cost, mean over seeds."""
    rows = []
    naive: dict[Unit, list[tuple[Cascade, float]]] = {unit: contest.naive(unit) for unit in UNITS}
    if any(naive.values()):
        rows.append(["naive cascade", *(cell for unit in UNITS for cell in _cells(naive[unit]))])
    for kind in contest.of.multi:
        trials = {unit: [(t.multi, t.single_cost) for t in contest.trials(kind, unit)] for unit in UNITS}
        if any(trials.values()):
            rows.append([KINDS[kind], *(cell for unit in UNITS for cell in _cells(trials[unit]))])
    if not rows:
        return ""
    head = [f"{100 * share:.0f} % of its {unit}" for unit in UNITS for share in SHARES]
    return _table(["top-1, %, at", *head], rows)


def _cells(cascades: Sequence[tuple[Cascade, float]]) -> list[str]:
    if not cascades:
        return [NOT_MEASURED] * len(SHARES)
    cells = []
    for share in SHARES:
        if any(share * full < cascade.costs[0] for cascade, full in cascades):  # less than its first stage takes
            cells.append(NONE)
        else:
            cells.append(f"{100 * np.mean([c.accuracy_at(np.array([share * full]))[0] for c, full in cascades]):.1f}")
    return cells


def _verdicts(contest: Contest) -> str:
    rows = []
    for kind in contest.of.multi:
        trials = {unit: contest.trials(kind, unit) for unit in UNITS}
        if not any(trials.values()):
            continue
        rows.append(
            [KINDS[kind]]
            + [_percent(cost_at_its_accuracy(each)) if each else NOT_MEASURED for each in trials.values()]
            + [_points(top1_at_its_cost(each)) if each else NOT_MEASURED for each in trials.values()]
            + [_lead(each) if each else NOT_MEASURED for each in trials.values()]
        )
    if not rows:
        return ""
    head = ["against the single-scale network", "ms at its accuracy, % of its", "multiply-adds, %",
            "top-1 at its ms, points", "at its multiply-adds", "lead over the naive cascade, ms, points",
            "by multiply-adds"]  # fmt: skip
    return _table(head, rows)


def _lead(trials: Sequence[Trial]) -> str:
    if any(t.naive and max(t.naive.costs[0], t.multi.costs[0]) > GAP_COSTS[0] * t.single_cost for t in trials):
        return NONE  # a first stage takes more than the cheapest that is compared
    found = lead_over_naive(trials)
    return NONE if found is None else _points(found)


def _bars(evidence: Evidence) -> str:
    """What was to be reached, and whether it was."""
    rows = []
    for bar in evidence.bars:
        contest = evidence.contest(bar["of"])
        for measure, said in (
            ("cost", "multiply-adds at its accuracy, at most {} %"),
            ("milliseconds", "milliseconds at its accuracy, at most {} %"),
            ("gain", "top-1 at its multiply-adds, at least {:+} points"),
            ("naive", "lead over the naive cascade, interval above {:g}"),
        ):
            if measure in bar:
                rows.append([contest.of.title, said.format(bar[measure]), *_bar(contest, measure, bar[measure])])
    return _table(["", "asked", "found", ""], rows)


def _bar(contest: Contest, measure: str, asked: float) -> tuple[str, str]:
    unit: Unit = "milliseconds" if measure == "milliseconds" else "multiply-adds"
    trials = contest.trials("ms", unit)
    if not trials:
        was_run = bool(contest.trials("ms", "multiply-adds"))
        return (NOT_MEASURED if was_run else NOT_RUN), NONE
    if measure in ("cost", "milliseconds"):
        found: OverSeeds | None = cost_at_its_accuracy(trials)
        assert found is not None
        return _percent(found), _verdict(100 * found.mean <= asked, found)
    if measure == "gain":
        found = top1_at_its_cost(trials)
        return _points(found), _verdict(100 * found.mean >= asked, found)
    found = lead_over_naive(trials)
    return (NOT_RUN, NONE) if found is None else (_points(found), _verdict(100 * found.low > asked, found))


def _verdict(is_reached: bool, found: OverSeeds) -> str:
    seeds = len(found.each)
    return f"{'reached' if is_reached else '**not reached**'}, {seeds} seed{'s' if seeds > 1 else ''}"


def _contrasts(evidence: Evidence) -> str:
    rows = []
    for contrast in evidence.contrasts:
        pair = [(evidence.contest(name), kind) for name, kind in (contrast["some"], contrast["others"])]
        row = [contrast["says"]]
        for unit in UNITS:
            some, others = (_trials(contest, kind, unit) for contest, kind in pair)
            count = min(len(some), len(others))
            compare = gain_difference if contrast["measure"] == "gain" else lead_between
            row.append(_points(compare(some[:count], others[:count])) if count else NONE)
            seeds = count
        rows.append([*row, str(seeds)])
    return _table(["points of top-1", "at equal milliseconds", "at equal multiply-adds", "seeds"], rows)


def _trials(contest: Contest, kind: str, unit: Unit) -> list[Trial]:
    """With the single-scale network where there is one, or with none that is ever right, at the last stage's cost."""
    trials = contest.trials(kind, unit)
    return trials or [Trial(c, np.zeros(len(c.right), dtype=bool), c.full_cost) for c in contest.alone(kind, unit)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("|  |", "| |")


def _cost(value: float, unit: Unit) -> str:
    return f"{value:.2f}" if unit == "milliseconds" else f"{value:.1f}"


def _share(found: OverSeeds) -> str:
    return f"{100 * found.mean:.2f}{_error(found)}"


def _percent(found: OverSeeds) -> str:
    if math.isinf(found.mean):
        never = sum(map(math.isinf, found.each))
        return "never" if len(found.each) == 1 else f"never in {never} of {len(found.each)} seeds"
    return f"{100 * found.mean:.0f}{_error(found, 0)} ({_end(found.low)} to {_end(found.high)})"


def _end(share: float) -> str:
    return "never" if math.isinf(share) else f"{100 * share:.0f}"


def _points(found: OverSeeds) -> str:
    return f"{100 * found.mean:+.1f}{_error(found, 1)} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _error(found: OverSeeds, digits: int = 2) -> str:
    return "" if math.isnan(found.error) else f" ± {100 * found.error:.{digits}f}"

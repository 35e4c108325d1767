"""How the threshold follows the traffic: what was asked with a live table, solved again and again. Pure.

A threshold is never lower than the latest table certifies, so at any time the promise is broken with a probability of
at most 5 %, once that table holds no image from before a shift. It rises at once; it falls only where that is worth it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from service.calibration.live import LiveTable
from service.errors import InvalidOption
from service.state.base import BUDGETS, ThresholdConfig

# Hysteresis: a threshold that need not change does so only HOLD_SECONDS after the last change, and only if this share
# of the images then ends at another stage. A budget keeps a reserve of this share, so that chance rarely changes it.
HOLD_SECONDS = 60.0
WORTHWHILE = 0.01
UNUSED = 0.02

CHANGES = 50  # number kept here; the log has all


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the threshold. ``at``: seconds since 1970; ``before``: None for the first."""

    at: float
    before: float | None
    after: float
    why: str


@dataclass(frozen=True, slots=True)
class Followed:
    """A threshold that follows the traffic.

    Attributes:
        asked: the goal.
        threshold: in force.
        lost: why the goal cannot be reached now; None if it can.
        changes: the latest changes, oldest first; at least one.
    """

    asked: ThresholdConfig
    threshold: float
    lost: str | None
    changes: tuple[Change, ...]

    @property
    def since(self) -> float:
        """Time of the last change."""
        return self.changes[-1].at

    def moved(self, now: float, threshold: float, why: str) -> Followed:
        """A copy with another threshold."""
        change = Change(now, self.threshold, threshold, why)
        return replace(self, threshold=threshold, changes=(*self.changes, change)[-CHANGES:])

    def as_json(self) -> dict[str, Any]:
        """For ``of_json``."""
        return asdict(self)

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Followed:
        """Inverse of ``as_json``."""
        return cls(
            ThresholdConfig(**told["asked"]),
            told["threshold"],
            told["lost"],
            tuple(Change(**change) for change in told["changes"]),
        )


class Standing:
    """The state of following for one engine, if any. Used in the event loop's thread."""

    def __init__(self) -> None:
        self.followed: Followed | None = None

    def applied(self, asked: ThresholdConfig) -> ThresholdConfig:
        """The goal, with the threshold in force."""
        followed = self.of(asked)
        return asked if followed is None else replace(asked, threshold=followed.threshold)

    def of(self, asked: ThresholdConfig) -> Followed | None:
        """The state that follows ``asked``; None if the stored table solves it, or following has not begun."""
        if asked.table == "stored" or self.followed is None or self.followed.asked != asked:
            return None
        return self.followed


def begin(asked: ThresholdConfig, now: float, before: Followed | None = None) -> Followed:
    """Follow, starting from the threshold solved when the goal was set; ``before`` is the previous state."""
    changes = () if before is None else before.changes
    change = Change(now, None if before is None else before.threshold, asked.threshold, "asked for")
    return Followed(asked, asked.threshold, None, (*changes, change)[-CHANGES:])


def solve_live(asked: ThresholdConfig, live: LiveTable, costs: Sequence[float]) -> float:
    """The threshold for recent traffic, but at least the floor.

    Args:
        costs: of each stage alone, in the unit of a budget.

    Raises:
        InvalidOption: even the first stage costs more than the budget.
    """
    if asked.goal in BUDGETS:
        if asked.value < costs[0]:
            raise InvalidOption(asked.goal, asked.value, f"at least {costs[0]:.4g}, the cost of the first stage")
        solved = live.within(asked.value, costs)
    else:
        solved = live.keeping(asked.value)
    return max(solved, asked.floor or 0.0)


def follow(state: Followed, live: LiveTable, costs: Sequence[float], now: float) -> Followed:
    """The state after a check of recent traffic. ``costs``: see ``solve_live``."""
    return _hold_budget(state, live, costs, now) if state.asked.goal in BUDGETS else _keep_promise(state, live, now)


def _keep_promise(state: Followed, live: LiveTable, now: float) -> Followed:
    value = state.asked.value
    certified = live.keeping(value)
    wanted = max(certified, state.asked.floor or 0.0)
    lost = None
    if certified >= 1 and value < 1:
        missing = live.missing(state.asked.goal, value)
        lost = (
            f"{missing[0]:.15g} sampled images are needed, {missing[1]} exist"
            if missing
            else f"no threshold below 1 is certified by the latest {live.images} sampled images"
        )
    state = replace(state, lost=lost)
    if wanted > state.threshold:
        return state.moved(now, wanted, lost or f"an agreement of {value:g} needs it")
    if wanted < state.threshold and _is_worth_it(state, live, wanted, now):
        return state.moved(now, wanted, f"an agreement of {value:g} allows it")
    return state


def _hold_budget(state: Followed, live: LiveTable, costs: Sequence[float], now: float) -> Followed:
    budget = state.asked.value
    if live.missing(state.asked.goal, budget) is not None:
        return state
    wanted = max(live.within((1 - UNUSED) * budget, costs), state.asked.floor or 0.0)
    mean = live.mean_cost(state.threshold, costs)
    must = mean > budget and wanted < state.threshold
    may = mean <= budget and wanted > state.threshold and _is_worth_it(state, live, wanted, now)
    if must or may:
        state = state.moved(now, wanted, f"recent images cost {mean:.4g} each; the budget is {budget:g}")
        mean = live.mean_cost(wanted, costs)
    lost = f"recent images cost {mean:.4g} each; the budget is {budget:g}, and the threshold cannot be lower"
    return replace(state, lost=lost if mean > budget else None)


def _is_worth_it(state: Followed, live: LiveTable, wanted: float, now: float) -> bool:
    moved = abs(live.exit_rate(wanted) - live.exit_rate(state.threshold))
    return now - state.since >= HOLD_SECONDS and moved >= WORTHWHILE

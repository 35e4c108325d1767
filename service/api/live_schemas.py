"""Bodies of answers about the traffic of today: its table, its drift, and what follows it."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, Field

from service.calibration_table import CalibrationTable
from service.engine.follow import Change, Followed
from service.engine.periods import Done
from service.inference.calibration import Calibration, interval
from service.inference.drift import LEVEL, TESTS, Drift
from service.inference.live import LiveTable
from service.state.base import Goal, Table


class ChangeAnswer(BaseModel):
    """One move of a threshold that follows the traffic."""

    at: datetime
    before: float | None = Field(description="Null of the first.")
    after: float
    why: str


class FollowedAnswer(BaseModel):
    """How a threshold follows the traffic of this server."""

    since: datetime = Field(description="When it was moved last.")
    lost: str | None = Field(description="Why what was asked cannot be kept now; null where it is.")
    changes: list[ChangeAnswer] = Field(description="The latest 50, the oldest first; the log has all.")

    @staticmethod
    def of(followed: Followed | None) -> FollowedAnswer | None:
        """As a body; None where nothing is followed."""
        if followed is None:
            return None
        changes = [_change(change) for change in followed.changes]
        return FollowedAnswer(since=changes[-1].at, lost=followed.lost, changes=changes)


def _change(change: Change) -> ChangeAnswer:
    return ChangeAnswer(
        at=datetime.fromtimestamp(change.at, UTC), before=change.before, after=change.after, why=change.why
    )


class ComparisonAnswer(BaseModel):
    """One two-sample test of live images against the calibration's."""

    of: str = Field(description="exit_rate, confidence (of the first stage), agreement, or classes (of the last).")
    test: str
    images: int = Field(description="Live ones.")
    stored: float | None = Field(description="The share compared, where it is one.")
    live: float | None
    p_value: float | None = Field(description="Null of too few images, or where the stored table does not tell.")
    differs: bool | None = Field(description="Whether p_value is below the level of each test.")
    untested: str | None = Field(None, description="Why there is no p_value, and what gives one; null where there is.")


class DriftAnswer(BaseModel):
    """Whether today's images are like those of the calibration."""

    differs: bool | None = Field(description="Whether any test says that they are not; null where none could be made.")
    notice: str | None = Field(description="The same in words; null where they are alike.")
    level: float = Field(
        description="Probability that images that are alike are said not to be, by all tests together."
    )
    level_of_each: float = Field(description="The part of it that each test has (Bonferroni).")
    threshold: float
    tests: list[ComparisonAnswer]

    @staticmethod
    def of(drift: Drift | None) -> DriftAnswer | None:
        """As a body; None where nothing was compared."""
        if drift is None:
            return None
        tests = [
            ComparisonAnswer(
                of=test.of,
                test=test.name,
                images=test.images,
                stored=test.stored,
                live=test.live,
                p_value=test.p_value,
                differs=test.differs,
                untested=test.untested,
            )
            for test in drift.tests
        ]
        return DriftAnswer(
            differs=drift.differs,
            notice=drift.notice,
            level=LEVEL,
            level_of_each=LEVEL / TESTS,
            threshold=drift.threshold,
            tests=tests,
        )


class RowAnswer(BaseModel):
    """Counts at one threshold."""

    threshold: float
    ends: list[int] = Field(description="Images that end at each stage; they sum to the table's.")
    disagreements: int = Field(description="Images that end early with another answer than the last stage's.")
    agreement: float | None
    agreement_at_least: float = Field(description="Bound at 95 % confidence (Clopper-Pearson).")


class TableAnswer(BaseModel):
    """A calibration table."""

    images: int
    rows: list[RowAnswer]

    @staticmethod
    def of(calibration: Calibration) -> TableAnswer:
        """As a body."""
        table: CalibrationTable = calibration.table
        rows = [
            RowAnswer(
                threshold=row.threshold,
                ends=list(row.ends),
                disagreements=row.disagreements,
                agreement=1 - row.disagreements / table.n if table.n else None,
                agreement_at_least=calibration.agreement_at_least(row),
            )
            for row in table.rows
        ]
        return TableAnswer(images=table.n, rows=rows)


class LiveAnswer(BaseModel):
    """The table of live traffic beside the stored one."""

    model: str
    threshold: float = Field(description="In force.")
    goal: Goal
    value: float
    table: Table = Field(description="What the goal is held by.")
    images: int = Field(description="Drawn images that the live table counts.")
    window: int = Field(description="The most that it counts: the latest.")
    stands_for: float = Field(description="Images that the drawn ones stand for: 1 / probability of each, summed.")
    drawn_per_second: float | None
    adapts_in_seconds: float | None = Field(
        description="How long a shift of the traffic takes to fill the table, at that rate; null where it is unknown."
    )
    exit_rate: float | None = Field(description="Of the latest images, drawn or not, at the threshold.")
    exit_rate_interval: tuple[float, float] | None = Field(description="Where it lies with 95 % confidence.")
    live: TableAnswer
    stored: TableAnswer | None
    drift: DriftAnswer | None
    followed: FollowedAnswer | None = Field(description="Where the threshold follows the traffic; else null.")


def exit_rate_of(live: LiveTable) -> tuple[float | None, tuple[float, float] | None]:
    """Of the latest images at the threshold in force, and its interval; None without any."""
    passed = live.passed
    if not passed.images:
        return None, None
    return passed.exits / passed.images, interval(passed.exits, passed.images)


class PeriodState(BaseModel):
    """What was done in a time; null where nothing was."""

    seconds: float
    images: int
    images_per_second: float | None
    exit_rate: float | None
    mean_mmacs: float | None
    mean_ms: float | None = Field(description="Compute of one worker per image that was not cached.")

    @staticmethod
    def of(totals: Done) -> PeriodState:
        """As a body."""
        images = totals.images
        return PeriodState(
            seconds=totals.seconds,
            images=round(images),
            images_per_second=images / totals.seconds if totals.seconds else None,
            exit_rate=totals.exited / images if images else None,
            mean_mmacs=totals.mmacs / images if images else None,
            mean_ms=1e3 * totals.compute_seconds / totals.computed if totals.computed else None,
        )

"""Schemas of live traffic: its calibration table, its drift, and the threshold that follows it."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, Field

from service.calibration.certify import Calibration, interval
from service.calibration.drift import LEVEL, TESTS, Drift
from service.calibration.follow import Change, Followed
from service.calibration.live import LiveTable
from service.calibration_table import CalibrationTable
from service.engine.periods import Done
from service.state.base import Goal, Table


class ChangeAnswer(BaseModel):
    """One change of a threshold that follows the traffic."""

    at: datetime
    before: float | None = Field(description="Null for the first change.")
    after: float
    why: str


class FollowedAnswer(BaseModel):
    """How a threshold follows the traffic of this server."""

    since: datetime = Field(description="Time of the last change.")
    lost: str | None = Field(description="Why the goal cannot be reached now; null if it can.")
    changes: list[ChangeAnswer] = Field(description="The latest 50 changes, oldest first; the log has all.")

    @staticmethod
    def of(followed: Followed | None) -> FollowedAnswer | None:
        """Convert; None if nothing is followed."""
        if followed is None:
            return None
        changes = [_change(change) for change in followed.changes]
        return FollowedAnswer(since=changes[-1].at, lost=followed.lost, changes=changes)


def _change(change: Change) -> ChangeAnswer:
    return ChangeAnswer(
        at=datetime.fromtimestamp(change.at, UTC), before=change.before, after=change.after, why=change.why
    )


class ComparisonAnswer(BaseModel):
    """One two-sample test of live images against the calibration images."""

    of: str = Field(
        description="exit_rate, confidence (of the first stage), agreement, or classes (of the last stage)."
    )
    test: str
    images: int = Field(description="Number of live images.")
    stored: float | None = Field(description="The compared share, if the test compares shares.")
    live: float | None
    p_value: float | None = Field(description="Null with too few images, or if the stored table lacks the data.")
    differs: bool | None = Field(description="Whether p_value is below level_of_each.")
    untested: str | None = Field(None, description="Why there is no p_value, and how to get one; null if there is one.")


class DriftAnswer(BaseModel):
    """Whether live images differ from the calibration images."""

    differs: bool | None = Field(description="Whether any test finds a difference; null if no test was possible.")
    notice: str | None = Field(description="The result in words; null without a difference.")
    level: float = Field(
        description="Probability that a difference is reported although there is none, over all tests."
    )
    level_of_each: float = Field(description="The same for each test (Bonferroni).")
    threshold: float
    tests: list[ComparisonAnswer]

    @staticmethod
    def of(drift: Drift | None) -> DriftAnswer | None:
        """Convert; None if nothing was compared."""
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
    ends: list[int] = Field(
        description="Images that end at each stage; their sum is the number of images in the table."
    )
    disagreements: int = Field(description="Images that exit early with another answer than that of the last stage.")
    agreement: float | None
    agreement_at_least: float = Field(description="Bound at 95 % confidence (Clopper-Pearson).")


class TableAnswer(BaseModel):
    """A calibration table."""

    images: int
    rows: list[RowAnswer]

    @staticmethod
    def of(calibration: Calibration) -> TableAnswer:
        """Convert."""
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
    threshold: float = Field(description="Threshold in force.")
    goal: Goal
    value: float
    table: Table = Field(description="Table that solves the goal.")
    images: int = Field(description="Sampled images in the live table.")
    window: int = Field(description="Most images in the live table; older ones are dropped.")
    stands_for: float = Field(description="Images that the samples represent: the sum of 1 / sampling probability.")
    drawn_per_second: float | None
    adapts_in_seconds: float | None = Field(
        description="Time in which new samples replace the whole table at the current rate; null if unknown."
    )
    exit_rate: float | None = Field(description="Exit rate of the latest images at this threshold, sampled or not.")
    exit_rate_interval: tuple[float, float] | None = Field(description="Two-sided 95 % interval of the exit rate.")
    live: TableAnswer
    stored: TableAnswer | None
    drift: DriftAnswer | None
    followed: FollowedAnswer | None = Field(description="Set if the threshold follows the traffic, otherwise null.")


def exit_rate_of(live: LiveTable) -> tuple[float | None, tuple[float, float] | None]:
    """Exit rate of the latest images at the threshold in force, and its interval; None without images."""
    passed = live.passed
    if not passed.images:
        return None, None
    return passed.exits / passed.images, interval(passed.exits, passed.images)


class PeriodState(BaseModel):
    """Totals of a period; null without images."""

    seconds: float
    images: int
    images_per_second: float | None
    exit_rate: float | None
    mean_mmacs: float | None
    mean_ms: float | None = Field(description="Compute of one worker per image that was not cached.")

    @staticmethod
    def of(totals: Done) -> PeriodState:
        """Convert."""
        images = totals.images
        return PeriodState(
            seconds=totals.seconds,
            images=round(images),
            images_per_second=images / totals.seconds if totals.seconds else None,
            exit_rate=totals.exited / images if images else None,
            mean_mmacs=totals.mmacs / images if images else None,
            mean_ms=1e3 * totals.compute_seconds / totals.computed if totals.computed else None,
        )

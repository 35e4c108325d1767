"""How good the answers of a server were over time, by its sample log and what was told of it later."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from service.calibration.certify import upper_bound
from service.evaluation.from_log import of_model, truth_of
from service.samples.reading import SavedLog
from service.samples.record import Sample, Truth
from service.stages import mean_cost
from service.store import read_spec

TAIL = 0.025  # on either side of an interval at 95 % confidence

# Where all that is logged is of less, it is told by the hour.
DAYS = 2 * 86_400


@dataclass(frozen=True, slots=True)
class Period:
    """Answers of one day or hour, UTC, or of all; shares of 1, None where nothing is known.

    Attributes:
        begin: as ISO 8601; empty of all.
        images: logged. ``exit_rate``: that ended before the last stage. ``mean_mmacs``: of one, in millions.
        labelled: whose truth was told. ``right``: of these, answered so.
        accuracy: ``right / labelled``, between ``at_least`` and ``at_most`` with 95 % confidence (Clopper and Pearson)
            if what was told is a random sample.
        drawn: whose every stage is known by chance. ``disagreements``: of these, answered otherwise than by the last.
        agreement: the others' share.
    """

    begin: str
    images: int
    exit_rate: float | None
    mean_mmacs: float | None
    labelled: int
    right: int
    accuracy: float | None
    at_least: float | None
    at_most: float | None
    drawn: int
    disagreements: int
    agreement: float | None


@dataclass(frozen=True, slots=True)
class History:
    """The answers of one model: ``total``, and of each period that has any, earliest first."""

    model: str
    log: str
    by: str
    total: Period
    periods: tuple[Period, ...]
    broken: int

    def to_json(self) -> str:
        """As ``lowfirst evaluate --from-log DIR --json`` prints it."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def history(folder: Path, where: str) -> History:
    """What the log at ``where`` tells of the model in ``folder``. Raises DataError: no log, or none of this model."""
    spec, log = read_spec(folder), SavedLog(where)
    truths = log.truths()
    hours: dict[int, _Counts] = defaultdict(_Counts)
    for sample in of_model(spec, log):
        hours[int(sample.time // 3600)].add(sample, truth_of(sample, truths))
    log.tell_broken()
    by_day = 3600 * (max(hours) - min(hours)) >= DAYS
    periods: dict[int, _Counts] = defaultdict(_Counts)
    total = _Counts()
    for hour, counts in sorted(hours.items()):
        total.plus(counts)
        periods[hour // 24 * 24 if by_day else hour].plus(counts)
    shown = [
        counts.period(datetime.fromtimestamp(3600 * hour, UTC).isoformat(), spec.mmacs)
        for hour, counts in periods.items()
    ]
    by = "day" if by_day else "hour"
    return History(spec.title, where, by, total.period("", spec.mmacs), tuple(shown), log.broken)


@dataclass(slots=True)
class _Counts:
    ends: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    labelled: int = 0
    right: int = 0
    drawn: int = 0
    disagreements: int = 0

    def add(self, sample: Sample, truth: Truth | None) -> None:
        self.ends[sample.stage] += 1
        if truth is not None:
            self.labelled += 1
            self.right += truth.answer == sample.answer
        if sample.drawn and sample.is_complete:
            self.drawn += 1
            self.disagreements += int(sample.outputs[-1].argmax()) != sample.answer

    def plus(self, other: _Counts) -> None:
        for stage, images in other.ends.items():
            self.ends[stage] += images
        self.labelled += other.labelled
        self.right += other.right
        self.drawn += other.drawn
        self.disagreements += other.disagreements

    def period(self, begin: str, mmacs: tuple[float, ...]) -> Period:
        images = sum(self.ends.values())
        shares = [self.ends[stage] / images if images else 0.0 for stage in range(len(mmacs))]
        right, labelled = self.right, self.labelled
        return Period(
            begin=begin,
            images=images,
            exit_rate=sum(shares[:-1]) if images else None,
            mean_mmacs=mean_cost(shares, mmacs) if images else None,
            labelled=labelled,
            right=right,
            accuracy=right / labelled if labelled else None,
            at_least=1 - upper_bound(labelled - right, labelled, TAIL) if labelled else None,
            at_most=upper_bound(right, labelled, TAIL) if labelled else None,
            drawn=self.drawn,
            disagreements=self.disagreements,
            agreement=1 - self.disagreements / self.drawn if self.drawn else None,
        )

"""Counts of what each threshold did on a set of photographs; part of ``model.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """Counts over the certifying images at one threshold.

    Attributes:
        threshold: an image exits at the first stage whose confidence is strictly greater.
        ends: images that end at each stage; their sum is the table's ``n``.
        disagreements: images that exit early with another answer than that of the last stage.
        right_last_wrong, wrong_last_right: of these, by which answer is right; None without labels.
        right: images with a right answer, wherever they end; None without labels.
    """

    threshold: float
    ends: tuple[int, ...]
    disagreements: int
    right_last_wrong: int | None = None
    wrong_last_right: int | None = None
    right: int | None = None

    @property
    def exited(self) -> int:
        """Images that end before the last stage."""
        return sum(self.ends[:-1])


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """One row per threshold, ascending from 0 to 1, measured with one runtime and precision on ``n`` images.

    ``default_threshold`` is for that runtime and precision; None uses the model's. ``is_labelled``: whether the images
    had labels. ``last_answers``: number of images that the last stage assigns to each class; None in tables of earlier
    releases.
    """

    runtime: str
    precision: str
    n: int
    rows: tuple[CalibrationRow, ...]
    default_threshold: float | None = None
    is_labelled: bool = True
    last_answers: tuple[int, ...] | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], depth: int) -> CalibrationTable:
        """Read a table of a model of ``depth`` stages. Raises KeyError, TypeError or ValueError."""
        named = dict(raw)
        if "is_labelled" not in named:  # of the first format, whose models have at most two stages
            named["rows"] = [_first_format(row, named["n"]) for row in named["rows"]]
        rows = tuple(CalibrationRow(**{**row, "ends": tuple(row["ends"])}) for row in named["rows"])
        answers = named.get("last_answers")
        table = cls(**{**named, "rows": rows, "last_answers": None if answers is None else tuple(answers)})
        _check(table, depth)
        return table


def _first_format(row: Mapping[str, Any], n: int) -> dict[str, Any]:
    return {
        "threshold": row["threshold"],
        "ends": (row["exited"], n - row["exited"]),
        "disagreements": row["disagreements"],
        "right_last_wrong": row["low_right_high_wrong"],
        "wrong_last_right": row["low_wrong_high_right"],
        "right": row["right"],
    }


def _check(table: CalibrationTable, depth: int) -> None:
    where = f"calibration ({table.runtime} {table.precision})"
    if not (isinstance(table.n, int) and table.n > 0):
        raise ValueError(f"{where}: n is {table.n!r}; it must be a whole number above 0")
    thresholds = [row.threshold for row in table.rows]
    if not thresholds or thresholds[0] != 0 or thresholds[-1] != 1 or thresholds != sorted(set(thresholds)):
        raise ValueError(f"{where}: thresholds must rise from 0 to 1")
    default = table.default_threshold
    if default is not None and not 0 <= default <= 1:
        raise ValueError(f"{where}: default_threshold is {default!r}; it must lie between 0 and 1")
    answers = table.last_answers
    if answers is not None and not (
        all(isinstance(each, int) and each >= 0 for each in answers) and sum(answers) == table.n
    ):
        raise ValueError(f"{where}: last_answers are {answers!r}; they must be counts of all {table.n} images")
    for row in table.rows:
        counts = [row.disagreements, row.right_last_wrong, row.wrong_last_right]
        known = [count for count in counts if count is not None]
        if (
            len(row.ends) != depth
            or sum(row.ends) != table.n
            or not all(isinstance(count, int) and 0 <= count <= row.exited for count in known)
            or not all(isinstance(end, int) and end >= 0 for end in row.ends)
            or not (row.right is None or 0 <= row.right <= table.n)
            or table.is_labelled == (None in (*counts, row.right))
        ):
            raise ValueError(f"{where}: counts at {row.threshold} do not fit {table.n} images and {depth} stages")

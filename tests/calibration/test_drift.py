"""Drift: said of what differs, and of images that are alike no oftener than its level."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from service.calibration.certify import THRESHOLDS, Calibration, count_table
from service.calibration.drift import LEVEL, Drift, drift
from service.calibration.live import LiveTable, Passed, Seen

MMACS = (10.0, 40.0)
THRESHOLD = 0.7


def draw(
    random: np.random.Generator, count: int, sure: float = 3.0, agree: float = 0.9, classes: tuple[float, ...] = ()
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Confidences (n, 1) and answers (n, 2)."""
    mix = classes or (0.25,) * 4
    confidence = random.beta(sure, 1, (count, 1))
    last = random.choice(len(mix), count, p=mix)
    first = np.where(random.random(count) < agree, last, (last + 1) % len(mix))
    return confidence, np.stack([first, last], axis=1)


def stored(seed: int = 0, count: int = 1500) -> Calibration:
    confidence, answers = draw(np.random.default_rng(seed), count)
    return Calibration(count_table(confidence, answers, None, "eager", "float32"), MMACS)


def live(random: np.random.Generator, count: int = 3000, drawn: int = 600, **of: object) -> LiveTable:
    confidence, answers = draw(random, count, **of)  # type: ignore[arg-type]
    first = tuple(int((confidence > each).sum()) for each in THRESHOLDS)
    seen = [
        Seen(float(i), tuple(c), tuple(a), 0.2)
        for i, (c, a) in enumerate(zip(confidence[:drawn].tolist(), answers[:drawn].tolist(), strict=True))
    ]
    return LiveTable.of(seen, Passed(count, first, int((confidence > THRESHOLD).sum()), 10.0), MMACS)


def differing(found: Drift) -> set[str]:
    return {test.of for test in found.tests if test.differs}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"sure": 1.5}, {"exit_rate", "confidence"}),
        ({"agree": 0.6}, {"agreement"}),
        ({"classes": (0.7, 0.1, 0.1, 0.1)}, {"classes"}),
    ],
)
def test_each_test_finds_what_it_is_about(changed: dict[str, object], expected: set[str]) -> None:
    found = drift(stored(), live(np.random.default_rng(1), **changed), THRESHOLD)  # type: ignore[arg-type]
    assert found.differs
    assert expected <= differing(found) <= expected | {"agreement"}  # those that exit are others too


def test_notice_names_both_rates() -> None:
    table = live(np.random.default_rng(1), sure=1.5)
    found = drift(stored(), table, THRESHOLD)
    assert found.notice is not None
    predicted, rate = stored().predict(THRESHOLD).exit_rate, table.passed.exits / 3000
    assert f"{rate:.1%} of the latest 3,000 images exit early, not {predicted:.1%}" in found.notice


def test_alike_images_are_said_to_differ_no_oftener_than_the_level() -> None:
    looks = 150
    random = np.random.default_rng(5)
    verdicts = [drift(stored(seed, 200), live(random, 300, 150), THRESHOLD).differs for seed in range(looks)]
    assert sum(map(bool, verdicts)) / looks <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / looks)


def test_few_images_and_tables_of_earlier_releases_tell_nothing() -> None:
    empty = LiveTable.of([], Passed(0, (0,) * len(THRESHOLDS), 0, 0.0), MMACS)
    found = drift(stored(), empty, THRESHOLD)
    assert (found.differs, found.notice) == (None, None)
    few = "there are 0 live images and 1500 of the calibration; it takes 50 of each"
    assert {(test.p_value, test.untested) for test in found.tests} == {(None, few)}
    confidence, answers = draw(np.random.default_rng(0), 1500)
    table = count_table(confidence, answers, None, "eager", "float32")
    old = Calibration(replace(table, last_answers=None), MMACS)
    classes = drift(old, live(np.random.default_rng(1)), THRESHOLD).tests[-1]
    assert (classes.of, classes.p_value) == ("classes", None)
    assert classes.untested is not None
    assert "`lowfirst calibrate MODEL` writes one that does" in classes.untested
    assert {test.untested for test in drift(stored(), live(np.random.default_rng(1)), THRESHOLD).tests} == {None}


def test_drift_comes_back_from_json_as_it_was() -> None:
    found = drift(stored(), live(np.random.default_rng(1)), THRESHOLD)
    assert Drift.of_json(json.loads(json.dumps(found.as_json()))) == found

"""What people are told of the last minute, on a clock that stands still unless told to move."""

from __future__ import annotations

import pytest

from service.engine import recent as recent_module
from service.engine.answer import Answer, Reason, Timing
from service.engine.recent import WINDOW_SECONDS, Recent


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(clock: Clock) -> Recent:
    return Recent(clock)


def answer(*confidences: float, stage: int = 0, mmacs: float = 10.0, seconds: float = 0.1) -> Answer:
    """Of a model of three stages, which ended at ``stage``."""
    reason: Reason = "escalated" if stage == 2 else "confident"
    names = ("low", "middle", "high")
    return Answer((), names, stage, reason, confidences or (0.9,), 0.5, mmacs, False, "tiny", 1, 1, Timing(), seconds)


def test_nothing_is_known_before_the_first_answer(recent: Recent) -> None:
    summary = recent.summary()
    assert (summary.images, summary.exit_rate, summary.mean_mmacs) == (0, None, None)
    assert summary.images_per_second == 0
    assert summary.latency_ms == {"p50": None, "p95": None, "p99": None}
    assert recent.ends_at(0.5, 2) == (0, 0)


def test_totals_are_of_all_answers(recent: Recent, clock: Clock) -> None:
    recent.add(answer(mmacs=10))
    clock.now += 10 * WINDOW_SECONDS
    recent.add(answer(stage=2, mmacs=50))
    recent.add(answer(stage=1, mmacs=0))
    summary = recent.summary()
    assert (summary.images, summary.exit_rate, summary.mean_mmacs) == (3, 2 / 3, 20)


def test_rate_is_over_the_time_since_the_start_while_that_is_short(recent: Recent, clock: Clock) -> None:
    for _ in range(20):
        recent.add(answer())
    assert recent.summary().images_per_second == 20  # over a second at least
    clock.now += 10
    assert recent.summary().images_per_second == 2


def test_rate_and_latency_forget_what_is_older_than_the_window(recent: Recent, clock: Clock) -> None:
    clock.now += WINDOW_SECONDS
    recent.add(answer(seconds=9.0))
    clock.now += WINDOW_SECONDS - 1
    recent.add(answer(seconds=0.5))
    assert recent.summary().images_per_second == 2 / WINDOW_SECONDS
    clock.now += 2
    assert recent.summary().images_per_second == 1 / WINDOW_SECONDS
    assert recent.summary().latency_ms == {"p50": 500, "p95": 500, "p99": 500}


def test_rate_is_right_when_more_is_answered_than_is_kept(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "ANSWERS", 50)
    recent = Recent(clock)
    for _ in range(300):
        clock.now += 0.1
        recent.add(answer())
    assert recent.summary().images_per_second == pytest.approx(10, rel=0.05)


def test_percentiles_are_by_nearest_rank(recent: Recent) -> None:
    for ms in reversed(range(1, 201)):
        recent.add(answer(seconds=ms / 1000))
    assert recent.summary().latency_ms == pytest.approx({"p50": 100, "p95": 190, "p99": 198})


def test_images_end_where_a_stage_is_strictly_surer_than_the_threshold(recent: Recent) -> None:
    for confidence in (0.2, 0.5, 0.5, 0.8):
        recent.add(answer(confidence))
    assert recent.ends_at(0.5, 2) == (1, 3)
    assert recent.ends_at(0.0, 2) == (4, 0)
    assert recent.ends_at(1.0, 2) == (0, 4)
    assert recent.ends_at(0.5, 1) == (4,)  # a single stage ends them all


def test_images_end_at_any_stage(recent: Recent) -> None:
    for confidences in ((0.9,), (0.3, 0.8), (0.3, 0.4)):
        recent.add(answer(*confidences))
    assert recent.ends_at(0.5, 3) == (1, 1, 1)
    assert recent.ends_at(0.85, 3) == (1, 0, 2)
    assert recent.ends_at(0.95, 3) == (0, 1, 2)  # the first ends at the next
    assert recent.confidences(3) == [0.3, 0.3, 0.9]  # the first stage's


def test_only_the_latest_images_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "CONFIDENCES", 3)
    recent = Recent()
    for confidence in (0.9, 0.9, 0.1, 0.1, 0.9):
        recent.add(answer(confidence))
    assert recent.ends_at(0.5, 2) == (1, 2)


def test_latest_confidences_are_as_many_as_asked_for_or_known(recent: Recent) -> None:
    assert recent.confidences(5) == []
    for confidence in (0.1, 0.2, 0.3):
        recent.add(answer(confidence))
    assert sorted(recent.confidences(2)) == [0.2, 0.3]
    assert sorted(recent.confidences(9)) == [0.1, 0.2, 0.3]


def test_disagreement_is_of_the_audited_images_that_exit_at_a_threshold(recent: Recent) -> None:
    assert recent.disagreement_at(0.0) == (0, 0)
    for confidence, agreed in ((0.3, False), (0.5, False), (0.7, True), (0.9, False)):
        recent.audit(confidence, 0.0, agreed)
    assert recent.disagreement_at(0.0) == (3, 4)
    assert recent.disagreement_at(0.5) == (1, 2)  # strictly above, as the exit rule has it
    assert recent.disagreement_at(0.95) == (0, 0)


def test_audits_of_surer_images_alone_say_nothing_of_a_lower_threshold(recent: Recent) -> None:
    for _ in range(100):
        recent.audit(0.95, 0.9, True)
    recent.audit(0.7, 0.6, False)
    assert recent.disagreement_at(0.9) == (0, 100)
    assert recent.disagreement_at(0.6) == (1, 1)
    assert recent.disagreement_at(0.5) == (0, 0)


def test_audits_are_the_latest_and_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "CONFIDENCES", 2)
    recent = Recent()
    for agreed in (False, False, True, True):
        recent.audit(0.5, 0.0, agreed)
    assert recent.disagreement_at(0.0) == (0, 2)
    assert recent.summary().images == 0
    assert recent.confidences(9) == []

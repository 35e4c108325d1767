from __future__ import annotations

import json

from loadtest.load import Closed, Stage, merged, parse_closed, parse_opened

WRK = """Running 1s test @ http://127.0.0.1:8000/classify
  1 threads and 16 connections
{"requests": 120, "seconds": 2, "statuses": {"200": 100, "429": 20}, "broken": 3, "p50_ms": 1, "p90_ms": 2, "p99_ms": 9}
"""

K6 = {
    "latency_during": {"count": 90, "med": 5.0, "p(90)": 6.0, "p(95)": 7.0, "p(99)": 8.0, "max": 9.0},
    "latency_during_0": {"count": 90, "p(99)": 8.5},
    "status_during_200": {"count": 90, "rate": 45},
    "status_during_429": {"count": 10, "rate": 5},
    "status_during_503": {"count": 0, "rate": 0},
    "status_before_200": {"count": 7, "rate": 7},
    "dropped_iterations{scenario:during}": {"count": 4, "rate": 2},
    "dropped_iterations": {"count": 11, "rate": 2},
}


def test_wrk_is_read_from_its_last_line() -> None:
    seen = parse_closed(WRK)
    assert seen.rate == 50  # only what was answered with 200 counts
    assert seen.failures == 23
    assert seen.p99_ms == 9


def test_what_several_saw_at_once_is_added_up() -> None:
    first = Closed(100, 2.0, {"200": 100}, broken=0, p50_ms=5, p90_ms=6, p99_ms=7)
    second = Closed(60, 2.5, {"200": 50, "429": 10}, broken=1, p50_ms=4, p90_ms=8, p99_ms=9)
    both = merged([first, second])
    assert both == Closed(160, 2.5, {"200": 150, "429": 10}, broken=1, p50_ms=5, p90_ms=8, p99_ms=9)
    assert (both.rate, both.failures) == (60, 11)


def test_a_stage_of_k6_has_its_own_counts_only() -> None:
    seen = parse_opened(json.loads(json.dumps(K6)), Stage("during", seconds=2, rate=50, windows=True))
    assert seen.statuses == {"200": 90, "429": 10}
    assert (seen.rate, seen.failures, seen.dropped) == (45, 10, 4)
    assert (seen.p50_ms, seen.p95_ms, seen.p99_ms, seen.max_ms) == (5, 7, 8, 9)
    assert seen.window_p99_ms == (8.5, None)


def test_a_stage_in_which_nothing_was_answered_has_no_latency() -> None:
    seen = parse_opened({}, Stage("during", seconds=1, rate=5))
    assert (seen.statuses, seen.dropped, seen.p99_ms, seen.window_p99_ms) == ({}, 0, 0, ())

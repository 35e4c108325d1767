"""What several processes did, added up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from service.api.observed import Share, audit_of, latency_ms, pooled, thinned, time_spent
from service.calibration.audit import Audit

NOTHING = Share(
    images=0,
    exited=0,
    mmacs=0,
    computed=0,
    seconds=0,
    single_scale_seconds=None,
    per_second=0,
    latencies=(),
    effective_threshold=0.5,
    waiting={},
    images_in_flight=0,
    bytes_in_flight=0,
    audited=0,
    disagreements=0,
    exit_rate=None,
    promised=None,
)


def share(seconds: list[float]) -> Share:
    return dataclasses.replace(NOTHING, latencies=thinned(sorted(seconds)))


def test_percentiles_of_one_process_are_the_nearest_ranks() -> None:
    assert latency_ms([share([i / 1e3 for i in range(1, 101)])]) == {"p50": 50, "p95": 95, "p99": 99}
    assert latency_ms([share([0.007])]) == {"p50": 7, "p95": 7, "p99": 7}


def test_without_an_answer_there_is_no_latency() -> None:
    assert latency_ms([NOTHING, NOTHING]) == {"p50": None, "p95": None, "p99": None}


def test_percentiles_of_several_are_those_of_all_their_answers() -> None:
    random = np.random.default_rng(0)
    fast, slow = random.exponential(0.01, 15_000).tolist(), random.exponential(0.05, 700).tolist()
    found = latency_ms([share(fast), share(slow)])
    for q in (50, 95, 99):
        assert found[f"p{q}"] == pytest.approx(1e3 * np.percentile(fast + slow, q), rel=0.005)


def test_few_latencies_are_told_one_by_one() -> None:
    assert thinned([1.0, 2.0], 2) == [(1, 1), (2, 1)]


def test_of_many_latencies_the_largest_are_told_and_others_stand_for_several() -> None:
    assert thinned([float(i) for i in range(1, 9)], 4) == [(2, 3), (5, 3), (7, 1), (8, 1)]


def test_audits_of_all_are_one_audit() -> None:
    both = pooled([Audit(100, 2, 0.5, 0.97), Audit(50, 1, None, 0.97)])
    assert both == Audit(150, 3, 0.25, 0.97)
    assert pooled([Audit(0, 0, 0.0, 0.9), Audit(0, 0, 0.0, 0.9)]).exit_rate == 0.0
    assert pooled([Audit(0, 0, None, None), Audit(0, 0, None, None)]).exit_rate is None


def test_exit_rates_weigh_by_images() -> None:
    shares = [
        dataclasses.replace(NOTHING, images=300, exit_rate=0.8, audited=4, disagreements=1),
        dataclasses.replace(NOTHING, images=100, exit_rate=0.4, audited=1),
    ]
    audit = audit_of(shares)
    assert (audit.images, audit.disagreements) == (5, 1)
    assert audit.exit_rate == pytest.approx(0.7)


def test_time_of_all_is_per_image_computed_by_any() -> None:
    busy = dataclasses.replace(NOTHING, computed=300, seconds=0.3, single_scale_seconds=0.9)
    idle = dataclasses.replace(NOTHING, computed=100, seconds=0.9, single_scale_seconds=0.7)
    spent = time_spent([busy, idle])
    assert spent.images == 400
    assert spent.mean_seconds == pytest.approx(0.003)
    assert spent.saved == pytest.approx(0.25)
    assert time_spent([NOTHING, NOTHING]).mean_seconds is None
    assert time_spent([busy, NOTHING]).saved is None  # it was not measured everywhere

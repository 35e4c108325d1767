"""Metrics before anything has happened."""

from __future__ import annotations

from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry

from service.metrics import SECONDS, Metrics


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("images", {"model": "m/1", "exit": "low", "reason": "confident"}),
        ("images", {"model": "m/1", "exit": "low", "reason": "brownout"}),
        ("images", {"model": "m/1", "exit": "high", "reason": "escalated"}),
        ("images", {"model": "m/1", "exit": "high", "reason": "cached"}),
        ("multiply_adds", {"model": "m/1", "stage": "high"}),
        ("single_scale_compute_seconds", {"model": "m/1"}),
        ("audit_disagreements", {"model": "m/1"}),
        ("dropped", {"point": "low"}),
        ("dropped", {"point": "high"}),
        ("dropped", {"point": "escalation"}),
        ("rejected", {"reason": "seconds"}),
        ("cache_requests", {"result": "hit"}),
        ("image_errors", {"code": "device_failed"}),
        ("image_errors", {"code": "invalid_image"}),
        ("requests", {"route": "/classify", "code": "200"}),
        ("requests", {"route": "/classify/batch", "code": "500"}),
        ("requests", {"route": "/v2/models/{model}/infer", "code": "503"}),
        ("requests", {"route": "/v2/models/{model}/versions/{version}/infer", "code": "429"}),
    ],
)
def test_what_has_not_happened_yet_is_a_zero_and_not_missing(name: str, labels: dict[str, str]) -> None:
    registry = CollectorRegistry()
    Metrics(registry).serve("m/1", ["low", "high"])
    assert registry.get_sample_value(f"lowfirst_{name}_total", labels) == 0


EARLY = {"confident", "brownout", "deadline", "cached"}


@pytest.mark.parametrize(
    ("stages", "reasons"),
    [
        (["single"], {"single": {"only", "cached"}}),
        (["low", "high"], {"low": EARLY, "high": {"escalated", "cached"}}),
        (["quarter", "half", "full"], {"quarter": EARLY, "half": EARLY, "full": {"escalated", "cached"}}),
    ],
)
def test_every_exit_begins_at_zero_with_the_reasons_it_can_have(
    stages: list[str], reasons: dict[str, set[str]]
) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.serve("m/1", stages)
    begun: dict[str, set[str]] = {}
    for family in metrics.images.collect():
        for sample in family.samples:
            if sample.name == "lowfirst_images_total":
                begun.setdefault(sample.labels["exit"], set()).add(sample.labels["reason"])
    assert begun == reasons


FORMER_EDGES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def test_edges_of_latencies_are_narrow_where_passes_are_and_hold_those_of_earlier_releases() -> None:
    assert list(SECONDS) == sorted(set(SECONDS))
    assert set(FORMER_EDGES) <= set(SECONDS)
    assert all(after <= 1.5 * before for before, after in pairwise(SECONDS) if 0.0005 <= before < 0.3)


def test_latency_by_exit_begins_at_zero() -> None:
    registry = CollectorRegistry()
    Metrics(registry).serve("m/1", ["low", "high"])
    for stage in ("low", "high"):
        assert registry.get_sample_value("lowfirst_image_seconds_count", {"model": "m/1", "exit": stage}) == 0

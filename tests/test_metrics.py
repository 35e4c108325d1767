"""Metrics before anything has happened."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from service.metrics import Metrics


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("images", {"model": "m/1", "exit": "low", "reason": "confident"}),
        ("images", {"model": "m/1", "exit": "high", "reason": "escalated"}),
        ("images", {"model": "m/1", "exit": "high", "reason": "cached"}),
        ("multiply_adds", {"model": "m/1", "stage": "high"}),
        ("audit_disagreements", {"model": "m/1"}),
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
    Metrics(registry).serve("m/1")
    assert registry.get_sample_value(f"lowfirst_{name}_total", labels) == 0

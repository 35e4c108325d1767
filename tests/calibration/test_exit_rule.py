"""The exit rule: strictly greater, decided in float32 whatever the network computed in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.calibration.exit_rule import confidence, exits, probabilities


@pytest.mark.parametrize(
    ("value", "threshold", "expected"),
    [(0.6, 0.5, True), (0.5, 0.5, False), (0.4, 0.5, False), (1e-30, 0.0, True), (1.0, 1.0, False), (0.9999, 1, False)],
)
def test_image_exits_only_above_the_threshold(value: float, threshold: float, expected: bool) -> None:
    assert exits(value, threshold) is expected


def test_threshold_0_lets_everything_exit_and_1_nothing() -> None:
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 200  # many a confidence is exactly 1
    confidences = confidence(probabilities(logits, 1.0)).tolist()
    assert max(confidences) == 1
    assert all(exits(value, 0.0) for value in confidences)
    assert not any(exits(value, 1.0) for value in confidences)


def test_network_that_answers_nan_never_exits() -> None:
    value = confidence(probabilities(torch.full((1, 3), torch.nan), 1.0)).item()
    assert not exits(value, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_softmax_is_float32_of_logits_of_any_precision(dtype: torch.dtype) -> None:
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = probabilities(logits, 1.0)
    assert given.dtype == torch.float32
    assert torch.equal(given, logits.to(torch.float32).softmax(1))
    assert torch.allclose(given.sum(1), torch.ones(64), atol=1e-6)


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    assert probabilities(logits, 2.0)[0, 0].item() == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert torch.equal(probabilities(logits, 1.0), logits.softmax(1))


def test_confidence_is_the_largest_probability_in_float64() -> None:
    given = confidence(torch.tensor([[0.2, 0.7, 0.1], [0.4, 0.3, 0.3]]))
    assert given.dtype == torch.float64
    assert given.tolist() == [np.float32(0.7), np.float32(0.4)]

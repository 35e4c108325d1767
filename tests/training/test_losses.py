"""The loss is the sum of both heads' cross entropies."""

from __future__ import annotations

import math

import pytest
import torch

from service.training.losses import loss


def test_heads_weigh_the_same() -> None:
    unsure, sure = torch.zeros(2, 4), torch.tensor([[0.0, 100, 0, 0], [100.0, 0, 0, 0]])
    targets = torch.tensor([1, 0])
    assert loss((unsure, sure), targets).item() == pytest.approx(math.log(4))
    assert loss((unsure, unsure), targets).item() == pytest.approx(2 * math.log(4))
    assert loss((unsure,), targets).item() == pytest.approx(math.log(4))


def test_half_precision_logits_give_a_float32_loss() -> None:
    value = loss((torch.randn(3, 5, dtype=torch.bfloat16),) * 2, torch.tensor([0, 1, 2]))
    assert value.dtype == torch.float32

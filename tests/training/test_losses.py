"""Both heads learn the targets, and what they know together."""

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


def test_heads_learn_from_their_ensemble() -> None:
    low, high = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    targets = torch.tensor([1])
    known = torch.tensor([[1.0, 2.0]]).softmax(1)
    soft = [-(known * head.log_softmax(1)).sum() for head in (low, high)]
    plain = loss((low, high), targets)
    assert loss((low, high), targets, distillation=0.5).item() == pytest.approx((plain + 0.5 * sum(soft)).item())


def test_the_ensemble_itself_does_not_learn() -> None:
    low, high = torch.tensor([[2.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 4.0]])
    loss((low, high), torch.tensor([0]), distillation=1.0).backward()  # type: ignore[no-untyped-call]
    given = low.detach().softmax(1)
    ensemble = torch.tensor([[1.0, 2.0]]).softmax(1)
    assert low.grad is not None
    torch.testing.assert_close(low.grad, (given - torch.tensor([[1.0, 0.0]])) + (given - ensemble))


def test_one_head_has_nothing_to_learn_from_itself() -> None:
    logits, targets = torch.randn(3, 5), torch.tensor([0, 1, 2])
    assert torch.equal(loss((logits,), targets, distillation=1.0), loss((logits,), targets))

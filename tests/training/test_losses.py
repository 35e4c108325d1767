"""Both heads learn the targets, and the low one what the high one knows."""

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


def test_smoothed_targets_are_the_last_heads_alone() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 2.0, 4.0, -1.0]])
    smoothed = torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]])
    targets = torch.tensor([1, 0])
    expected = -(smoothed * logits.log_softmax(1)).sum(1).mean()
    alone = loss((logits,), targets, label_smoothing=0.2)
    both = loss((logits, logits), targets, label_smoothing=0.2)
    assert alone.item() == pytest.approx(expected.item())
    assert both.item() == pytest.approx((expected + loss((logits,), targets)).item())


def test_half_precision_logits_give_a_float32_loss() -> None:
    value = loss((torch.randn(3, 5, dtype=torch.bfloat16),) * 2, torch.tensor([0, 1, 2]))
    assert value.dtype == torch.float32


def test_low_head_learns_from_the_high_one_and_not_the_other_way_round() -> None:
    low = torch.tensor([[2.0, 0.0]], requires_grad=True)
    high = torch.tensor([[0.0, 4.0]], requires_grad=True)
    value = loss((low, high), torch.tensor([0]), distillation=0.5)
    value.backward()  # type: ignore[no-untyped-call]
    given, known, right = low.detach().softmax(1), high.detach().softmax(1), torch.tensor([[1.0, 0.0]])
    soft = -(known * low.detach().log_softmax(1)).sum()
    assert value.item() == pytest.approx((loss((low, high), torch.tensor([0])) + 0.5 * soft).item())
    assert low.grad is not None
    assert high.grad is not None
    torch.testing.assert_close(low.grad, (given - right) + 0.5 * (given - known))
    torch.testing.assert_close(high.grad, known - right)


def test_every_head_learns_from_the_last_and_weighs_the_same() -> None:
    torch.manual_seed(0)
    heads, targets = tuple(torch.randn(3, 5, requires_grad=True) for _ in range(3)), torch.tensor([0, 1, 2])
    pairs = sum(loss((head, heads[-1]), targets, distillation=0.7) for head in heads[:-1])
    once = loss((heads[-1],), targets)
    torch.testing.assert_close(loss(heads, targets, distillation=0.7), pairs - once)


def test_one_head_has_nothing_to_learn_from_itself() -> None:
    logits, targets = torch.randn(3, 5), torch.tensor([0, 1, 2])
    assert torch.equal(loss((logits,), targets, distillation=1.0), loss((logits,), targets))

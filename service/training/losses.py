"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def loss(heads: tuple[Tensor, ...], targets: Tensor, distillation: float = 0.0) -> Tensor:
    """Cross entropy of every head, weight 1 each: logits (B, K) a head, targets int64 (B,) -> a scalar, float32.

    Two heads also learn from their ensemble, the softmax of their mean logits, as from soft targets, with weight
    ``distillation`` each (Wang et al., "Resolution Switchable Networks for Runtime Efficient Image Recognition", 2020,
    with equal shares). No gradient flows into the ensemble; those of the high head flow into the low network through
    the features it hands over.
    """
    logits = torch.stack([head.float() for head in heads])
    learnt = torch.stack([cross_entropy(head, targets) for head in logits]).sum()
    if distillation and len(heads) > 1:
        ensemble = logits.detach().mean(0).softmax(1)
        learnt = learnt + distillation * torch.stack([cross_entropy(head, ensemble) for head in logits]).sum()
    return learnt

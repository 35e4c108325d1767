"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def loss(heads: tuple[Tensor, ...], targets: Tensor, distillation: float = 0.0) -> Tensor:
    """Cross entropy of every head, weight 1 each: logits (B, K) a head, targets int64 (B,) -> a scalar, float32.

    The low head also learns from the high one, as from soft targets, with weight ``distillation``; no gradient of that
    flows into the high one (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, at temperature 1).
    """
    logits = [head.float() for head in heads]
    learnt = torch.stack([cross_entropy(head, targets) for head in logits]).sum()
    if distillation and len(logits) > 1:
        low, high = logits
        learnt = learnt + distillation * cross_entropy(low, high.detach().softmax(1))
    return learnt

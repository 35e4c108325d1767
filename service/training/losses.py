"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def loss(heads: tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """Cross entropy of every head, weight 1 each: logits (B, K) a head, targets int64 (B,) -> a scalar, float32.

    Gradients of the high head flow into the low network through the features it hands over.
    """
    return torch.stack([cross_entropy(logits.float(), targets) for logits in heads]).sum()

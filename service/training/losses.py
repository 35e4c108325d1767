"""What training minimises."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def loss(
    heads: tuple[Tensor, ...], targets: Tensor, *, label_smoothing: float = 0.0, distillation: float = 0.0
) -> Tensor:
    """Cross entropy of every head, weight 1 each: logits (B, K) a head, targets int64 (B,) -> a scalar, float32.

    The last head's target gives ``label_smoothing`` of its share evenly to all classes (Szegedy et al., "Rethinking the
    Inception Architecture for Computer Vision", 2015, section 7). The low head's does not: smoothed, it tells less well
    which images it is unsure of.

    The low head also learns from the high one, as from soft targets, with weight ``distillation``; no gradient of that
    flows into the high one (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, at temperature 1).
    """
    logits = [head.float() for head in heads]
    *others, last = logits
    learnt = cross_entropy(last, targets, label_smoothing=label_smoothing)
    for head in others:
        learnt = learnt + cross_entropy(head, targets)
    if distillation and len(logits) > 1:
        low, high = logits
        learnt = learnt + distillation * cross_entropy(low, high.detach().softmax(1))
    return learnt

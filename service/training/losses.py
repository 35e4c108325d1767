"""The training loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def loss(
    heads: tuple[Tensor, ...], targets: Tensor, *, label_smoothing: float = 0.0, distillation: float = 0.0
) -> Tensor:
    """Cross entropy of every head, weight 1 each: logits (B, K) of each stage, targets int64 (B,) -> a scalar, float32.

    The last head's target spreads ``label_smoothing`` of its share evenly over all classes (Szegedy et al., "Rethinking
    the Inception Architecture for Computer Vision", 2015, section 7). Other targets are not smoothed, because then a
    head's confidence would separate uncertain images less well.

    Every other head also learns from the last one's soft targets, with weight ``distillation``; no gradient of that
    flows into the last head (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; temperature 1).
    """
    *others, last = [head.float() for head in heads]
    learnt = cross_entropy(last, targets, label_smoothing=label_smoothing)
    for head in others:
        learnt = learnt + cross_entropy(head, targets)
        if distillation:
            learnt = learnt + distillation * cross_entropy(head, last.detach().softmax(1))
    return learnt

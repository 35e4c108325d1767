"""When an image exits: the one rule shared by calibration, evaluation and serving."""

from __future__ import annotations

from torch import Tensor


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Softmax of ``logits / temperature``, in float32 whatever the logits' dtype: (B, K) -> (B, K)."""
    return (logits.float() / temperature).softmax(dim=1)


def confidence(low_probabilities: Tensor) -> Tensor:
    """The largest probability of the low answer: (B, K) -> (B,), float64 so that thresholds compare as written."""
    return low_probabilities.amax(dim=1).double()


def exits(confidence: float, threshold: float) -> bool:
    """Whether the low answer is final: strictly greater, so 0 lets every image exit and 1 none."""
    return confidence > threshold

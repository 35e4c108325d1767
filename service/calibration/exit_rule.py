"""When an image exits: the rule shared by calibration, evaluation and serving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Softmax of ``logits / temperature``, in float32 whatever the logits' dtype: (B, K) -> (B, K)."""
    return (logits.float() / temperature).softmax(dim=1)


def confidence(probabilities: Tensor) -> Tensor:
    """The largest probability: (B, K) -> (B,), float64 so that thresholds compare as written."""
    return probabilities.amax(dim=1).double()


def exits(confidence: float, threshold: float) -> bool:
    """Whether a stage's answer is final: strictly greater, so 0 lets every image exit and 1 none."""
    return confidence > threshold


def end_stage(confidences: Sequence[float], threshold: float) -> int:
    """The stage at which one image ends: the first confident one, otherwise the one after those given."""
    return next((stage for stage, sure in enumerate(confidences) if exits(sure, threshold)), len(confidences))


def end_stages(
    confidence: npt.NDArray[np.float64], threshold: float | npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The stage at which each of n images ends: the first confident one, otherwise the last.

    Args:
        confidence: of every stage except the last, (n, stages - 1).
        threshold: one for all stages; or t of them, (t, 1, 1), for a result of (t, n).
    """
    sure = confidence > threshold
    early = sure.shape[-1]
    ends = np.full(sure.shape[:-1], early, dtype=np.int64)
    for stage in reversed(range(early)):
        np.putmask(ends, sure[..., stage], stage)
    return ends


def end_counts(confidence: npt.NDArray[np.float64], threshold: float) -> tuple[int, ...]:
    """How many of the images end at each stage. Arguments as for ``end_stages``."""
    depth = confidence.shape[1] + 1
    return tuple(np.bincount(end_stages(confidence, threshold), minlength=depth).tolist())

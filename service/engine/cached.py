"""Answers from the result cache, which replicas can share."""

from __future__ import annotations

from hashlib import blake2b

import torch

from service.calibration.exit_rule import end_stage
from service.engine.entry import Entry
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.state.base import CachedOutputs, ResultCache


class CachedAnswers:
    """Cached results of one model.

    The cache stores outputs, which give an answer at any threshold, so a changed threshold invalidates nothing.
    """

    def __init__(self, cache: ResultCache, predictor: Predictor, metrics: Metrics) -> None:
        spec = predictor.spec
        # replicas that share a cache may each have published a different model under this name
        self._prefix = f"{spec.reference}:{spec.weights_sha256[:16]}:{predictor.runtime}:{predictor.precision}"
        self._depth, self._classes = spec.depth, len(spec.classes)
        self._cache = cache
        self._requests = metrics.cache_requests

    def key(self, body: bytes) -> str:
        """Cache key of the encoded image ``body``."""
        return f"{self._prefix}:{blake2b(body, digest_size=32).hexdigest()}"

    async def look_up(self, key: str, entry: Entry, lowered: float) -> int | None:
        """Fill ``entry`` from the cache: the answering stage, or None if stages must run.

        Args:
            lowered: limit of thresholds during overload.
        """
        known = await self._cache.get(key)
        stage = None if known is None else self._fill(entry, known, lowered)
        self._requests.labels("miss" if stage is None else "hit").inc()
        return stage

    def _fill(self, entry: Entry, known: CachedOutputs, lowered: float) -> int | None:
        outputs = known.outputs
        if not 0 < len(outputs) <= self._depth or any(len(output) != self._classes for output in outputs):
            return None  # of another model
        threshold = entry.threshold if entry.is_fixed else min(entry.threshold, lowered)
        last = self._depth - 1
        confidences = [max(output) for output in outputs[: max(last, 1)]]
        stage = min(end_stage(confidences, threshold), last)
        if stage >= len(outputs):
            return None
        entry.outputs = [torch.tensor(output) for output in outputs[: stage + 1]]
        entry.confidences, entry.compared_with = confidences[: stage + 1], threshold
        return stage

    async def remember(self, key: str, entry: Entry) -> None:
        """Store the outputs of ``entry``."""
        if entry.outputs:
            await self._cache.put(key, CachedOutputs(tuple(tuple(output.tolist()) for output in entry.outputs)))

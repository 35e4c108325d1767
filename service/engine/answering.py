"""Builds answers from the outputs of the stages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache as memoise

import numpy as np
from torch import Tensor

from service.engine.answer import Answer, Ranked, Ranking, Reason
from service.engine.entry import Entry
from service.engine.recent import Recent
from service.metrics import Metrics
from service.model_spec import ModelSpec


class Answering:
    """Builds and counts the answers of one model. Used in the event loop's thread.

    Attributes:
        computed: images answered, without those from the cache.
    """

    def __init__(self, spec: ModelSpec, metrics: Metrics, recent: Recent) -> None:
        self.computed = 0
        self._spec = spec
        self._recent = recent
        self._names = tuple(stage.name for stage in spec.stages)
        self._images = memoise(lambda exit_, reason: metrics.images.labels(spec.reference, exit_, reason))
        self._seconds = [metrics.image_seconds.labels(spec.reference, name) for name in self._names]
        self._confidence = metrics.confidence.labels(spec.reference)

    def answer(self, entry: Entry, stage: int, reason: Reason, with_passes: bool) -> Answer:
        """The answer to ``entry`` from ``stage``."""
        spec = self._spec
        top_k = self._ranking(entry.outputs[stage], entry.top_k)
        answer = Answer(
            top_k=top_k,
            stages=self._names,
            stage=stage,
            reason=reason,
            confidences=tuple(entry.confidences[: stage + 1]),  # later stages may have run after its deadline
            threshold=entry.compared_with,
            mmacs=0.0 if reason == "cached" else spec.mmacs_up_to[stage],
            degraded=reason in ("deadline", "brownout"),
            model=spec.name,
            version=spec.version,
            config_version=entry.config_version,
            timing=entry.timing,
            seconds=time.monotonic() - entry.arrival,
            passes=self._passes(entry, stage) if with_passes else None,
        )
        self._images(answer.exit, reason).inc()
        self._seconds[stage].observe(answer.seconds)
        self._confidence.observe(answer.confidence)
        if reason != "cached":
            self.computed += 1
        self._recent.add(answer)
        return answer

    def _passes(self, entry: Entry, stage: int) -> Mapping[str, Ranking | None]:
        """Predictions of the stages up to the answering one."""
        return {
            name: self._ranking(entry.outputs[index], entry.top_k) if index <= stage else None
            for index, name in enumerate(self._names)
        }

    def _ranking(self, probabilities: Tensor, top_k: int) -> Ranking:
        classes = self._spec.classes
        scores = probabilities.numpy()
        best = np.argsort(-scores, kind="stable")[:top_k]  # in a fifth of the time of PyTorch's topk
        return tuple(
            Ranked(classes[index], index, score)
            for score, index in zip(scores[best].tolist(), best.tolist(), strict=True)
        )

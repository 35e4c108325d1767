"""BentoML: a process a core, each with its own adaptive batches; an image comes as the multipart part ``images``.

    bentoml serve loadtest.contenders.bentoml_app:Classifier

What is batched must be a list, and a list of files comes as multipart. Access logs, metrics and traces are off. More
processes than cores, or more threads in each, did not make it faster.
"""

from __future__ import annotations

from pathlib import Path

import bentoml

from loadtest.contenders.work import MAX_BATCH_SIZE, Answer, Job, Work

MAX_LATENCY_MS = 60_000  # requests that may take longer are answered 503


@bentoml.service(
    workers=Job.from_environment().workers,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"sample_rate": 0.0},
)
class Classifier:
    """The only service."""

    def __init__(self) -> None:
        self._work = Work(Job.from_environment())

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=MAX_LATENCY_MS)
    def classify(self, images: list[Path]) -> list[Answer]:
        """One batch: the files that BentoML has written the parts to."""
        return self._work.answer([self._work.decode(image.read_bytes()) for image in images])

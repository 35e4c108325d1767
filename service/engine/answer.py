"""A request for one image, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["confident", "escalated", "deadline", "brownout", "cached", "only"]


@dataclass(slots=True)
class Timing:
    """Seconds that an image spent on decoding, on waiting, and in each stage that ran, in order.

    ``compute`` is its share of the compute time of its batches, known only for images that run in the background.
    """

    decode: float = 0.0
    queue: float = 0.0
    stages: list[float] = field(default_factory=list)
    compute: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """The options of a request for one image.

    Attributes:
        arrival: of the request's head, on the clock of ``time.monotonic``.
        threshold: for this image only; None uses the runtime config's.
        deadline: seconds after ``arrival``; None for no deadline.
        top_k: number of labels, at most the number of classes.
        passes: whether to return the prediction of each stage that ran, not only the answer.
        request_id, index: id of the request, and the position of the image in it, for the sample log.
        names_version: whether the request names a version of the model, so that no canary answers it.
    """

    arrival: float
    threshold: float | None = None
    deadline: float | None = None
    top_k: int = 5
    passes: bool = False
    request_id: str = ""
    index: int = 0
    names_version: bool = False


@dataclass(frozen=True, slots=True)
class Ranked:
    """A class and its probability."""

    label: str
    index: int
    score: float


Ranking = tuple[Ranked, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to an image.

    Attributes:
        top_k: labels of the answering stage, most probable first.
        stages: names of the model's stages, cheapest first.
        stage: index of the answering stage. ``reason``: why it answers.
        confidences: of each early stage that ran. ``threshold``: what they were compared with.
        mmacs: millions of multiply-adds spent on this image for this answer.
        degraded: whether the answer is uncertain, given because of a deadline or overload.
        seconds: from the request's arrival.
        passes: prediction of each stage by name, None for a stage that did not run; None unless requested.
    """

    top_k: Ranking
    stages: tuple[str, ...]
    stage: int
    reason: Reason
    confidences: tuple[float, ...]
    threshold: float
    mmacs: float
    degraded: bool
    model: str
    version: int
    config_version: int
    timing: Timing
    seconds: float
    passes: Mapping[str, Ranking | None] | None = None

    @property
    def exit(self) -> str:
        """The name of the answering stage."""
        return self.stages[self.stage]

    @property
    def confidence(self) -> float:
        """Confidence of the last early stage that ran."""
        return self.confidences[-1]

    @property
    def exited(self) -> bool:
        """Whether the image exited before the last stage."""
        return self.stage < len(self.stages) - 1

    @property
    def cached(self) -> bool:
        """Whether the answer came from the cache."""
        return self.reason == "cached"

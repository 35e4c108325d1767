"""What a request asks of one image, and the answer it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["confident", "escalated", "deadline", "brownout", "cached", "only"]


@dataclass(slots=True)
class Timing:
    """Seconds an image spent being decoded, waiting, and in each stage that ran, in order.

    ``compute`` is its part of what its batches took, known only of images that run behind an answer.
    """

    decode: float = 0.0
    queue: float = 0.0
    stages: list[float] = field(default_factory=list)
    compute: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants of one image.

    Attributes:
        arrival: of the request's head, on the clock of ``time.monotonic``.
        threshold: for this image only; None takes the runtime config's.
        deadline: seconds after ``arrival``; None waits as long as it takes.
        top_k: labels to give, at most the number of classes.
        passes: whether to tell what each stage that ran says, not the answering one's answer alone.
        request_id, index: of the request, and the image's place among its images: for the sample log.
        names_version: whether it names the version of the model too, so that no canary answers it.
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
    """What is known of an image once it ends.

    Attributes:
        top_k: most probable first, by the stage that answers.
        stages: names of the model's stages, cheapest first.
        stage: index of the stage that answers. ``reason``: why it does.
        confidences: of each stage that ran and could have ended it early. ``threshold``: what they were compared with.
        mmacs: millions of multiply-adds spent on this image for this answer.
        degraded: whether an unsure answer was given because time ran out, or the server was overloaded.
        seconds: from the request's arrival.
        passes: what each stage says, by its name, None of one that did not run; None unless that was asked.
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
        """The name of the stage that answers."""
        return self.stages[self.stage]

    @property
    def confidence(self) -> float:
        """Of the last stage that could have ended it early."""
        return self.confidences[-1]

    @property
    def exited(self) -> bool:
        """Whether it ended before the last stage."""
        return self.stage < len(self.stages) - 1

    @property
    def cached(self) -> bool:
        """Whether nothing was computed for it."""
        return self.reason == "cached"

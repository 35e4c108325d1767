"""One image on its way through the engine, and the answer it gets."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from service.errors import DeadlinePassed, LowfirstError
from service.inference.latency import Stage

Reason = Literal["confident", "escalated", "deadline", "brownout", "cached"]


@dataclass(slots=True)
class Timing:
    """Seconds an image spent being decoded, waiting, and in each pass."""

    decode: float = 0.0
    queue: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants of one image.

    Attributes:
        arrival: of the request's head, on the clock of ``time.monotonic``.
        threshold: for this image only; None takes the runtime config's.
        deadline: seconds after ``arrival``; None waits as long as it takes.
        top_k: labels to give, at most the number of classes.
        passes: whether to tell what each pass that ran says, not the answering one's word alone.
    """

    arrival: float
    threshold: float | None = None
    deadline: float | None = None
    top_k: int = 5
    passes: bool = False


@dataclass(frozen=True, slots=True)
class Ranked:
    """A class and its probability."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Passes:
    """What each pass says, most probable first; ``high`` is None where it did not run."""

    low: tuple[Ranked, ...]
    high: tuple[Ranked, ...] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an image once it exits.

    Attributes:
        top_k: most probable first, by the pass that answers.
        exit: the pass that answers. ``reason``: why it does.
        confidence, threshold: of the low answer; what it was compared with.
        mmacs: millions of multiply-adds spent on this image for this answer.
        degraded: whether an unsure low answer was given because time ran out, or the server was overloaded.
        seconds: from the request's arrival.
        passes: what each pass says, if that was asked.
    """

    top_k: tuple[Ranked, ...]
    exit: Stage
    reason: Reason
    confidence: float
    threshold: float
    mmacs: float
    degraded: bool
    model: str
    version: int
    config_version: int
    timing: Timing
    seconds: float
    passes: Passes | None = None

    @property
    def cached(self) -> bool:
        """Whether nothing was computed for it."""
        return self.reason == "cached"


@dataclass(slots=True, eq=False)
class Entry:
    """One image in the engine. Threads fill it in; its future is resolved in the event loop's thread alone, once.

    Attributes:
        threshold, config_version: in force when it arrived; the threshold, once decided, what it was compared with.
        is_fixed: whether the request named the threshold, so that overload does not lower it.
        arrival, deadline: absolute, on the clock of ``time.monotonic``.
        body: the encoded image until it is decoded, or nobody waits for it any more.
        image: uint8 (3, R, R) once decoded.
        slot: of the feature pool, which it holds while it is escalated or audited.
        low, high: probabilities (K,) of the passes done.
        low_reason: why the low answer is given, once there is one, if it is.
        audited_above: where it is audited: images of what confidence may have been, too.
        enqueued: when it entered the lane it is in.
    """

    threshold: float
    config_version: int
    top_k: int
    arrival: float
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[tuple[Stage, Reason]]
    image: Tensor | None = None
    is_fixed: bool = False
    slot: int | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    low_reason: Reason = "deadline"
    confidence: float = 0.0
    audited_above: float = 0.0
    enqueued: float = 0.0
    timing: Timing = field(default_factory=Timing)
    body: bytes | None = None

    @property
    def is_dead(self) -> bool:
        """Whether nobody waits for it any more: answered, failed, expired, or its client left."""
        return self.future.done()

    def resolve(self, exit_: Stage, reason: Reason) -> None:
        """Answer it, unless it is dead. In the event loop's thread."""
        if not self.future.done():
            self.future.set_result((exit_, reason))

    def fail(self, error: LowfirstError) -> None:
        """Fail it, unless it is dead. In the event loop's thread."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        """The deadline has come: the low answer if there is one, else an error. In the event loop's thread."""
        if self.low is not None:
            self.resolve("low", self.low_reason)
        else:
            waited = time.monotonic() - self.arrival
            self.fail(
                DeadlinePassed(
                    f"deadline passed after {waited * 1e3:.0f} ms, before any answer existed", field="deadline_ms"
                )
            )

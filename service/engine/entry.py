"""One image on its path through the engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from service.engine.answer import Reason, Timing
from service.errors import DeadlinePassed, LowfirstError


@dataclass(slots=True, eq=False)
class Entry:
    """One image in the engine. Threads fill it in; its future is resolved once, in the event loop's thread.

    Attributes:
        threshold, config_version: in force when it arrived.
        is_fixed: whether the request set the threshold, so that overload does not lower it.
        is_behind: whether it runs in the background, in the audit lane, for a comparison with another model's answer.
        arrival, deadline: absolute, on the clock of ``time.monotonic``.
        future: the answering stage, and the reason; None if it failed, see ``failure``.
        body: the encoded image until it is decoded or dropped.
        pixels: uint8 (3, r, r) for each stage, once decoded.
        slot: of the feature pool, held while it is escalated or audited.
        outputs: probabilities (K,) of each stage that ran.
        confidences: of each early stage that ran; in a single-stage model that of the stage.
        compared_with: what the latest confidence was compared with: the threshold, or the lowered one during overload.
        latest: the latest stage that ran, and the reason of its answer if the deadline comes.
        failure: why there is no answer. Not in the future: whoever raises it would be part of a cycle.
        enqueued: when it entered its current lane.
        is_drawn: whether all stages run, however it ends: sampled on arrival for the sample log, see ``sampling``.
        is_audited: whether it is audited. ``runs_on``: whether later stages run in the background, for an audit or the
            sample log; known once it is answered. ``outputs_behind``: their outputs.
        on_completed: called in the event loop's thread once these stages have run or were dropped.
        audited: confidence and answer of each stage except the last that ran after its answer.
    """

    threshold: float
    config_version: int
    top_k: int
    arrival: float
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[tuple[int, Reason] | None]
    is_fixed: bool = False
    is_behind: bool = False
    body: bytes | None = None
    pixels: tuple[Tensor, ...] = ()
    slot: int | None = None
    outputs: list[Tensor] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    compared_with: float = 0.0
    latest: tuple[int, Reason] | None = None
    failure: LowfirstError | None = None
    enqueued: float = 0.0
    audited: list[tuple[float, int]] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)
    is_drawn: bool = False
    is_audited: bool = False
    runs_on: bool = False
    outputs_behind: list[Tensor] = field(default_factory=list)
    on_completed: Callable[[], None] | None = None

    @property
    def confidence(self) -> float:
        """Confidence of the last early stage that ran."""
        return self.confidences[-1]

    @property
    def due(self) -> float:
        """Its deadline; infinite without one."""
        return math.inf if self.deadline is None else self.deadline

    @property
    def allowed(self) -> float:
        """Seconds from its arrival to its deadline; infinite without one."""
        return self.due - self.arrival

    @property
    def is_dead(self) -> bool:
        """Whether no client waits for it any more: answered, failed, expired, or disconnected."""
        return self.future.done()

    def resolve(self, stage: int, reason: Reason) -> None:
        """Answer it unless it is dead. In the event loop's thread."""
        if not self.future.done():
            self.future.set_result((stage, reason))

    def fail(self, error: LowfirstError) -> None:
        """Fail it unless it is dead. In the event loop's thread."""
        if not self.future.done():
            self.failure = error
            self.future.set_result(None)

    async def answered(self) -> tuple[int, Reason]:
        """Wait for the answering stage and the reason. Raises its failure. Call once."""
        if (answered := await self.future) is not None:
            return answered
        raise self._take_failure()

    def _take_failure(self) -> LowfirstError:
        failure, self.failure = self.failure, None
        assert failure is not None
        return failure

    def expire(self) -> None:
        """Handle its deadline: use the latest output, otherwise an error. In the event loop's thread."""
        if self.latest is not None:
            self.resolve(*self.latest)
            return
        waited = time.monotonic() - self.arrival
        self.fail(
            DeadlinePassed(
                f"deadline passed after {waited * 1e3:.0f} ms, before any answer existed", field="deadline_ms"
            )
        )

    def completed(self) -> None:
        """The background stages have run or were dropped. In the event loop's thread."""
        if self.on_completed is not None:
            self.on_completed()

    def give_up(self) -> None:
        """Nothing more can be ready in time: use the latest output, or an error. In the event loop's thread."""
        if self.latest is not None:
            self.resolve(*self.latest)
        elif self.deadline is not None:
            self.fail(too_late(self.arrival, self.deadline))


def give_up(entries: Sequence[Entry]) -> None:
    """Give up entries of one event loop, with one wake-up. In any thread."""
    if entries:
        entries[0].loop.call_soon_threadsafe(_give_up, entries)


def _give_up(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.give_up()


def too_late(arrival: float, deadline: float) -> DeadlinePassed:
    """The error of an image whose deadline is before any possible answer; both on the clock of ``time.monotonic``."""
    allowed = f"{1e3 * (deadline - arrival):.6g}"
    return DeadlinePassed(
        f"deadline_ms is {allowed}; no answer is possible in that time", field="deadline_ms", value=float(allowed)
    )

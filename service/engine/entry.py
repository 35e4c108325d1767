"""One image on its way through the engine."""

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
    """One image in the engine. Threads fill it in; its future is resolved in the event loop's thread alone, once.

    Attributes:
        threshold, config_version: in force when it arrived.
        is_fixed: whether the request named the threshold, so that overload does not lower it.
        is_behind: whether it runs behind an answer that another model gave, in the audits' lane.
        arrival, deadline: absolute, on the clock of ``time.monotonic``.
        future: of the stage that answers, and why it does; None once it failed, see ``failure``.
        body: the encoded image until it is decoded, or nobody waits for it any more.
        pixels: uint8 (3, r, r) for each stage, once decoded.
        slot: of the feature pool, which it holds while it is escalated or audited.
        outputs: probabilities (K,) of each stage that ran.
        confidences: of each stage that ran and could end it early; of a single stage its own.
        compared_with: what the latest of them was compared with: the threshold, or what overload lowered it to.
        latest: the latest stage that ran, and why its output is given, should its deadline come.
        failure: why there is no answer. Not in the future: whoever raises it would be part of a cycle.
        enqueued: when it entered the lane it is in.
        is_drawn: whether all stages run, however it ends: see ``sampling``.
        is_audited: whether it was drawn for an audit. ``runs_on``: whether later stages run behind its answer, for that
            or for the sample log; known once it is answered. ``outputs_behind``: what they said.
        on_completed: called once they have run, or were given up. In the event loop's thread.
        drawn_with: probability with which it was drawn for the live table; 0 of one that was not.
        audited: confidence and answer of each stage but the last that ran after its answer.
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
    drawn_with: float = 0.0
    audited: list[tuple[float, int]] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)
    is_drawn: bool = False
    is_audited: bool = False
    runs_on: bool = False
    outputs_behind: list[Tensor] = field(default_factory=list)
    on_completed: Callable[[], None] | None = None

    @property
    def confidence(self) -> float:
        """Of the last stage that could end it early."""
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
        """Whether nobody waits for it any more: answered, failed, expired, or its client left."""
        return self.future.done()

    def resolve(self, stage: int, reason: Reason) -> None:
        """Answer it, unless it is dead. In the event loop's thread."""
        if not self.future.done():
            self.future.set_result((stage, reason))

    def fail(self, error: LowfirstError) -> None:
        """Fail it, unless it is dead. In the event loop's thread."""
        if not self.future.done():
            self.failure = error
            self.future.set_result(None)

    async def answered(self) -> tuple[int, Reason]:
        """Wait for the stage that answers, and why it does. Raises its failure. Once."""
        if (answered := await self.future) is not None:
            return answered
        raise self._take_failure()

    def _take_failure(self) -> LowfirstError:
        failure, self.failure = self.failure, None
        assert failure is not None
        return failure

    def expire(self) -> None:
        """The deadline has come: the latest output if there is one, else an error. In the event loop's thread."""
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
        """The stages behind its answer have run, or were given up. In the event loop's thread."""
        if self.on_completed is not None:
            self.on_completed()

    def give_up(self) -> None:
        """Nothing more can be there in time: the latest output, or an error. In the event loop's thread."""
        if self.latest is not None:
            self.resolve(*self.latest)
        elif self.deadline is not None:
            self.fail(too_late(self.arrival, self.deadline))


def give_up(entries: Sequence[Entry]) -> None:
    """Have entries of one event loop give up, at one wake-up of it. In any thread."""
    if entries:
        entries[0].loop.call_soon_threadsafe(_give_up, entries)


def _give_up(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.give_up()


def too_late(arrival: float, deadline: float) -> DeadlinePassed:
    """The error of an image whose deadline comes before any answer can; both on the clock of ``time.monotonic``."""
    allowed = f"{1e3 * (deadline - arrival):.6g}"
    return DeadlinePassed(
        f"deadline_ms is {allowed}; no answer is possible in that time", field="deadline_ms", value=float(allowed)
    )

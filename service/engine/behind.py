"""Images that a model classifies in the background, when clients leave time: see ``TrialRun``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from service.engine import tuning
from service.engine.audit_lane import Neighbour
from service.engine.comparison import Reply
from service.engine.entry import Entry
from service.engine.lanes import Lanes
from service.errors import Draining
from service.model_spec import ModelSpec


class Behind:
    """Background work of one engine for a comparison, in its audit lane. Used in the event loop's thread.

    Args:
        spec: of the engine's model.
        lanes: of the engine.
        waiting: the engine's entries that clients wait for.
        most: images at a time; more are skipped.

    Attributes:
        computed, compute: images run since the comparison began, and worker seconds for them.
    """

    def __init__(self, spec: ModelSpec, lanes: Lanes, waiting: Collection[Entry], most: int) -> None:
        self._spec = spec
        self._lanes = lanes
        self._waiting = waiting
        self._most = most
        self.computed, self.compute = 0, 0.0
        self._entries: set[Entry] = set()
        self._bytes = 0

    def begin(self, other: Behind) -> None:
        """Start a comparison with ``other``, and give precedence to the work of its clients."""
        self.computed, self.compute = 0, 0.0
        waiting, lanes = other._waiting, other._lanes
        self._lanes.audits.neighbour = Neighbour(lambda: bool(waiting), lambda: lanes.audits.spent)

    def end(self) -> None:
        """End the comparison."""
        self._lanes.audits.neighbour = None  # it is part of a cycle with the other's

    async def run(self, body: bytes, threshold: float) -> Reply | None:
        """Classify an encoded image at ``threshold`` in the background; None if there is no room.

        Raises as ``Engine.classify``.
        """
        if len(self._entries) >= self._most or self._bytes + len(body) > tuning.MOST_BEHIND_BYTES:
            return None
        entry = self._entry(body, threshold)
        self._entries.add(entry)
        self._bytes += len(body)
        try:
            if not self._lanes.behind([entry]):
                return None
            stage, _ = await entry.answered()
        finally:
            entry.body = None
            self._entries.discard(entry)
            self._bytes -= len(body)
        self.computed += 1
        self.compute += entry.timing.compute
        return Reply(
            label=self._spec.classes[int(entry.outputs[stage].argmax())],
            exited=stage < self._spec.depth - 1,
            mmacs=self._spec.mmacs_up_to[stage],
            seconds=entry.timing.decode + sum(entry.timing.stages),
        )

    def close(self) -> None:
        """Drop what is left, after the last worker has stopped."""
        for entry in list(self._entries):
            entry.fail(Draining("the engine stopped before the comparison"))

    def _entry(self, body: bytes, threshold: float) -> Entry:
        loop, now = asyncio.get_running_loop(), time.monotonic()
        return Entry(
            threshold=threshold,
            config_version=0,
            top_k=1,
            arrival=now,
            deadline=None,
            loop=loop,
            future=loop.create_future(),
            is_fixed=True,
            is_behind=True,
            body=body,
            enqueued=now,
        )

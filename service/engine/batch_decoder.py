"""Decodes a batch of the first stage before it runs, for every image that can still be in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from service.engine import tuning
from service.engine.decoding import decode_entry
from service.engine.entry import Entry, give_up
from service.engine.lanes import Batch, Lanes
from service.engine.pace import Pace
from service.errors import Draining
from service.metrics import Metrics
from service.model_spec import ModelSpec


class BatchDecoder:
    """Shared by the worker threads.

    Args:
        lanes: take back images that must wait again, and free slots.
        spec: of the model.
        pace: measured decoding durations.
        metrics: count dropped images.
        aside: takes over images that are slow to decode.
    """

    def __init__(
        self, lanes: Lanes, spec: ModelSpec, pace: Pace, metrics: Metrics, aside: Callable[[Entry], bool] | None
    ) -> None:
        self._lanes = lanes
        self._spec = spec
        self._pace = pace
        self._metrics = metrics
        self._aside = aside

    def ready(self, batch: Batch) -> Batch:
        """The runnable entries of a batch, with their pixels; for a later stage the whole batch."""
        if batch.stage:
            return batch
        decoded = self._decoded(batch.entries)
        alive = [entry for entry in decoded if not entry.is_dead]
        self._metrics.dropped.labels(self._spec.stages[0].name).inc(len(decoded) - len(alive))
        in_time = self._in_time(alive)
        self._lanes.release(batch.slots[len(in_time) :])
        return replace(batch, entries=in_time, slots=batch.slots[: len(in_time)])

    def _in_time(self, entries: Sequence[Entry]) -> list[Entry]:
        """Entries that can still be answered in time; decoding may have taken longer than predicted."""
        ready = time.monotonic() + self._pace.table.seconds(0, len(entries)) if entries else 0.0
        late = [entry for entry in entries if entry.due < ready]
        self._metrics.dropped.labels("deadline").inc(len(late))
        give_up(late)
        return [entry for entry in entries if entry.due >= ready]

    def _decoded(self, entries: Sequence[Entry]) -> list[Entry]:
        """Entries with pixels. Missing pixels are decoded here for a short time; the remaining entries wait again.

        So an image that is slow to decode delays only the few images decoded with it.
        """
        ready = [entry for entry in entries if entry.pixels]
        waiting = [entry for entry in entries if not entry.pixels]
        began = time.monotonic()
        for index, entry in enumerate(waiting):
            if decode_entry(entry, self._spec, self._metrics, self._aside):
                ready.append(entry)
            if time.monotonic() > began + tuning.DECODE_SECONDS:
                self._wait_again(waiting[index + 1 :])
                waiting = waiting[: index + 1]
                break
        if waiting:
            self._pace.decoded(len(waiting), time.monotonic() - began)
        return ready

    def _wait_again(self, entries: Sequence[Entry]) -> None:
        now = time.monotonic()
        for entry in entries:
            entry.enqueued = now
        if not entries or not entries[0].is_behind:
            self._lanes.push(entries)
        elif not self._lanes.behind(entries):
            for entry in entries:
                entry.loop.call_soon_threadsafe(entry.fail, Draining("the engine stops"))

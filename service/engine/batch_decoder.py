"""What a worker does with a batch of the first stage before it runs: pixels for every image that is still in time."""

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
    """Threads share it.

    Args:
        lanes: where images go that wait again, and free slots.
        spec: of the model.
        pace: how long decoding takes.
        metrics: where dropped images are counted.
        aside: takes an image that is dear to decode, if it says so.
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
        """What can run of a batch: entries with their pixels that somebody waits for. All of one of a later stage."""
        if batch.stage:
            return batch
        decoded = self._decoded(batch.entries)
        alive = [entry for entry in decoded if not entry.is_dead]
        self._metrics.dropped.labels(self._spec.stages[0].name).inc(len(decoded) - len(alive))
        in_time = self._in_time(alive)
        self._lanes.release(batch.slots[len(in_time) :])
        return replace(batch, entries=in_time, slots=batch.slots[: len(in_time)])

    def _in_time(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those that their pass may still answer in time: decoding may have taken longer than predicted."""
        ready = time.monotonic() + self._pace.table.seconds(0, len(entries)) if entries else 0.0
        late = [entry for entry in entries if entry.due < ready]
        self._metrics.dropped.labels("deadline").inc(len(late))
        give_up(late)
        return [entry for entry in entries if entry.due >= ready]

    def _decoded(self, entries: Sequence[Entry]) -> list[Entry]:
        """Entries with their pixels. Those without are decoded here, for a short time; then the rest wait again.

        So an image that takes long to decode holds up nobody but the few decoded with it.
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

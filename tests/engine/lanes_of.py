"""Lanes with entries of no pixels, and times that larger batches of later stages make worth waiting for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from service.engine.entry import Entry
from service.engine.lanes import Batch, Lanes
from service.engine.pick import Plan
from service.inference.latency import LatencyTable

TIMEOUT = 20.0

SIZES = (1, 2, 4, 8, 16, 32)

# Seconds of a batch: a start, and something for each image. A larger batch of a later stage saves much.
TABLE = LatencyTable(
    (
        {size: 1.0 + 1.0 * size for size in SIZES},
        {size: 8.0 + 4.0 * size for size in SIZES},
        {size: 20.0 + 9.0 * size for size in SIZES},
    )
)

MakeEntry = Callable[[float], Entry]


def untimed(size: int, depth: int = 2) -> Plan:
    """Time is no matter: nothing is gained by a fuller batch."""
    return Plan((size,) * depth)


def timed(*sizes: int) -> Plan:
    return Plan(sizes, TABLE.seconds)


def entry_of(loop: asyncio.AbstractEventLoop, arrival: float, deadline: float | None = None) -> Entry:
    return Entry(0.5, 1, 1, arrival, deadline, loop, loop.create_future(), enqueued=arrival)


def taken(batch: Batch | None) -> Batch:
    assert batch is not None
    return batch


def arrivals(batch: Batch | None) -> list[float]:
    return [entry.arrival for entry in taken(batch).entries]


def go_on(lanes: Lanes, batch: Batch, unsure: Sequence[Entry], now: float = 0.0) -> None:
    """What a worker does after a stage that is not the last: ``unsure`` keep their slots."""
    unused = []
    for entry, slot in zip(batch.entries, batch.slots, strict=True):
        if entry in unsure:
            entry.slot, entry.enqueued = slot, now
        else:
            unused.append(slot)
    lanes.escalate(batch.stage, unsure, len(batch.entries), unused)

"""Config stores of several processes, all in this one: over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.state.base import RuntimeConfig, ThresholdConfig
from service.state.line import Line
from service.state.local import LocalConfigStore, SharedConfig

START = RuntimeConfig(
    1,
    {"tiny": ThresholdConfig("threshold", 0.0, 0.5), "other": ThresholdConfig("min_agreement", 0.9, 0.7, 0.2)},
    {"tiny": 1, "other": 3},
)


@asynccontextmanager
async def local_configs(count: int) -> AsyncIterator[tuple[LocalConfigStore, ...]]:
    """``count`` stores of one parent, not started yet; the parent's ends hang up in the end."""
    shared = SharedConfig()
    parents: list[Line] = []
    leaving: list[asyncio.Task[None]] = []
    stores: list[LocalConfigStore] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()

        async def hear_child(kind: str, body: Any, of: int = len(parents)) -> Any:
            return await shared.hear(parents[of], kind, body)

        parents.append(Line(ours, hear_child))
        await parents[-1].open()
        leaving.append(asyncio.create_task(_leave(shared, parents[-1])))
        stores.append(await _store(theirs))
    yield tuple(stores)
    for line in parents:
        line.close()
    await asyncio.gather(*leaving)


async def _leave(shared: SharedConfig, line: Line) -> None:
    """What the parent does once a process has ended."""
    await line.wait_closed()
    shared.leave(line)


async def _store(end: socket.socket) -> LocalConfigStore:
    async def hear_parent(kind: str, body: Any) -> None:
        await store.hear(kind, body)

    line = Line(end, hear_parent)
    store = LocalConfigStore(line, START)
    await line.open()
    return store

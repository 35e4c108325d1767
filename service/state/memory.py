"""State of a single server, in its own memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from service.state.base import CachedOutputs, Change, RuntimeConfig, Target, check_expected_version


class MemoryConfigStore:
    """The runtime config of one process. Nothing is shared, so everything can always be reached."""

    is_up = True
    is_invalid = False
    announced: Mapping[str, int] = {}

    def __init__(self, start: RuntimeConfig) -> None:
        self._current = start
        self._lock = asyncio.Lock()
        self._turn = asyncio.Lock()

    @property
    def current(self) -> RuntimeConfig:
        """The config in force."""
        return self._current

    async def start(self) -> None:
        """See ``ConfigStore.start``."""

    async def announce(self, models: Mapping[str, int]) -> None:
        """Nobody to notify."""

    async def tell_prepared(self, models: Mapping[str, int], why_not: str | None = None) -> None:
        """Nobody to notify."""

    async def others_prepared(self) -> list[str]:
        """Nobody to wait for."""
        return []

    async def tell_serving(self, version: int) -> None:
        """Nobody to notify."""

    async def others_serving(self, version: int) -> None:
        """Nobody to wait for."""

    def turn(self) -> asyncio.Lock:
        """See ``ConfigStore.turn``."""
        return self._turn

    async def close(self) -> None:
        """See ``ConfigStore.close``."""

    async def update(self, change: Change, expected_version: int | None = None) -> RuntimeConfig:
        """See ``ConfigStore.update``."""
        async with self._lock:
            before = self._current
            check_expected_version(before, expected_version)
            self._current = replace(change(before), version=before.version + 1)
            return self._current


class MemoryTargets:
    """This replica's own target; no other is known."""

    def __init__(self) -> None:
        self._own: list[Target] = []

    async def start(self, own: Target) -> None:
        """See ``Targets.start``."""
        self._own = [own]

    async def close(self) -> None:
        """See ``Targets.close``."""
        self._own = []

    async def listed(self) -> list[Target]:
        """See ``Targets.listed``."""
        return self._own


class MemoryResultCache:
    """The ``capacity`` results that were used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[str, CachedOutputs] = OrderedDict()

    async def get(self, key: str) -> CachedOutputs | None:
        """See ``ResultCache.get``."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    async def put(self, key: str, known: CachedOutputs) -> None:
        """See ``ResultCache.put``."""
        before = self._entries.get(key)
        if before is None or len(before.outputs) <= len(known.outputs):
            self._entries[key] = known
        self._entries.move_to_end(key)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

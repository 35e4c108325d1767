"""Tracks what the other replicas report while this one changes which models are served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping


class Others:
    """Which replicas have prepared the announced models, and which config version each serves. For the event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._models: Mapping[str, int] = {}
        self._prepared: dict[Hashable, str | None] = {}  # with the reason if a replica cannot
        self._serving: dict[Hashable, int] = {}
        self._gone: set[Hashable] = set()
        self._news = asyncio.Event()

    def expect(self, models: Mapping[str, int]) -> None:
        """Start to expect that replicas prepare ``models``; ``hear_of`` says how many."""
        self._models, self._count, self._prepared, self._gone = dict(models), 0, {}, set()

    def hear_of(self, count: int) -> None:
        """Set the number of replicas that received the announcement."""
        self._count = count
        self._news.set()

    def are(self, count: int) -> None:
        """Set the number of replicas. Some may not have received the announcement."""
        self._count, self._gone = count, set()

    def prepared(self, models: Mapping[str, int], who: Hashable, why_not: str | None = None) -> None:
        """Note that ``who`` has prepared ``models``, or why it cannot."""
        if models == self._models:
            self._prepared[who] = why_not
            self._news.set()

    def serving(self, version: int, who: Hashable) -> None:
        """Note that ``who`` serves this version of the config, or cannot."""
        self._serving[who] = version
        self._news.set()

    def left(self, who: Hashable) -> None:
        """Stop waiting for ``who``."""
        self._serving.pop(who, None)
        self._gone.add(who)
        self._news.set()

    async def wait_prepared(self) -> list[str]:
        """Wait until all have prepared the models or failed. Returns the reasons of those that failed."""
        await self._wait(lambda: self._prepared)
        return [why for why in self._prepared.values() if why is not None]

    async def wait_serving(self, version: int) -> None:
        """Wait until all serve this version, or a later one."""
        await self._wait(lambda: [who for who, serving in self._serving.items() if serving >= version])

    async def _wait(self, done: Callable[[], Mapping[Hashable, object] | list[Hashable]]) -> None:
        while len(self._gone.union(done())) < self._count:
            self._news.clear()
            await self._news.wait()

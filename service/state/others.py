"""What the other replicas say of themselves while one of them changes which models are served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping


class Others:
    """Who has prepared what was announced here, and which version of the config each serves. In the event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._models: Mapping[str, int] = {}
        self._prepared: dict[Hashable, str | None] = {}  # and why those cannot that cannot
        self._serving: dict[Hashable, int] = {}
        self._gone: set[Hashable] = set()
        self._news = asyncio.Event()

    def expect(self, models: Mapping[str, int], count: int) -> None:
        """From now on ``count`` of them are to prepare ``models``."""
        self._models, self._count, self._prepared, self._gone = dict(models), count, {}, set()

    def hear_of(self, count: int) -> None:
        """How many have heard of it."""
        self._count = count
        self._news.set()

    def are(self, count: int) -> None:
        """How many there are now, some of which may have heard of nothing."""
        self._count, self._gone = count, set()

    def prepared(self, models: Mapping[str, int], who: Hashable, why_not: str | None = None) -> None:
        """``who`` has prepared ``models``, or cannot."""
        if models == self._models:
            self._prepared[who] = why_not
            self._news.set()

    def serving(self, version: int, who: Hashable) -> None:
        """``who`` serves what this version of the config names, or cannot."""
        self._serving[who] = version
        self._news.set()

    def left(self, who: Hashable) -> None:
        """``who`` is not waited for any more."""
        self._serving.pop(who, None)
        self._gone.add(who)
        self._news.set()

    async def wait_prepared(self) -> list[str]:
        """Wait for all that were told of what is expected; why those cannot that cannot."""
        await self._wait(lambda: self._prepared)
        return [why for why in self._prepared.values() if why is not None]

    async def wait_serving(self, version: int) -> None:
        """Wait until they serve this version, or a later one."""
        await self._wait(lambda: [who for who, serving in self._serving.items() if serving >= version])

    async def _wait(self, done: Callable[[], Mapping[Hashable, object] | list[Hashable]]) -> None:
        while len(self._gone.union(done())) < self._count:
            self._news.clear()
            await self._news.wait()

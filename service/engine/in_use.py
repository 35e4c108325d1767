"""Whether anything is in use now, and when it no longer is."""

from __future__ import annotations

import asyncio


class InUse:
    """A context manager that any number of tasks of one event loop enter at a time."""

    def __init__(self) -> None:
        self._count = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def __enter__(self) -> None:
        self._count += 1
        self._unused.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._unused.set()

    async def wait_until_unused(self) -> None:
        """Wait until none is within."""
        await self._unused.wait()

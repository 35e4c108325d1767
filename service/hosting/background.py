"""Tasks that run until they are ended."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancel ``task``, if there is one, and wait for its end. Raises the exception that had ended it before."""
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

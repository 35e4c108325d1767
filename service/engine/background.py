"""Tasks that go on until they are told to end."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancel ``task``, if there is one, and wait until it has ended. Raises what it had ended with before."""
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

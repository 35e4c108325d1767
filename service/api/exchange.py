"""One request and its answer: what is known beyond what ASGI tells, and what happens once the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Scope

from service.errors import ClientLeft, LowfirstError

EXTENSION = "lowfirst.exchange"  # in the scope's `extensions`, where `service.cli.http_protocol` serves

T = TypeVar("T")


@dataclass(slots=True)
class Exchange:
    """Of a request, while it is answered.

    Attributes:
        on_leave: called once the client is gone, unless it is None.
        broken: why the rest of the body is no HTTP. For ASGI the body ends there.
    """

    on_leave: Callable[[], None] | None = None
    broken: LowfirstError | None = None


def exchange_of(scope: Scope) -> Exchange | None:
    """That of a request; None where a server of another kind has its connection."""
    found: Exchange | None = scope.get("extensions", {}).get(EXTENSION)
    return found


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """What ``work`` gives. The request's body has been read.

    Raises:
        ClientLeft: as soon as the client is gone. ``work`` is cancelled: its images are dropped where they stand.
    """
    working = asyncio.current_task()
    assert working is not None
    has_left = False

    def leave() -> None:
        nonlocal has_left
        has_left = True
        working.cancel()

    with _watched(request, leave):
        try:
            return await work
        except asyncio.CancelledError:
            if not has_left or working.uncancel():  # somebody else cancelled
                raise
            raise ClientLeft from None


@contextmanager
def _watched(request: Request, leave: Callable[[], None]) -> Iterator[None]:
    """Have ``leave`` called once the client is gone: by its connection itself, else by a task that waits for it."""
    exchange = exchange_of(request.scope)
    if exchange is not None:
        exchange.on_leave = leave
        try:
            yield
        finally:
            exchange.on_leave = None
        return

    def told(_: asyncio.Task[None]) -> None:
        leave()

    waiting = asyncio.ensure_future(_client_left(request))
    waiting.add_done_callback(told)
    try:
        yield
    finally:
        waiting.remove_done_callback(told)
        waiting.cancel()


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

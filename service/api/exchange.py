"""A request and its answer beyond ASGI: what happens if the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Scope

from service.errors import ClientLeft, LowfirstError

EXTENSION = "lowfirst.exchange"  # in the scope's `extensions`, if `service.cli.http_protocol` serves

T = TypeVar("T")


@dataclass(slots=True)
class Exchange:
    """A request while it is answered.

    Attributes:
        on_leave: called once the client disconnects, unless it is None.
        broken: why the rest of the body is not valid HTTP. For ASGI the body ends there.
    """

    on_leave: Callable[[], None] | None = None
    broken: LowfirstError | None = None


def exchange_of(scope: Scope) -> Exchange | None:
    """The exchange of a request; None if another kind of server has its connection."""
    found: Exchange | None = scope.get("extensions", {}).get(EXTENSION)
    return found


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``. The request's body has been read.

    Raises:
        ClientLeft: as soon as the client disconnects. ``work`` is cancelled, and its images are dropped.
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
    """Call ``leave`` once the client disconnects: by its connection itself, otherwise by a task that waits for it."""
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

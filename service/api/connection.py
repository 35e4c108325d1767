"""A client's connection: what is known of it beyond what ASGI tells, and what happens once the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from service.errors import ClientLeft, LowfirstError

EXTENSION = "lowfirst.connection"  # in the scope's `extensions`, where `service.cli.http_protocol` serves

T = TypeVar("T")


@dataclass(slots=True)
class Connection:
    """One, which answers one request at a time.

    Attributes:
        on_leave: called when the client is gone, unless it is None.
        broken: what came of the latest request's body before it stopped to be HTTP; the body ends there.
    """

    on_leave: Callable[[], None] | None = None
    broken: LowfirstError | None = None


def connection_of(request: Request) -> Connection | None:
    """What is known of a request's connection; None where a server of another kind has it."""
    found: Connection | None = request.scope.get("extensions", {}).get(EXTENSION)
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
    """Have ``leave`` called once the client is gone: by the connection itself, else by a task that waits for it."""
    connection = connection_of(request)
    if connection is not None:
        connection.on_leave = leave
        try:
            yield
        finally:
            connection.on_leave = None
        return
    waiting = asyncio.ensure_future(_client_left(request))
    waiting.add_done_callback(_told := lambda _: leave())
    try:
        yield
    finally:
        waiting.remove_done_callback(_told)
        waiting.cancel()


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""JSON messages between two processes of one server, over a Unix socket: requests, responses and notifications."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from service.log import logger

LENGTH = struct.Struct("!I")

Hear = Callable[[str, Any], Awaitable[Any]]


class LineClosed(Exception):
    """The other end has closed."""


def frame(number: int, kind: str | None, body: Any) -> bytes:
    """One message. ``number`` is 0 if no response is expected; ``kind`` is None for a response."""
    text = json.dumps([number, kind, body]).encode()
    return LENGTH.pack(len(text)) + text


def has_hung_up(end: socket.socket) -> bool:
    """Whether the other end closed without sending anything, on a line that is not open yet."""
    try:
        return not end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


class Line:
    """One end. Used only in the event loop's thread; ``open`` it first.

    Args:
        end: of a pair of Unix stream sockets; taken over.
        hear: returns the response to a message, given its kind and body. Both are JSON. Messages are handled in order
            up to the first ``await``; the response after an exception is null.
    """

    def __init__(self, end: socket.socket, hear: Hear) -> None:
        self._end = end
        self._hear = hear
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._closed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Start to receive."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._end)
        self._spawn(self._listen(reader))

    @property
    def is_open(self) -> bool:
        """Whether the other end can be reached."""
        return self._writer is not None and not self._closed.is_set()

    async def wait_closed(self) -> None:
        """Wait until the other end has closed."""
        await self._closed.wait()

    def close(self) -> None:
        """Close this end."""
        if self._writer is not None:
            self._writer.close()

    def tell(self, kind: str, body: Any = None) -> None:
        """Send a notification; lost if the other end has closed."""
        self._send(0, kind, body)

    async def ask(self, kind: str, body: Any = None) -> Any:
        """Send a request and return the response. Raises LineClosed."""
        if not self.is_open:
            raise LineClosed
        self._number += 1
        number = self._number
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(number, kind, body)
            return await answer
        finally:
            del self._asked[number]

    def _send(self, number: int, kind: str | None, body: Any) -> None:
        if self._writer is not None and self.is_open:
            self._writer.write(frame(number, kind, body))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                    number, kind, body = json.loads(await reader.readexactly(length))
                    if kind is not None:
                        self._spawn(self._answer(number, kind, body))
                    elif number in self._asked and not self._asked[number].done():  # otherwise nobody waits for it
                        self._asked[number].set_result(body)
        finally:
            self._closed.set()
            self.close()
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(LineClosed())

    async def _answer(self, number: int, kind: str, body: Any) -> None:
        answer = None
        try:
            answer = await self._hear(kind, body)
        except LineClosed:
            pass
        except Exception:
            logger.exception("%s could not be answered", kind)
        if number:
            self._send(number, None, answer)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

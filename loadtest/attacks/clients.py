"""Clients over bare connections that know what became of each request: its status, lost, or never sent."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle

LOST, REFUSED = "lost", "refused"
TIMEOUT = 60.0
JPEG = "image/jpeg"


class Lost(Exception):
    """A request was sent, and no whole answer came."""


class Refused(Exception):
    """No connection was made, so nothing was asked."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its head's ``Host``."""

    path: str
    body: bytes = b""
    content_type: str = JPEG
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()

    def encoded(self) -> bytes:
        head = [f"{self.method} {self.path} HTTP/1.1", "Host: lowfirst", f"Content-Type: {self.content_type}"]
        head += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*head, f"Content-Length: {len(self.body)}", "\r\n"]).encode() + self.body


def classify(image: bytes, query: str = "") -> Request:
    return Request(f"/classify{query}", image)


@dataclass(slots=True)
class Fates:
    """What became of requests.

    Attributes:
        counts: by status, ``lost`` or ``refused``.
        seconds: of each answer, from when the request was due.
        began: of each answer, when its request was due.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    began: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Seconds that ``share`` of the answers took at most; 0 without any."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Connection:
    """Kept open from request to request; opened anew where the server has said that it closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: Request) -> tuple[int, bytes]:
        """Status and body of the answer. Raises: Lost, Refused."""
        if self._reader is None or self._reader.at_eof():
            await self._open()
        assert self._reader is not None
        assert self._writer is not None
        try:
            async with asyncio.timeout(TIMEOUT):
                self._writer.write(request.encoded())
                status, head, body = await answer(self._reader)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self.close()
            raise Lost(repr(error)) from error
        if b"connection: close" in head.lower():
            self.close()
        return status, body

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _open(self) -> None:
        self.close()
        try:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError as error:
            raise Refused(repr(error)) from error


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """The next final answer: status, head, body. Raises: EOFError: none came, or not all of it."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status >= 200:
            break
    lines = (line.partition(b":") for line in head.lower().splitlines())
    length = next((int(value) for name, _, value in lines if name == b"content-length"), None)
    if length is None:  # until the server hangs up
        return status, head, await reader.read()
    return status, head, await reader.readexactly(length)


async def ask(connection: Connection, request: Request, fates: Fates, due: float | None = None) -> int | None:
    """Ask, and count what came of it; the status."""
    began = time.monotonic() if due is None else due
    try:
        status, _ = await connection.ask(request)
    except Lost:
        fates.counts[LOST] += 1
        return None
    except Refused:
        fates.counts[REFUSED] += 1
        await asyncio.sleep(0.01)
        return None
    fates.counts[str(status)] += 1
    if status == 200:
        fates.seconds.append(time.monotonic() - began)
        fates.began.append(began)
    return status


@asynccontextmanager
async def load(port: int, requests: Sequence[Request], clients: int, pause: float = 0.0) -> AsyncIterator[Fates]:
    """So many clients that each ask again once they have their answer, until the block ends."""
    fates, stopping = Fates(), asyncio.Event()

    async def client(number: int) -> None:
        connection = Connection(port)
        for request in _from(requests, number):
            if stopping.is_set():
                break
            await ask(connection, request, fates)
            if pause:
                await asyncio.sleep(pause)
        connection.close()

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    try:
        yield fates
    finally:
        stopping.set()
        await asyncio.gather(*tasks)


async def for_seconds(port: int, requests: Sequence[Request], clients: int, seconds: float) -> Fates:
    """``load`` for so long."""
    async with load(port, requests, clients) as fates:
        await asyncio.sleep(seconds)
    return fates


async def arrivals(
    port: int, requests: Sequence[Request], rate: float, seconds: float, most: int = 256
) -> tuple[Fates, int]:
    """Requests that arrive ``rate`` a second, whatever became of those before; and how many found no connection of
    ``most`` free."""
    fates, free, dropped = Fates(), [Connection(port) for _ in range(most)], 0
    running: set[asyncio.Task[None]] = set()

    async def one(connection: Connection, request: Request, due: float) -> None:
        await ask(connection, request, fates, due)
        free.append(connection)

    began = time.monotonic()
    for index, request in enumerate(_from(requests, 0)):
        due = began + index / rate
        if due > began + seconds:
            break
        if (early := due - time.monotonic()) > 0:
            await asyncio.sleep(early)
        elif index % 16 == 0:
            await asyncio.sleep(0)  # late ones come at once, and answers are read between them
        if free:
            task = asyncio.create_task(one(free.pop(), request, due))
            running.add(task)
            task.add_done_callback(running.discard)
        else:
            dropped += 1
    await asyncio.gather(*running)
    for connection in free:
        connection.close()
    return fates, dropped


def _from(requests: Sequence[Request], start: int) -> Iterator[Request]:
    first = start % len(requests)
    return cycle([*requests[first:], *requests[:first]])


async def until(reached: Callable[[], bool], seconds: float = TIMEOUT) -> bool:
    """Whether it came to be so in time."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(reached):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


async def raw(
    port: int, sent: bytes, *, seconds: float = TIMEOUT, lingers: float = TIMEOUT, half_closes: bool = False
) -> tuple[list[int], bool]:
    """Statuses of all that is answered to bytes on a connection of their own, and whether the server hung up.

    Args:
        seconds: to wait for the first answer.
        lingers: to wait for each further one, or the end.
        half_closes: whether to shut the sending side down.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses: list[int] = []
    try:
        with suppress(OSError):
            writer.write(sent)
            await writer.drain()
            if half_closes:
                writer.write_eof()
        while True:
            async with asyncio.timeout(lingers if statuses else seconds):
                statuses.append((await answer(reader))[0])
    except TimeoutError:
        return statuses, False
    except (EOFError, OSError, ValueError):
        return statuses, True
    finally:
        writer.close()

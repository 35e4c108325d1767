"""The attackers know what became of each request, and a row that breaks its bound fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from loadtest.attacks.clients import Connection, Fates, Lost, Refused, answer, arrivals, ask, classify, for_seconds, raw
from loadtest.attacks.framing import CASES
from loadtest.attacks.outcome import Outcome, markdown
from loadtest.servers import free_port

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    ended = set[asyncio.Event]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.add(done := asyncio.Event())
        with suppress(EOFError, OSError):
            await handler(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        done.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*(done.wait() for done in ended)), 30)


def answering(told: bytes) -> Handler:
    """Each request is answered so, until one closes the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            await reader.readexactly(length)
            writer.write(told)
            if b"close" in told or told != OK:
                break

    return handle


async def fates_of(told: bytes, times: int = 2) -> dict[str, int]:
    fates = Fates()
    async with listening(answering(told)) as port:
        connection = Connection(port)
        for _ in range(times):
            await ask(connection, classify(b"image"), fates)
        connection.close()
    return dict(fates.counts)


async def test_answers_are_counted_by_status() -> None:
    assert await fates_of(OK.replace(b"200 OK", b"503 No")) == {"503": 1, "lost": 1}  # it hung up without a word
    assert await fates_of(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) == {"200": 2}


@pytest.mark.parametrize("told", [b"", OK[:10], OK[:-1], b"no HTTP\r\n\r\n"])
async def test_request_without_a_whole_answer_is_lost(told: bytes) -> None:
    async with listening(answering(told)) as port:
        connection = Connection(port)
        with pytest.raises(Lost):
            await connection.ask(classify(b"image"))


async def test_request_without_a_connection_is_refused() -> None:
    with pytest.raises(Refused):
        await Connection(free_port()).ask(classify(b"image"))


async def test_answer_after_100_continue_is_the_one_that_counts() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
    assert (await answer(reader))[0] == 200


async def test_load_counts_every_request() -> None:
    async with listening(answering(OK)) as port:
        kept = await for_seconds(port, [classify(b"image")], 3, 0.05)
        arrived, dropped = await arrivals(port, [classify(b"image")], 200, 0.1, most=2)
    assert set(kept.counts) == {"200"}
    assert len(kept.seconds) == kept.counts["200"] >= 3
    assert arrived.counts["200"] + dropped == 21
    assert kept.quantile(0) <= kept.quantile(0.99) <= max(kept.seconds)


async def test_all_that_comes_over_a_bare_connection_is_told() -> None:
    async with listening(answering(OK)) as port:
        assert await raw(port, b"GET / HTTP/1.1\r\n\r\n" * 3, lingers=5, half_closes=True) == ([200] * 3, True)
        assert await raw(port, b"GET / HTTP/1.1\r\n\r\n", lingers=0.05) == ([200], False)


def test_row_fails_by_what_does_not_hold() -> None:
    outcome = Outcome("row", "bound", fates=Counter({"200": 1000, "500": 1}))
    outcome.expect(True, "not told")
    assert outcome.passed
    outcome.expect_fates("200")
    assert not outcome.passed
    assert "besides 200: 500: 1" in markdown([outcome])
    assert "200: 1,000" in markdown([outcome])
    assert outcome.as_dict()["passed"] is False


def test_odd_frames_are_each_tried_once() -> None:
    assert len({case.sent for case in CASES}) == len(CASES)
    assert len({case.name for case in CASES}) == len(CASES)

"""Rows of HTTP: the documented interface, slow clients, odd frames."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random

from loadtest.attacks.clients import Fates, for_seconds, load, raw, until
from loadtest.attacks.framing import CASES, CHUNKED, LIVE, post
from loadtest.attacks.outcome import Outcome
from loadtest.attacks.target import Bench, Target
from loadtest.servers import ROOT

RATIO = 1.5
CLIENTS = 4


async def schemathesis(bench: Bench) -> AsyncIterator[Outcome]:
    """What schemathesis makes of the OpenAPI document, states included."""
    outcome = Outcome("HTTP: schemathesis with states", "every answer as documented")
    examples = 3 if bench.is_quick else 100
    with bench.shared() as target:
        command = [sys.executable, "-m", "schemathesis.cli", "--no-color"]
        command += ["--config-file", str(ROOT / "tests/e2e/schemathesis.toml")]
        command += ["run", target.server.origin + "/openapi.json", "--continue-on-failure"]
        command += ["--max-examples", str(examples), "--seed", str(bench.seed)]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=bench.folder, capture_output=True, text=True, check=False
        )
    (bench.folder / "schemathesis.txt").write_text(done.stdout + done.stderr)
    cases = re.findall(r"(\d+) generated", done.stdout)
    outcome.did = f"all routes, {examples} examples of each"
    outcome.measured["cases"] = int(cases[-1]) if cases else 0
    outcome.expect(done.returncode == 0, f"status {done.returncode}, see schemathesis.txt")
    yield outcome


async def slow(bench: Bench) -> AsyncIterator[Outcome]:
    """Heads and bodies that come byte by byte, while others ask."""
    count = min(1000, max(200, bench.files // 100))
    for what, begun in (
        ("heads", b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Slow: "),
        ("bodies", post("Content-Length: 100000")),
        ("bodies in chunks without end", post(CHUNKED)),
    ):
        outcome = Outcome(
            f"HTTP: slow {what}", "other clients get 200, p99 at most 1.5 times; attackers disconnected; no place held"
        )
        piece = b"1\r\nx\r\n" if "chunks" in what else b"x"
        with bench.shared(receive_timeout_seconds=2) as target:
            await for_seconds(target.port, bench.requests, CLIENTS, 1)
            alone = await for_seconds(target.port, bench.requests, CLIENTS, bench.seconds)
            stopping = asyncio.Event()
            told: list[int] = []
            drips = [
                asyncio.create_task(_drip(target, begun, piece, stopping, told, number / count))
                for number in range(count)
            ]
            beside = await for_seconds(target.port, bench.requests, CLIENTS, bench.seconds)
            stopping.set()
            await asyncio.gather(*drips)
            outcome.expect(await until(target.is_idle), "something stays in flight")
        _judge_beside(bench, outcome, alone, beside)
        outcome.did = f"{count:,} connections, a byte every half second, renewed; {CLIENTS} others"
        outcome.measured["given up"] = len(told)
        outcome.expect(set(told) <= {408, 429, 503}, f"they were told {sorted(set(told))}")
        yield outcome


def _judge_beside(bench: Bench, outcome: Outcome, alone: Fates, beside: Fates) -> None:
    outcome.fates = beside.counts
    outcome.expect_fates("200")
    before, after = alone.quantile(0.99), beside.quantile(0.99)
    outcome.measured |= {"p99 alone, ms": 1e3 * before, "p99 beside, ms": 1e3 * after}
    bound = RATIO * bench.patience * before
    outcome.expect(after < bound, f"p99 of others {1e3 * after:.0f} ms, alone {1e3 * before:.0f}")


async def _drip(
    target: Target, begun: bytes, piece: bytes, stopping: asyncio.Event, told: list[int], wait: float
) -> None:
    """A connection that begins a request and sends it in drops, and opens another when it is given up."""
    await asyncio.sleep(wait)
    while not stopping.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        with suppress(OSError):
            writer.write(begun)
            while not stopping.is_set() and not reader.at_eof():
                writer.write(piece)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        line = await reader.readline()
                        if line:
                            told.append(int(line.split()[1]))
                        break
        writer.close()


async def framing(bench: Bench) -> AsyncIterator[Outcome]:
    """Odd frames, one by one, while others ask; and pipelined, half-closed and endless ones, many at a time."""
    outcome = Outcome("HTTP: framing and smuggling", "as in RFC 9112; smuggled requests are never answered; no 5xx")
    with bench.shared() as target:
        async with load(target.port, bench.requests, 1) as others:
            for case in CASES:
                statuses, closed = await raw(target.port, case.sent, lingers=15 if case.hangs_up else 0.3)
                outcome.fates.update(map(str, statuses))
                is_as_ruled = bool(statuses) and statuses[0] in case.first and len(statuses) <= case.most
                outcome.expect(is_as_ruled, f"{case.name}: answered {statuses}")
                outcome.expect(closed or not case.hangs_up, f"{case.name}: left open")
        outcome.expect(set(others.counts) == {"200"}, f"others got {dict(others.counts)}")
        outcome.expect(not any("smuggled" in name for name in target.metrics()), "a smuggled request was counted")
    outcome.did = f"{len(CASES)} cases"
    outcome.expect_fates(*(str(status) for status in (200, 400, 404, 405, 415, 422, 501)))
    yield outcome
    yield await _pipelined(bench)


async def _pipelined(bench: Bench) -> Outcome:
    outcome = Outcome(
        "HTTP: pipelined, half-closed, endless", "each answered once and in order; endless ones are disconnected"
    )
    random, count = Random(bench.seed), max(40, bench.files // 100)
    endless_ones = max(2, min(20, count // 20))
    with bench.shared(receive_timeout_seconds=2) as target:
        requests = [request.encoded() for request in bench.requests]
        began = time.monotonic()

        async def pipelined() -> None:
            chosen = random.choices([*requests, LIVE], k=random.randint(2, 8))
            statuses, closed = await raw(target.port, b"".join(chosen), half_closes=True)
            outcome.fates.update(map(str, statuses))
            whole = statuses == [200] * len(chosen)
            outcome.expect(whole and closed, f"{len(chosen)} in a row and half-closed: {statuses}")

        async def endless() -> None:
            body = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            statuses, closed = await raw(target.port, post(CHUNKED, body=body * 300))
            outcome.fates.update(map(str, statuses))
            outcome.expect(closed and statuses in ([413], []), f"endless chunks: {statuses}, closed: {closed}")

        for first in range(0, count, 8):
            await asyncio.gather(*(pipelined() for _ in range(min(8, count - first))))
        for _ in range(endless_ones):
            await endless()
        outcome.expect(await until(target.is_idle), "something stays in flight")
        outcome.measured["s"] = time.monotonic() - began
    outcome.did = f"{count:,} connections with 2 to 8 requests in a row, half-closed; {endless_ones} endless"
    outcome.expect_fates("200", "413")
    return outcome

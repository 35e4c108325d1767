"""Rows of images: damaged files in every form of a body, and small files that would take much."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from loadtest.attacks.clients import Connection, Fates, Lost, Request, ask, load
from loadtest.attacks.forms import FORMS, batch, raw
from loadtest.attacks.mutations import mutants
from loadtest.attacks.outcome import Outcome
from loadtest.attacks.target import MB, Bench, Target
from tests.images.bombs import BOMBS, PARTS, with_scans

REFUSALS = ("400", "413", "415", "422")
CLIENTS = 8
SLOW_SECONDS = 1.0
MEMORY_MB = 200
HELPER_MB = 400
PARTS_OF_A_BOMB = 1_500_000


@dataclass(slots=True)
class Watch:
    """The most resident bytes of each process meanwhile; ``idle``: of those that were there before."""

    idle: dict[int, int]
    most: dict[int, int] = field(default_factory=dict)

    def look(self, target: Target) -> None:
        for process, size in target.memory().items():
            self.most[process] = max(size, self.most.get(process, 0))

    def judge(self, outcome: Outcome) -> None:
        grown = max((self.most.get(process, 0) - size for process, size in self.idle.items()), default=0) / MB
        helpers = max((size for process, size in self.most.items() if process not in self.idle), default=0) / MB
        outcome.measured["MB above idle, of a process"] = round(grown)
        outcome.measured["MB of a process that decodes"] = round(helpers)
        outcome.expect(grown < MEMORY_MB, f"{grown:.0f} MB above idle")
        outcome.expect(helpers < HELPER_MB, f"a process that decodes takes {helpers:.0f} MB")


@asynccontextmanager
async def watched(target: Target) -> AsyncIterator[Watch]:
    """Look at the memory of its processes twice a second."""
    watch, stopping = Watch(target.memory()), asyncio.Event()

    async def look() -> None:
        while not stopping.is_set():
            await asyncio.to_thread(watch.look, target)
            await asyncio.sleep(0.5)

    task = asyncio.create_task(look())
    try:
        yield watch
    finally:
        stopping.set()
        await task


async def warm(target: Target, bench: Bench) -> None:
    """Let every process answer until it has taken what memory it takes for ordinary photographs."""
    async with load(target.port, bench.requests, CLIENTS):
        await asyncio.sleep(1 if bench.is_quick else 5)


async def images(bench: Bench) -> AsyncIterator[Outcome]:
    """Damaged files, one after another in every form of a body."""
    outcome = Outcome("Images: damaged files", "no 5xx, none lost, nothing over 1 s, memory within 200 MB of idle")
    forms, formats = Counter[str](), Counter[str]()
    slow: list[tuple[str, bytes, Request]] = []
    with bench.shared() as target:
        await warm(target, bench)
        async with watched(target) as watch:
            files = enumerate(mutants(bench.seed, bench.files))

            async def send(connection: Connection) -> None:
                for number, (kind, data) in files:
                    form = list(FORMS)[number % len(FORMS)]
                    request = FORMS[form]([data, bench.photographs[0]], bench.model)
                    forms[form] += 1
                    formats[kind.rpartition(" ")[0]] += 1
                    began = time.monotonic()
                    try:
                        status, body = await connection.ask(request)
                    except Lost as error:
                        outcome.fates["lost"] += 1
                        _keep(bench, outcome, data, f"lost: {error}")
                        continue
                    outcome.fates[str(status)] += 1
                    if status >= 500:
                        _keep(bench, outcome, data, f"{status} for a {kind}")
                    if form == "batch" and status == 200:
                        _judge_batch(json.loads(body)["results"], outcome)
                    if time.monotonic() - began > SLOW_SECONDS:
                        slow.append((kind, data, request))

            await _together(send, target)
        watch.judge(outcome)
        await _again_alone(target, slow, bench, outcome)
    outcome.did = f"{bench.files:,} files of {len(formats)} kinds in {len(forms)} forms of a body, seed {bench.seed}"
    outcome.expect_fates("200", *REFUSALS)
    yield outcome


def _judge_batch(results: Sequence[dict[str, object]], outcome: Outcome) -> None:
    """The damaged one is first, and the photograph after it gets its answer."""
    *_, good = results
    outcome.expect("label" in good, "a photograph in a batch with a damaged file got no answer")
    status = results[0].get("status", 200)
    outcome.expect(str(status) in ("200", *REFUSALS), f"a damaged file in a batch got {status}")


async def _together(send: Callable[[Connection], Awaitable[None]], target: Target) -> None:
    connections = [Connection(target.port) for _ in range(CLIENTS)]
    await asyncio.gather(*map(send, connections))
    for connection in connections:
        connection.close()


async def _again_alone(
    target: Target, slow: Sequence[tuple[str, bytes, Request]], bench: Bench, outcome: Outcome
) -> None:
    """What took long beside others may have waited for them: of each alone, the processor's time counts."""
    longest, connection = 0.0, Connection(target.port)
    for kind, data, request in slow[:100]:
        before = target.cpu_seconds()
        await connection.ask(request)
        took = target.cpu_seconds() - before
        longest = max(longest, took)
        if took > SLOW_SECONDS * bench.patience:
            _keep(bench, outcome, data, f"{took:.1f} s of a processor for a {kind}")
    connection.close()
    outcome.measured["over 1 s beside others"] = len(slow)
    outcome.measured["of these the longest alone, s of a processor"] = longest


def _keep(bench: Bench, outcome: Outcome, data: bytes, why: str) -> None:
    """The file that broke it, for the regression tests."""
    path = bench.folder / f"broke-{len(outcome.broken)}.bin"
    path.write_bytes(data)
    outcome.broken.append(f"{why} ({path.name})")


async def bombs(bench: Bench) -> AsyncIterator[Outcome]:
    """Small files that claim much, alone and beside a photograph, while others ask."""
    outcome = Outcome("Images: bombs", "refused, none lost, no 5xx; others are answered; memory within 200 MB of idle")
    files = dict(_bombs())
    with bench.shared() as target:
        await warm(target, bench)
        longest, connection, fates = 0.0, Connection(target.port), Fates()
        async with watched(target) as watch, load(target.port, bench.requests, 2) as others:
            for name, data in files.items():
                before = target.cpu_seconds(), time.monotonic()
                status = await ask(connection, raw([data], bench.model), fates)
                longest = max(longest, time.monotonic() - before[1])
                outcome.expect(str(status) in ("200", *REFUSALS), f"{name}: {status}")
                _, body = await connection.ask(batch([data, bench.photographs[0]], bench.model))
                outcome.expect("label" in json.loads(body)["results"][-1], f"{name} in a batch: {body[:100]!r}")
        connection.close()
        watch.judge(outcome)
    outcome.did = f"{len(files)} kinds, each alone and in a batch with a photograph, two clients beside"
    outcome.fates = fates.counts
    outcome.expect_fates("200", *REFUSALS)
    bound = SLOW_SECONDS * bench.patience
    outcome.measured["longest alone, s"] = longest
    outcome.expect(longest < bound, f"one took {longest:.1f} s")
    outcome.measured["others' answers"] = sum(others.counts.values())
    outcome.measured["others' longest, s"] = max(others.seconds, default=0.0)
    outcome.expect(set(others.counts) == {"200"}, f"others got {dict(others.counts)}")
    yield outcome


def _bombs() -> Iterator[tuple[str, bytes]]:
    for name, (data, _) in BOMBS.items():
        yield f"{name} of too many pixels", data
    for name, (make, _) in PARTS.items():
        yield name, make(PARTS_OF_A_BOMB)[: 16 << 20]
    for scans in (501, 10_000):
        yield f"{scans} scans", with_scans(scans)

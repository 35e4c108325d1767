"""Row of memory that runs out: the processes that serve may take no more than they have, for a while, under load."""

from __future__ import annotations

import asyncio
import io
import json
import resource
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import numpy as np
import psutil
from PIL import Image

from loadtest.attacks.clients import (
    LOST,
    REFUSED,
    Connection,
    Lost,
    Refused,
    Request,
    classify,
    for_seconds,
    load,
    until,
)
from loadtest.attacks.forms import batch
from loadtest.attacks.outcome import Outcome, told
from loadtest.attacks.target import MB, Bench, Target

CLIENTS = 4
SPARE = 2 * MB
SIDE = 1300  # of a picture of noise: 5 MB, so that a batch is too large for what a process has freed and kept
COUNT = 12


def large() -> bytes:
    """A PNG of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG", compress_level=1)
    return file.getvalue()


async def memory(bench: Bench) -> AsyncIterator[Outcome]:
    """What they may write to may not grow, so that what allocates gets no memory: large bodies, and what they hold."""
    outcome = Outcome(
        "Fault: out of memory",
        "a large request that finds no memory gets an error with a code, or a closed connection if not even its bytes "
        "find room; others get 200, or are lost with a process that is replaced; all get 200 once there is memory",
    )
    rounds = 2 if bench.is_quick else 20
    picture, dear, errors = large(), Counter[str](), Counter[str]()
    with bench.serve() as target:
        await for_seconds(target.port, bench.requests, CLIENTS, 1)
        processes = {each.pid for each in target.children()}
        async with load(target.port, bench.requests, CLIENTS) as fates:
            for _ in range(rounds):
                await asyncio.to_thread(_limit, target, SPARE)
                await _ask_for_memory(bench, target, picture, dear, errors)
                await asyncio.to_thread(_limit, target, None)
                outcome.expect(await until(target.is_ready), "not ready once there is memory")
        replaced = len({each.pid for each in await asyncio.to_thread(target.children)} - processes)
        afterwards = await for_seconds(target.port, [classify(picture), *bench.requests[:20]], CLIENTS, 1)
        outcome.expect(set(afterwards.counts) == {"200"}, f"once there is memory: {told(afterwards.counts)}")
        outcome.expect(await until(target.is_idle), "something stays in flight")
    asked = sum(dear.values())
    outcome.did = f"{rounds} times, {asked} requests of up to {COUNT} PNG of 5 MB, {CLIENTS} clients beside"
    outcome.measured = {
        "the large ones got": told(dear),
        "errors": told(errors),
        "processes replaced": replaced,
    }
    outcome.expect("500" in dear or replaced > 0, "memory never ran out")
    _judge(fates.counts, dear, replaced, outcome)
    outcome.fates = fates.counts + dear
    yield outcome


def _limit(target: Target, spare: float | None) -> None:
    """Bound the memory of each process that serves to what it has and ``spare`` bytes; None: to nothing.

    By the kernel's count of pages that may be written to: address space alone is kept in reserve for each thread.
    """
    for each in target.children():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            most = resource.RLIM_INFINITY if spare is None else int(each.memory_info().data + spare)
            resource.prlimit(each.pid, resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


async def _ask_for_memory(
    bench: Bench, target: Target, picture: bytes, fates: Counter[str], errors: Counter[str]
) -> None:
    """Large pictures, four requests at a time: one each, and batches of many."""
    connections = [Connection(target.port) for _ in range(CLIENTS)]
    requests = [classify(picture), batch([picture] * COUNT, bench.model)]
    for request in requests * 2:
        for fate, body in await asyncio.gather(*(_fate(each, request) for each in connections)):
            fates[fate] += 1
            answer = json.loads(body)
            errors.update(each["error"]["message"][:80] for each in answer.get("results", [answer]) if "error" in each)
    for connection in connections:
        connection.close()


async def _fate(connection: Connection, request: Request) -> tuple[str, bytes]:
    """What became of it, and the JSON that came."""
    try:
        status, body = await connection.ask(request)
    except Lost:
        return LOST, b"{}"
    except Refused:
        return REFUSED, b"{}"
    return str(status), body


def _judge(others: Counter[str], dear: Counter[str], replaced: int, outcome: Outcome) -> None:
    lost, had = others[LOST], CLIENTS
    outcome.expect(lost <= replaced * had, f"{lost} small ones lost by {replaced} processes, of {had} that each had")
    allowed = {"200", "429", "500", "503", LOST, REFUSED}
    outcome.expect(set(dear) <= allowed, f"the large ones got {told(dear)}")
    outcome.expect(set(others) <= {"200", LOST, REFUSED, "503"}, f"the others got {told(others)}")

"""Row of clients that leave at any point of a request, by an ordinary end or by a reset."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random

from loadtest.attacks.clients import Connection, Fates, Request, ask, load, until
from loadtest.attacks.forms import FORMS
from loadtest.attacks.outcome import Outcome
from loadtest.attacks.target import Bench, Target

AT_ONCE = 64
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: an end at once, whatever was not sent


async def leaving(bench: Bench) -> AsyncIterator[Outcome]:
    """Clients that send a part of a request, or all of it, and leave."""
    outcome = Outcome(
        "HTTP: clients that leave", "images, bytes and features in flight return to 0; other clients get 200"
    )
    count = max(300, bench.files // 10)
    random = Random(bench.seed)
    with bench.shared() as target:
        requests = [form(bench.photographs[:3], bench.model) for form in FORMS.values()]
        before = target.held()["descriptors"]
        left = {"in the head": 0, "in the body": 0, "before the answer": 0}
        async with load(target.port, bench.requests, 2) as others:
            for first in range(0, count, AT_ONCE):
                several = [
                    _leave(target, random, random.choice(requests), left) for _ in range(min(AT_ONCE, count - first))
                ]
                await asyncio.gather(*several)
        outcome.expect(await until(target.is_idle), f"in flight stays {target.get('/stats')['queue']}")
        outcome.expect(await until(lambda: target.held()["descriptors"] <= before + 4), "descriptors stay open")
        fates, connection = Fates(), Connection(target.port)
        await ask(connection, bench.requests[0], fates)
        connection.close()
        counted = target.classified()
    outcome.did = f"{count:,}: " + ", ".join(f"{number:,} {where}" for where, number in left.items())
    outcome.fates = others.counts + fates.counts
    outcome.expect_fates("200")
    outcome.measured["counted as 499"] = counted.get("499", 0)
    outcome.expect(counted.get("500", 0) == 0, f"{counted.get('500')} are counted as 500")
    yield outcome


async def _leave(target: Target, random: Random, request: Request, left: dict[str, int]) -> None:
    encoded = request.encoded()
    head = encoded.index(b"\r\n\r\n") + 4
    where = random.choice(list(left))
    left[where] += 1
    ends = {
        "in the head": (0, head - 1),
        "in the body": (head, len(encoded) - 1),
        "before the answer": (len(encoded),) * 2,
    }
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", target.port)
        writer.write(encoded[: random.randint(*ends[where])])
        await writer.drain()
        await asyncio.sleep(random.choice((0, 0, 0.002, 0.02)))
        if random.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.close()

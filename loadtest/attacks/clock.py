"""Row of a clock that jumps: the wall clock of a running server, an hour ahead and back, under load.

libfaketime lies to the server's processes about the wall clock alone: ``apt-get install libfaketime``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from loadtest.attacks.clients import classify, load, until
from loadtest.attacks.outcome import Outcome
from loadtest.attacks.target import SERVE, Bench, Target

LIBRARY = "*/faketime/libfaketimeMT.so.1"
LIBRARIES = Path("/usr/lib")
JUMPS = {"an hour ahead": 3600, "two hours back": -3600, "to what it was": 0}
SLACK_SECONDS = 60.0
DEADLINE_MS = 5_000
CLIENTS = 4
SHARE = 0.5


async def clock(bench: Bench) -> AsyncIterator[Outcome]:
    """Jumps, while half of the clients ask with a deadline and thresholds are changed."""
    outcome = Outcome(
        "Fault: the clock jumps", "all 200, none lost; ready; thresholds, rates and counts as if it had not"
    )
    library = next(LIBRARIES.glob(LIBRARY), None)
    if library is None:
        outcome.broken.append("libfaketime is not installed")
        yield outcome
        return
    offset = bench.folder / "clock"
    offset.write_text("+0")
    lies = (f"LD_PRELOAD={library}", f"FAKETIME_TIMESTAMP_FILE={offset}", "FAKETIME_NO_CACHE=1")
    command = ("env", *lies, "FAKETIME_DONT_FAKE_MONOTONIC=1", *SERVE)
    deadline_ms = DEADLINE_MS * bench.patience
    requests = [
        classify(photograph, f"?deadline_ms={deadline_ms:g}" if number % 2 else "")
        for number, photograph in enumerate(bench.photographs)
    ]
    with bench.serve(command=command) as target:
        async with load(target.port, requests, CLIENTS) as fates:
            await asyncio.sleep(bench.seconds)
            first = time.monotonic()
            for number, (jump, seconds) in enumerate(JUMPS.items()):
                await asyncio.sleep(bench.seconds / 3)
                before = await asyncio.to_thread(target.get, "/stats")
                offset.write_text(f"{seconds:+}")
                jumped = time.monotonic()
                changed = await asyncio.to_thread(target.patch, "/config/threshold", {"threshold": 0.5 + number / 100})
                outcome.expect(changed.status_code == 200, f"{jump}: a change got {changed.status_code}")
                outcome.expect(await until(partial(_has_jumped, target, seconds)), f"{jump}: the server did not see it")
                await asyncio.sleep(bench.seconds / 3)
                answered = await until(partial(_has_answered, target, before["images"]))
                outcome.expect(answered, f"{jump}: no image is counted any more")
                after = await asyncio.to_thread(target.get, "/stats")
                _judge(jump, before, after, time.monotonic() - jumped, outcome)
                outcome.expect(await asyncio.to_thread(target.is_ready), f"{jump}: not ready")
        idle = await asyncio.to_thread(target.is_idle)
        outcome.expect(idle, "something is in flight once the clients are gone")
    outcome.did = f"{', '.join(JUMPS)}; {CLIENTS} clients, half of the requests with deadlines of {deadline_ms:g} ms"
    pairs = list(zip(fates.began, fates.seconds, strict=True))
    outcome.measured = {
        "longest before, ms": 1e3 * max((took for began, took in pairs if began + took <= first), default=0.0),
        "longest meanwhile, ms": 1e3 * max((took for began, took in pairs if began + took > first), default=0.0),
    }
    outcome.fates = fates.counts
    outcome.expect_fates("200")
    yield outcome


def _has_answered(target: Target, images: int) -> bool:
    return bool(target.get("/stats")["images"] > images)


def _has_jumped(target: Target, seconds: float) -> bool:
    """Whether the time that the server tells is so far from that of here; each process looks once a second."""
    answer = httpx.get(target.server.origin + "/health/live", timeout=60)
    return abs(parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time() - seconds) < SLACK_SECONDS


def _judge(jump: str, before: Any, after: Any, seconds: float, outcome: Outcome) -> None:
    """Two snapshots of what the server does, ``seconds`` apart."""
    grown = after["images"] - before["images"]
    minute = after["last_minute"]
    outcome.expect(0 < minute["seconds"] <= 61 + SLACK_SECONDS, f"{jump}: the last minute has {minute['seconds']} s")
    whole = all(math.isfinite(each) and each >= 0 for each in _numbers(after))
    outcome.expect(whole, f"{jump}: /stats has numbers below 0, or none at all: {after}")
    outcome.expect(after["effective_threshold"] == after["threshold"], f"{jump}: the threshold is lowered")
    rate = grown / max(seconds, 1e-3)
    outcome.expect(
        after["images_per_second"] >= SHARE * min(rate, before["images_per_second"] or rate),
        f"{jump}: {after['images_per_second']} images per second are told, and {rate:.0f} were answered",
    )


def _numbers(body: Any) -> Iterator[float]:
    if isinstance(body, dict):
        for each in body.values():
            yield from _numbers(each)
    elif isinstance(body, int | float):
        yield float(body)

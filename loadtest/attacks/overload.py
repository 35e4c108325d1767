"""Rows of arrivals at a rate: below what the server can do, and far beyond; with deadlines and without."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping

from loadtest.attacks.clients import Fates, arrivals, classify, for_seconds
from loadtest.attacks.outcome import Outcome
from loadtest.attacks.target import Bench, Target

CLIENTS = 16
RATES = (0.5, 0.9, 1.5, 3.0)
GOODPUT = 0.9
DEADLINE_MS = 300
CONNECTIONS = 768  # more than images may be in flight: what is beyond is refused without a deadline, too
DECODED = "lowfirst_decode_seconds_count"


async def capacity(bench: Bench, target: Target) -> float:
    """Answers per second to clients that always wait for one."""
    await for_seconds(target.port, bench.requests, CLIENTS, 1)
    seconds = max(2.0, min(10.0, bench.seconds))
    return (await for_seconds(target.port, bench.requests, CLIENTS, seconds)).counts["200"] / seconds


async def rates(bench: Bench) -> AsyncIterator[Outcome]:
    """Open loop at shares of the capacity."""
    with bench.shared() as target:
        most = await capacity(bench, target)
        for share in RATES:
            outcome = Outcome(f"Load: {share:.0%} of capacity", "200, beyond capacity 429 as well; none lost")
            fates, dropped = await arrivals(target.port, bench.requests, share * most, bench.seconds)
            outcome.did = f"{share * most:.0f} arrivals per second for {bench.seconds:g} s, capacity {most:.0f}"
            outcome.fates = fates.counts
            outcome.expect_fates("200", "429")
            outcome.measured = {"answers per second": fates.counts["200"] / bench.seconds, **_latency(fates)}
            if dropped:
                outcome.measured["found no free connection of 256"] = dropped
            if share < 0.9 and not bench.is_quick:
                outcome.expect(set(fates.counts) == {"200"}, "429 below capacity")
            yield outcome


async def overload(bench: Bench) -> AsyncIterator[Outcome]:
    """Three times the capacity, without a deadline, and with one that an idle server meets."""
    bound = GOODPUT if not bench.is_quick else 0.3
    outcome = Outcome(
        f"Load: overload with a deadline of {DEADLINE_MS} ms", f"answers in time at least {bound} of those without one"
    )
    with bench.shared() as target:
        most = await capacity(bench, target)
        without, unsent = await arrivals(target.port, bench.requests, 3 * most, bench.seconds, CONNECTIONS)
        query = f"?deadline_ms={DEADLINE_MS}"
        requests = [classify(photograph, query) for photograph in bench.photographs]
        before, began = await asyncio.to_thread(target.metrics), time.process_time()
        given, also_unsent = await arrivals(target.port, requests, 3 * most, bench.seconds, CONNECTIONS)
        client = time.process_time() - began
        after = await asyncio.to_thread(target.metrics)
    plain, with_one = _meanwhile(without, bench.seconds), _meanwhile(given, bench.seconds)
    outcome.did = f"{3 * most:.0f} arrivals per second, {bench.seconds:g} s each, capacity {most:.0f}"
    outcome.fates = without.counts + given.counts
    outcome.expect_fates("200", "429", "504")
    goodput = with_one / max(plain, 1)
    outcome.measured = {"answers without": plain, "with": with_one, "ratio": goodput, **_latency(given)}
    outcome.measured |= {"not sent without": unsent, "not sent with": also_unsent}
    outcome.measured |= _dropped(before, after) | {"processor of the clients, s per s": client / bench.seconds}
    outcome.expect(goodput >= bound, f"{goodput:.2f} of the answers")
    yield outcome


def _meanwhile(fates: Fates, seconds: float) -> int:
    """Answers that were there before the arrivals ended: what waits then differs by what may wait."""
    end = min(fates.began, default=0.0) + seconds
    return sum(began + took <= end for began, took in zip(fates.began, fates.seconds, strict=True))


def _dropped(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Images dropped meanwhile, by where, beside those that were decoded."""
    points = {name: re.search(r'lowfirst_dropped_total{point="(.+)"}', name) for name in after}
    found = {found[1]: after[name] - before.get(name, 0.0) for name, found in points.items() if found}
    decoded = after[DECODED] - before[DECODED]
    return {"images decoded": decoded, **{f"dropped at {point}": count for point, count in found.items() if count}}


def _latency(fates: Fates) -> dict[str, float]:
    return {"p50, ms": 1e3 * fates.quantile(0.5), "p99, ms": 1e3 * fates.quantile(0.99)}

"""Rows of models exchanged while requests come."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from loadtest.attacks.clients import load
from loadtest.attacks.outcome import Outcome, told
from loadtest.attacks.target import MB, Bench, Target

CLIENTS = 4
EXTRA_MS = 100.0
GROWTH_MB = 40.0
OTHER = "imagenette-mobilenet-025"
MODELS = "store-two"


@contextmanager
def of_two_models(bench: Bench) -> Iterator[Target]:
    """A server of ``one``, the model, which may be exchanged for ``two``; the same for all rows."""
    store = bench.stores.get(MODELS) or bench.store(MODELS, one=bench.model, two=OTHER)
    with bench.shared(model_store=store, model="one", audit_probability=0) as target:
        yield target


async def switches(bench: Bench) -> AsyncIterator[Outcome]:
    """One after another, then two at once, on a server of two processes."""
    with of_two_models(bench) as target:
        count = 6 if bench.is_quick else 30
        outcome = Outcome(f"Fault: {count} switches", "all 200, none lost; none over 100 ms more; memory flat")
        memory: list[float] = []
        async with load(target.port, bench.requests, CLIENTS) as fates:
            await asyncio.sleep(max(1, bench.seconds / 3))
            switching = time.monotonic()
            for number in range(count):
                model = ("two", "one")[number % 2]
                answered = await asyncio.to_thread(target.patch, "/config/model", {"model": model})
                outcome.expect(answered.status_code == 200, f"a switch got {answered.text[:150]}")
                await asyncio.sleep(0.3)
                memory.append(sum((await asyncio.to_thread(target.memory)).values()) / MB)
        outcome.fates = fates.counts
        outcome.expect_fates("200")
        pairs = list(zip(fates.began, fates.seconds, strict=True))
        before = max((seconds for began, seconds in pairs if began < switching - 0.5), default=0.0)
        during = max((seconds for began, seconds in pairs if began >= switching), default=0.0)
        outcome.measured |= {"longest before, ms": 1e3 * before, "longest meanwhile, ms": 1e3 * during}
        bound = 1e3 * before + EXTRA_MS * bench.patience
        outcome.expect(1e3 * during < bound, f"one took {1e3 * during:.0f} ms, before at most {1e3 * before:.0f}")
        grown = max(memory[-2:]) - max(memory[2:4])
        outcome.measured["MB more after the last than after the fourth"] = grown
        outcome.expect(grown < GROWTH_MB, f"{grown:.0f} MB more")
        outcome.did = f"{count}, {CLIENTS} clients"
        yield outcome

        outcome = Outcome("Fault: two switches at once", "all 200, none lost; one model in both processes afterwards")
        statuses: Counter[str] = Counter()
        rounds = 2 if bench.is_quick else 10
        async with load(target.port, bench.requests, CLIENTS) as fates:
            for number in range(rounds):
                models = ("one", "two") if number % 2 else ("two", "one")
                both = (asyncio.to_thread(target.patch, "/config/model", {"model": model}) for model in models)
                statuses.update(str(answered.status_code) for answered in await asyncio.gather(*both))
            served = {(await asyncio.to_thread(target.get, "/stats"))["model"]["name"] for _ in range(10)}
            outcome.expect(len(served) == 1, f"processes serve {sorted(served)}")
        outcome.fates = fates.counts
        outcome.expect_fates("200")
        outcome.expect(set(statuses) <= {"200", "412"} and statuses["200"] > 0, f"switches: {told(statuses)}")
        outcome.did = f"{rounds} times two, {told(statuses)}; {CLIENTS} clients"
        yield outcome

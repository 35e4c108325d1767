"""Row of a soak: load for hours, changes without end, and nothing that grows; with a plot."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import Any

from loadtest.attacks.clients import TIMEOUT, Connection, Fates, Request, arrivals, classify, until
from loadtest.attacks.mutations import mutants
from loadtest.attacks.outcome import Outcome, told
from loadtest.attacks.overload import capacity
from loadtest.attacks.switches import of_two_models
from loadtest.attacks.target import MB, Bench, Target

SHARE = 0.7
GROWTH = 0.01
EVERY = 100  # one request in so many is a damaged file
TOP = "?threshold=1&top_k=2"

# By this probability the best class of a golden answer leads the second on the idle server. It is several times the
# rounding error of bfloat16. Another order of summation may swap closer classes, but not these.
MARGIN = 0.02
LEAST_GOLDEN = 8

Sample = dict[str, float]
Golden = dict[int, dict[str, str]]  # by photograph: the label by model


async def soak(bench: Bench) -> AsyncIterator[Outcome]:
    """70 % of capacity, a threshold per second, a switch per minute, 1 % damaged files."""
    outcome = Outcome(
        "Load: soak",
        f"golden answers (of those that lead by {MARGIN} when idle) right; counters equal the clients'; memory, "
        "descriptors flat",
    )
    minute = bench.soak_seconds / 4 if bench.is_quick else 60.0
    with of_two_models(bench) as target:
        most = await capacity(bench, target)
        golden = await _golden(bench, target)
        outcome.expect(len(golden) >= LEAST_GOLDEN, f"only {len(golden)} photographs have golden answers")
        before, held = await asyncio.to_thread(target.classified), await asyncio.to_thread(target.held)
        changes: Counter[str] = Counter()
        asked, samples = Fates(), list[Sample]()
        end = time.monotonic() + bench.soak_seconds
        beside = [
            asyncio.create_task(_change(target, end, changes)),
            asyncio.create_task(_switch(target, end, minute, changes)),
            asyncio.create_task(_check(bench, target, end, golden, asked, outcome)),
            asyncio.create_task(_sample(target, end, samples)),
        ]
        fates, dropped = await arrivals(target.port, _mixed(bench), SHARE * most, bench.soak_seconds)
        await asyncio.gather(*beside)
        after = await asyncio.to_thread(target.classified)
        idle = await until(lambda: target.held()["descriptors"] <= held["descriptors"] + 4)
        outcome.expect(idle, "descriptors stay open once the clients are gone")
    sent = fates.counts + asked.counts
    counted = Counter(after)
    counted.subtract(before)
    counted = +counted
    outcome.fates = sent
    outcome.expect_fates("200", "400", "413", "415", "429")
    outcome.expect(dict(counted) == dict(+sent), f"counted {told(counted)}, seen {told(sent)}")
    outcome.expect(set(changes) == {"200"}, f"changes: {told(changes)}")
    outcome.did = (
        f"{bench.soak_seconds:g} s at {SHARE * most:.0f} per second, {sum(changes.values())} changes, "
        f"a switch every {minute:g} s, golden answers {asked.counts['200']} of {len(golden)} photographs"
    )
    _judge_growth(bench, samples, outcome)
    if dropped:
        outcome.measured["found no free connection"] = dropped
    _plot(samples, bench.folder / "soak.png")
    yield outcome


def _mixed(bench: Bench) -> list[Request]:
    damaged = [data for _, data in islice(mutants(bench.seed, 60), 60)]
    photographs = cycle(bench.photographs)
    return [
        classify(damaged[number // EVERY % 60] if number % EVERY == 50 else next(photographs)) for number in range(6000)
    ]


async def _golden(bench: Bench, target: Target) -> Golden:
    """The labels by the last stage of each model on an idle server, for photographs where both models are sure."""
    found: dict[str, dict[int, str]] = {}
    connection = Connection(target.port)
    for model in ("two", "one"):
        answered = await asyncio.to_thread(target.patch, "/config/model", {"model": model})
        assert answered.status_code == 200, answered.text
        found[model] = {}
        for index, photograph in enumerate(bench.photographs):
            best, second = await _said(connection, photograph, model)
            if best["score"] - second["score"] >= MARGIN:
                found[model][index] = best["label"]
    connection.close()
    both = sorted(found["one"].keys() & found["two"].keys())
    return {index: {model: labels[index] for model, labels in found.items()} for index in both}


async def _said(connection: Connection, photograph: bytes, model: str) -> Any:
    """The two best classes by ``model``. The process that answers may switch to it a moment later."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        status, body = await connection.ask(classify(photograph, TOP))
        assert status == 200, body
        answer = json.loads(body)
        if answer["model"]["name"] == model:
            return answer["top_k"]
    raise TimeoutError(f"{model} does not answer")


async def _check(bench: Bench, target: Target, end: float, golden: Golden, asked: Fates, outcome: Outcome) -> None:
    """Ask for golden answers all the while."""
    connection = Connection(target.port)
    for index, labels in cycle(golden.items()):
        if time.monotonic() >= end:
            break
        status, body = await connection.ask(classify(bench.photographs[index], TOP))
        asked.counts[str(status)] += 1
        if status == 200:
            answer = json.loads(body)
            model, label = answer["model"]["name"], answer["label"]
            by = f"by {model}, {answer['exit']}, {answer['reason']}"
            outcome.expect(label == labels[model], f"photograph {index} is {label} {by}; not {labels[model]}")
        await asyncio.sleep(0.1)
    connection.close()


async def _change(target: Target, end: float, changes: Counter[str]) -> None:
    number = 0
    while time.monotonic() < end:
        number += 1
        threshold = 0.3 + (number % 60) / 100
        answered = await asyncio.to_thread(target.patch, "/config/threshold", {"threshold": threshold})
        changes[str(answered.status_code)] += 1
        await asyncio.sleep(1)


async def _switch(target: Target, end: float, minute: float, changes: Counter[str]) -> None:
    for model in cycle(("two", "one")):
        if time.monotonic() + minute > end:
            return
        await asyncio.sleep(minute)
        answered = await asyncio.to_thread(target.patch, "/config/model", {"model": model})
        changes[str(answered.status_code)] += 1


async def _sample(target: Target, end: float, samples: list[Sample]) -> None:
    began, before = time.monotonic(), 0
    while time.monotonic() < end:
        held = await asyncio.to_thread(target.held)
        answered = sum((await asyncio.to_thread(target.classified)).values())
        rate = answered - before if samples else 0
        before = answered
        samples.append(
            {
                "seconds": time.monotonic() - began,
                "MB": held["bytes"] / MB,
                "descriptors": held["descriptors"],
                "threads": held["threads"],
                "answers": rate,
            }
        )
        await asyncio.sleep(1)


def _judge_growth(bench: Bench, samples: Sequence[Sample], outcome: Outcome) -> None:
    """The last quarter against the second."""
    quarter = len(samples) // 4
    for what in ("MB", "threads"):  # descriptors are as many as clients keep open: see below
        second = mean(sample[what] for sample in samples[quarter : 2 * quarter])
        last = mean(sample[what] for sample in samples[-quarter:])
        outcome.measured[f"{what}, second quarter"] = round(second)
        outcome.measured[f"{what}, last"] = round(last)
        bound = GROWTH if not bench.is_quick else 0.3
        outcome.expect(last <= second * (1 + bound) + 1, f"{what} grew from {second:.0f} to {last:.0f}")


def _plot(samples: Sequence[Sample], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, figsize=(8, 9), sharex=True, layout="constrained")
    times = [sample["seconds"] for sample in samples]
    for axis, what in zip(axes, ("answers", "MB", "descriptors", "threads"), strict=True):
        axis.plot(times, [sample[what] for sample in samples])
        axis.set_ylabel(what)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)

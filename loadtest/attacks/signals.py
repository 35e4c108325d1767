"""Rows of signals: to the server in every state, and to its children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from functools import partial

import psutil

from loadtest.attacks.clients import load, until
from loadtest.attacks.outcome import Outcome, told
from loadtest.attacks.target import SERVE, Bench, Target
from loadtest.servers import free_port

CLIENTS = 8
EXITS = {signal.SIGTERM: (0,), signal.SIGINT: (130,), signal.SIGHUP: (0,)}
STOP_SECONDS = 30


async def signals(bench: Bench) -> AsyncIterator[Outcome]:
    """Each under load, again and again; and while the server starts."""
    rounds = 1 if bench.is_quick else 20
    for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        outcome = Outcome(f"Fault: {sent.name}", f"sent requests are answered, none lost; exit {EXITS[sent]}")
        exits: list[int | None] = []
        for _ in range(rounds):
            with bench.serve() as target:
                exits.append(await _stopped(bench, target, sent, outcome))
        outcome.did = f"{rounds} times, {CLIENTS} clients, exits {sorted(set(map(str, exits)))}"
        outcome.expect(set(exits) <= set(EXITS[sent]), f"exits: {exits}")
        outcome.expect_fates("200", "refused")
        yield outcome
    yield await _while_starting(bench)


async def _stopped(bench: Bench, target: Target, sent: signal.Signals, outcome: Outcome) -> int | None:
    process = target.process
    async with load(target.port, bench.requests, CLIENTS) as fates:
        await asyncio.sleep(0.7)
        process.send_signal(sent)
        try:
            status = await asyncio.to_thread(process.wait, STOP_SECONDS)
        except psutil.TimeoutExpired:
            status = None
    outcome.fates += fates.counts
    return None if status is None else int(status)


async def _while_starting(bench: Bench) -> Outcome:
    """At moments between the start and the first answer."""
    outcome = Outcome("Fault: signals while it starts", f"it ends within {STOP_SECONDS} s, by no crash")
    ends: dict[str, int] = {}
    moments = (0.1, 1.5) if bench.is_quick else (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
    for sent in EXITS:
        for moment in moments:
            environment = {
                **os.environ,
                "LOWFIRST_PORT": str(free_port()),
                "LOWFIRST_MODEL": bench.model,
                "LOWFIRST_PROCESSES": "2",
                "LOWFIRST_WORKERS": "2",
            }
            process = subprocess.Popen(SERVE, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            await asyncio.sleep(moment)
            process.send_signal(sent)
            try:
                status = await asyncio.to_thread(process.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                outcome.broken.append(f"{sent.name} after {moment} s did not end it")
                continue
            ends[str(status)] = ends.get(str(status), 0) + 1
            crashed = status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
            outcome.expect(not crashed, f"{sent.name} after {moment} s: exit {status}")
    outcome.did = f"{len(EXITS) * len(moments)} starts, exits {told(ends)}"
    return outcome


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


async def child(bench: Bench) -> AsyncIterator[Outcome]:
    """SIGKILL to a process that serves, under load; what it had is lost, and nothing else."""
    outcome = Outcome("Fault: a child killed", "only its own requests lost; replaced; others keep serving, counts stay")
    rounds = 1 if bench.is_quick else 10
    with bench.shared() as target:
        before = target.classified()["200"]
        async with load(target.port, bench.requests, CLIENTS) as fates:
            for _ in range(rounds):
                await asyncio.sleep(max(0.5, bench.seconds / 10))
                victim = (await asyncio.to_thread(target.children))[0]
                victim.kill()
                gone = await until(partial(_is_gone, victim.pid))
                outcome.expect(gone, "the killed one is still there")
                outcome.expect(await until(target.is_ready, 300), "it was not replaced")
                await asyncio.sleep(0.5)
        counted = await asyncio.to_thread(target.classified)
    outcome.fates = fates.counts
    outcome.did = f"{rounds} times, {CLIENTS} clients"
    outcome.expect_fates("200", "lost")
    lost = fates.counts["lost"]
    outcome.expect(lost <= rounds * CLIENTS, f"{lost} lost, of at most {rounds * CLIENTS} that it had")
    outcome.measured["counted as 200"] = counted["200"] - before
    outcome.expect(counted["200"] - before >= fates.counts["200"], "fewer are counted than were answered")
    yield outcome

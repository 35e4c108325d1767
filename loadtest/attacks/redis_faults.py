"""Rows of a shared Redis that goes wrong in every way while requests come."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from loadtest.attacks.clients import load, until
from loadtest.attacks.outcome import Outcome, told
from loadtest.attacks.target import Bench, Target
from loadtest.load import tool
from loadtest.servers import free_port

CLIENTS = 4
CACHE_SECONDS = 2


@dataclass(slots=True)
class Shared:
    """A Redis of its own, which can be killed and started again. It keeps nothing on disk."""

    port: int
    folder: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> Redis:
        return Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        command = [tool("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen([*command, "--dir", self.folder], stdout=subprocess.DEVNULL)

    def is_up(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisError:
            return False

    def send(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def garble(self) -> None:
        for key in self.client.scan_iter():
            if self.client.type(key) == b"string":
                self.client.set(key, b"\xff garbage {")


# How it goes wrong, and how that ends.
FAULTS: dict[str, tuple[Callable[[Shared], object], Callable[[Shared], object]]] = {
    "killed": (Shared.kill, Shared.start),
    "stopped": (lambda shared: shared.send(signal.SIGSTOP), lambda shared: shared.send(signal.SIGCONT)),
    "full": (
        lambda shared: shared.client.config_set("maxmemory", "1"),
        lambda shared: shared.client.config_set("maxmemory", "0"),
    ),
    "read-only": (
        lambda shared: shared.client.replicaof("127.0.0.1", "1"),
        lambda shared: shared.client.replicaof("NO", "ONE"),
    ),
    "emptied": (lambda shared: shared.client.flushall(), lambda shared: None),
    "garbage": (Shared.garble, lambda shared: None),
}


@contextmanager
def shared_redis() -> Iterator[Shared]:
    with tempfile.TemporaryDirectory(prefix="lowfirst-redis-") as folder:
        shared = Shared(free_port(), folder)
        shared.start()
        try:
            yield shared
        finally:
            if shared.process is not None and shared.process.poll() is None:
                shared.send(signal.SIGCONT)
            shared.kill()


async def redis(bench: Bench) -> AsyncIterator[Outcome]:
    """One fault after another on one server, whose results are cached there, too."""
    with shared_redis() as shared:
        await until(shared.is_up)
        with bench.serve(redis_url=f"redis://127.0.0.1:{shared.port}", cache_ttl_seconds=CACHE_SECONDS) as target:
            for fault, (begin, end) in FAULTS.items():
                yield await _fault(bench, shared, target, fault, begin, end)


async def _fault(
    bench: Bench,
    shared: Shared,
    target: Target,
    fault: str,
    begin: Callable[[Shared], object],
    end: Callable[[Shared], object],
) -> Outcome:
    outcome = Outcome(f"Fault: Redis {fault}", "all 200, none lost; changes 200 or 503; it comes back by itself")
    changes: Counter[str] = Counter()

    async def change() -> int:
        threshold = 0.5 + 0.001 * sum(changes.values())
        answered = await asyncio.to_thread(target.patch, "/config/threshold", {"threshold": threshold})
        changes[str(answered.status_code)] += 1
        return answered.status_code

    async with load(target.port, bench.requests, CLIENTS) as fates:
        await asyncio.sleep(bench.seconds / 3)
        outcome.expect(await change() == 200, "a change before the fault was refused")
        await asyncio.to_thread(begin, shared)
        await asyncio.sleep(bench.seconds / 3)
        await change()
        outcome.expect(await asyncio.to_thread(target.status, "/health/ready") == 200, "not ready during the fault")
        await asyncio.to_thread(end, shared)
        is_back = await until(lambda: target.metrics()["lowfirst_store_up"] == 1)
        outcome.expect(is_back, "lowfirst_store_up stays 0")
        recovered = False
        for _ in range(50):
            recovered = await change() == 200
            if recovered:
                break
            await asyncio.sleep(0.2)
        outcome.expect(recovered, "no change is accepted after the fault")
        await asyncio.sleep(bench.seconds / 3)
    outcome.fates = fates.counts
    outcome.expect_fates("200")
    outcome.expect(set(changes) <= {"200", "503"}, f"changes: {told(changes)}")
    thresholds = {(await asyncio.to_thread(target.get, "/config/threshold"))["threshold"] for _ in range(8)}
    outcome.expect(len(thresholds) == 1, f"processes differ: {sorted(thresholds)}")
    outcome.did = f"{CLIENTS} clients and {sum(changes.values())} changes ({told(changes)})"
    outcome.measured["longest answer, ms"] = 1e3 * max(fates.seconds, default=0.0)
    return outcome

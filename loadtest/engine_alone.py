"""What the engine and HTTP cost when the network and the decoder cost nothing.

    python loadtest/engine_alone.py

The passes give ready-made logits and the decoder a ready-made crop in its sizes, so that what remains is ours:
admission, queues, batches, exit decisions, answers, metrics. First in one process and in two at a time, whose images
per second are compared; then as ``lowfirst serve`` serves it, with one worker, driven by wrk.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Annotated

import httpx
import torch
import typer
import uvicorn
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` is not installed

import service.app as composition
import service.engine.decoding as decoding
from loadtest import bodies
from loadtest.load import closed
from loadtest.ratios import Spread, ratio
from loadtest.servers import free_port
from service.cli.draining import http_config
from service.engine.answer import Ask
from service.engine.engine import Engine
from service.engine.limits import Limits
from service.images.sizes import in_sizes
from service.images.transforms import Preprocessing
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.networks.cascade import Carried
from service.settings import SHIPPED_MODEL, Settings
from service.state.base import RuntimeConfig, ThresholdConfig
from service.state.memory import MemoryConfigStore
from service.store import ModelStore

EXITED = 0.65  # share of images whose ready-made answer is sure
FEATURES = 1024
CONNECTIONS = 16


class NoOp(Predictor):
    """A predictor whose passes cost nothing."""

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:  # noqa: ARG002
        """Ready-made logits, sure for ``EXITED`` of the rows, and a small feature."""
        rows = len(images)
        logits = torch.zeros(rows, len(self.spec.classes))
        logits[: round(rows * EXITED), 0] = 20.0
        return logits, () if stage == self.depth - 1 else (torch.zeros(rows, FEATURES),)


@dataclass(frozen=True, slots=True)
class Cost:
    """Round by round.

    Attributes:
        engine_us, http_us: microseconds of processor time per image, with all threads of the process.
        rates: images per second of one process, and of two together.
    """

    engine_us: tuple[float, ...]
    http_us: tuple[float, ...]
    rates: tuple[tuple[float, ...], tuple[float, ...]]


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    images: Annotated[int, typer.Option(min=100, help="In a round of the engine alone.")] = 4000,
    seconds: Annotated[float, typer.Option(min=1, help="Of a round over HTTP.")] = 4.0,
) -> None:
    """Measure the engine, then the engine behind HTTP."""
    cost = measure(rounds, images, seconds)
    one, two = cost.rates
    rows = {
        "engine alone, us of a processor per image": Spread.of(cost.engine_us),
        "over HTTP, us of a processor per image": Spread.of(cost.http_us),
        "engine alone, images per second in one process": Spread.of(one),
        "in two processes together": Spread.of(two),
        "two processes over one": ratio(two, one),
    }
    table = Table("with a network and a decoder that cost nothing", "median (spread)")
    for name, found in rows.items():
        table.add_row(name, str(found))
    Console().print(table)


def measure(rounds: int, images: int, seconds: float) -> Cost:
    """All of it."""
    one, two = _together(1, rounds, images), _together(2, rounds, images)
    take_nothing()
    spent, _ = asyncio.run(run_engine(rounds, images, lambda: None))
    return Cost(tuple(spent), tuple(_http(rounds, seconds)), (one, two))


def take_nothing() -> None:
    """Let networks and decoding take no time in this process."""
    setattr(decoding, "decode", _ready_made)  # noqa: B010
    setattr(decoding, "in_sizes", cache(in_sizes))  # noqa: B010
    setattr(composition, "Predictor", NoOp)  # noqa: B010


def _together(processes: int, rounds: int, images: int) -> tuple[float, ...]:
    """Images per second of so many engines at a time, each in a process of its own: the last to end counts."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    started = [context.Process(target=_child, args=(barrier, results, rounds, images)) for _ in range(processes)]
    for process in started:
        process.start()
    taken = [results.get() for _ in started]
    for process in started:
        process.join()
    return tuple(processes * images / max(each) for each in zip(*taken, strict=True))


def _child(barrier: Barrier, results: SimpleQueue[list[float]], rounds: int, images: int) -> None:
    """An engine, whose rounds begin when those of the others do."""
    take_nothing()
    results.put(asyncio.run(run_engine(rounds, images, barrier.wait))[1])


@cache
def _ready_made(data: bytes, preprocessing: Preprocessing, *, waits: bool = True) -> Tensor:  # noqa: ARG001
    return torch.zeros(preprocessing.crop, preprocessing.crop, 3, dtype=torch.uint8).permute(2, 0, 1)


async def run_engine(rounds: int, images: int, wait: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Microseconds of processor time per image, and seconds that each round took, once ``wait`` returned."""
    settings = Settings()
    predictor = NoOp.load(ModelStore(settings.model_store).find(SHIPPED_MODEL), "cpu", "float32")
    name, version = predictor.spec.name, predictor.spec.version
    config = MemoryConfigStore(RuntimeConfig(1, {name: ThresholdConfig("threshold", 0.7, 0.7)}, {name: version}))
    engine = Engine(predictor, config, None, Metrics(CollectorRegistry()), Limits(max_batch_size=8, workers=1))
    await engine.start()

    async def client(left: Iterator[int]) -> None:
        for _ in left:
            await engine.classify(b"", Ask(arrival=time.monotonic()))

    spent, taken = [], []
    for _ in range(rounds):
        left = iter(range(images))
        wait()
        began, began_at = time.process_time(), time.perf_counter()
        await asyncio.gather(*(client(left) for _ in range(4 * CONNECTIONS)))
        spent.append(1e6 * (time.process_time() - began) / images)
        taken.append(time.perf_counter() - began_at)
    await engine.close()
    return spent, taken


def _http(rounds: int, seconds: float) -> list[float]:
    port = free_port()
    settings = Settings(runtime="eager", precision="float32", workers=1, port=port, drain_delay_seconds=0)
    server, thread = _serve(settings)
    spent = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            load = bodies.raw(bodies.choose(None, 10), Path(folder))
            for _ in range(rounds):
                began = time.process_time()
                seen = closed(f"http://127.0.0.1:{port}/classify", load, CONNECTIONS, seconds)
                spent.append(1e6 * (time.process_time() - began) / seen.requests)
    finally:
        server.should_exit = True
        thread.join()
    return spent


def _serve(settings: Settings) -> tuple[uvicorn.Server, threading.Thread]:
    app = composition.create_app(settings)
    server = uvicorn.Server(http_config(app, settings, app.state.parts))
    thread = threading.Thread(target=server.run)
    thread.start()
    for _ in range(1200):
        try:
            if httpx.get(f"http://127.0.0.1:{settings.port}/health/ready").status_code == 200:
                return server, thread
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the server did not come up")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)

"""What the engine and HTTP cost when the network and the decoder cost nothing.

    python loadtest/engine_alone.py

The passes give ready-made logits and the decoder a ready-made crop in its sizes, so that what remains is ours:
admission, queues, batches, exit decisions, answers, metrics. Then the same as ``lowfirst serve`` serves it, with one
worker, driven by wrk.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
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
    """Microseconds of processor time an image, with all threads of the process."""

    engine_us: tuple[float, ...]
    http_us: tuple[float, ...]


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    images: Annotated[int, typer.Option(min=100, help="In a round of the engine alone.")] = 4000,
    seconds: Annotated[float, typer.Option(min=1, help="Of a round over HTTP.")] = 4.0,
) -> None:
    """Measure the engine, then the engine behind HTTP."""
    cost = measure(rounds, images, seconds)
    table = Table("processor time an image", "us, median", "spread")
    for name, values in (("engine alone", cost.engine_us), ("over HTTP", cost.http_us)):
        table.add_row(name, f"{median(values):.0f}", f"{min(values):.0f} to {max(values):.0f}")
    Console().print(table)


def measure(rounds: int, images: int, seconds: float) -> Cost:
    """Both costs, round by round."""
    setattr(decoding, "decode", _ready_made)  # noqa: B010
    setattr(decoding, "in_sizes", cache(in_sizes))  # noqa: B010
    setattr(composition, "Predictor", NoOp)  # noqa: B010
    engine = asyncio.run(_engine(rounds, images))
    return Cost(tuple(engine), tuple(_http(rounds, seconds)))


@cache
def _ready_made(data: bytes, preprocessing: Preprocessing) -> Tensor:  # noqa: ARG001
    return torch.zeros(preprocessing.crop, preprocessing.crop, 3, dtype=torch.uint8).permute(2, 0, 1)


async def _engine(rounds: int, images: int) -> list[float]:
    settings = Settings()
    predictor = NoOp.load(ModelStore(settings.model_store).find(SHIPPED_MODEL), "cpu", "float32")
    name, version = predictor.spec.name, predictor.spec.version
    config = MemoryConfigStore(RuntimeConfig(1, {name: ThresholdConfig("threshold", 0.7, 0.7)}, {name: version}))
    engine = Engine(predictor, config, None, Metrics(CollectorRegistry()), Limits(max_batch_size=8, workers=1))
    await engine.start()

    async def client(left: Iterator[int]) -> None:
        for _ in left:
            await engine.classify(b"", Ask(arrival=time.monotonic()))

    spent = []
    for _ in range(rounds):
        left = iter(range(images))
        began = time.process_time()
        await asyncio.gather(*(client(left) for _ in range(4 * CONNECTIONS)))
        spent.append(1e6 * (time.process_time() - began) / images)
    await engine.close()
    return spent


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
    for _ in range(200):
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

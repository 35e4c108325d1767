"""Decoding and the network with no server around them: what serving can reach at most, and what an image costs.

    python loadtest/bare_loop.py --data DIR

Threads that each take 8 photographs, decode them, and run the low pass on all and the high pass on the unsure, as the
contenders do. Several numbers of threads, and of the threads that PyTorch computes with in each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count as numbers
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` is not installed

from loadtest import bodies
from loadtest.contenders.work import MAX_BATCH_SIZE, Job, Work
from loadtest.ratios import Cost
from loadtest.servers import ROOT
from service.images.decode import stack
from service.settings import SHIPPED_MODEL, SHIPPED_STORE
from service.store import ModelStore


@dataclass(frozen=True, slots=True)
class Rate:
    """Images a second of ``workers`` threads that each compute with ``threads``."""

    workers: int
    threads: int
    images_per_second: float


@dataclass(frozen=True, slots=True)
class BareLoop:
    """What the machine can do with one model.

    Attributes:
        rates: of each setting.
        alone_ms: from an image's bytes to its answer, one at a time in one thread; the median.
        cost: of an image in batches of 8.
        escalated: share of the photographs that the high pass runs for; 1 for a single-scale network.
    """

    rates: tuple[Rate, ...]
    alone_ms: float
    cost: Cost
    escalated: float

    @property
    def best(self) -> Rate:
        """The fastest setting."""
        return max(self.rates, key=lambda rate: rate.images_per_second)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with val/<class>/; unset: the drawn examples.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Photographs, spread over the classes.")] = 300,
    folder: Annotated[Path | None, typer.Option(help="The model's folder; unset: the shipped model's.")] = None,
    precision: str = "auto",
    runtime: str = "auto",
    seconds: Annotated[float, typer.Option(help="For each setting.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the loop that serving cannot beat."""
    folder = folder or ModelStore(SHIPPED_STORE).find(SHIPPED_MODEL)
    work = Work(Job(str(folder), precision, runtime, port=0, workers=1))
    found = _measure(work, [path.read_bytes() for path in bodies.choose(data, count)], seconds)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    table = Table("workers", "threads in each", "images/s")
    for rate in found.rates:
        table.add_row(str(rate.workers), str(rate.threads), f"{rate.images_per_second:.1f}")
    console = Console()
    console.print(table)
    cost = found.cost
    console.print(
        f"An image: {cost.decode:.2f} ms of a core to decode, {cost.low:.2f} low, {cost.high:.2f} high; "
        f"{found.escalated:.1%} escalate; alone {found.alone_ms:.2f} ms."
    )


def measure(job: Job, data: Path | None, count: int, seconds: float) -> BareLoop:
    """``main`` in a process of its own."""
    command = [sys.executable, "-m", "loadtest.bare_loop", "--json", "--folder", job.folder, "--count", str(count)]
    command += ["--precision", job.precision, "--runtime", job.runtime]
    command += ["--seconds", str(seconds), *(["--data", str(data)] if data else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    return parse(done.stdout)


def parse(printed: str) -> BareLoop:
    """What ``--json`` prints."""
    read = json.loads(printed)
    rates = tuple(Rate(**rate) for rate in read["rates"])
    return BareLoop(rates, read["alone_ms"], Cost(**read["cost"]), read["escalated"])


def settings(cores: int) -> list[tuple[int, int]]:
    """(workers, threads in each) worth trying, by workers."""
    return sorted({(1, 1), (1, cores), (cores, 1), (cores + 1, 1), (2 * cores, 1), (max(1, cores // 2), 2)})


def _measure(work: Work, photographs: Sequence[bytes], seconds: float) -> BareLoop:
    cost, escalated = _cost(work, photographs)
    alone = []
    for photograph in photographs:
        began = time.perf_counter()
        work.answer([work.decode(photograph)])
        alone.append(time.perf_counter() - began)
    rates = [
        Rate(workers, threads, _rate(work, photographs, workers, threads, seconds))
        for workers, threads in settings(len(os.sched_getaffinity(0)))
    ]
    return BareLoop(tuple(rates), 1e3 * median(alone), cost, escalated)


def _rate(work: Work, photographs: Sequence[bytes], workers: int, threads: int, seconds: float) -> float:
    """Images a second of a setting, after each worker has run one batch."""
    ready, stop = threading.Barrier(workers + 1), threading.Event()
    done = [0] * workers

    def loop(worker: int) -> None:
        torch.set_num_threads(threads)
        random = Random(worker)
        for batch in numbers():
            work.answer([work.decode(data) for data in random.choices(photographs, k=MAX_BATCH_SIZE)])
            if batch == 0:
                ready.wait()
            elif stop.is_set():
                return
            else:
                done[worker] += MAX_BATCH_SIZE

    running = [threading.Thread(target=loop, args=(worker,)) for worker in range(workers)]
    for thread in running:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    images, spent = sum(done), time.perf_counter() - began
    stop.set()
    for thread in running:
        thread.join()
    return images / spent


def _cost(work: Work, photographs: Sequence[bytes]) -> tuple[Cost, float]:
    """Mean cost of an image, and the share that escalates."""
    batches = [photographs[first : first + MAX_BATCH_SIZE] for first in range(0, len(photographs), MAX_BATCH_SIZE)]
    _batch_cost(work, batches[0])  # warm up
    costs, unsure = zip(*(_batch_cost(work, batch) for batch in batches), strict=True)
    images = len(photographs)
    mean = Cost(*(1e3 * sum(cost[stage] for cost in costs) / images for stage in range(3)))
    return mean, sum(unsure) / images


@torch.inference_mode()
def _batch_cost(work: Work, photographs: Sequence[bytes]) -> tuple[tuple[float, float, float], int]:
    """Seconds to decode, of the low and of the high pass on all of them; and how many are unsure.

    Seconds of the processor, which a busy machine does not stretch.
    """
    predictor = work.predictor
    began = time.process_time()
    images = [work.decode(data) for data in photographs]
    decoded = low = time.process_time()
    answers, carried = work.first(images)
    unsure = len(photographs)
    if predictor.depth > 1:
        unsure = len(work.unsure(answers))
        low = time.process_time()
        predictor.run(1, stack([sizes[1] for sizes in images]), carried)
    return (decoded - began, low - decoded, time.process_time() - low), unsure


if __name__ == "__main__":
    typer.run(main)

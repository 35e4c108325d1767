"""What a machine can do with a model, without HTTP, queues or decoding: the bare loop that a server is held against."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from service.inference.latency import LatencyTable, measure, measure_single
from service.inference.predictor import Predictor
from service.inference.single_scale import single_scale
from service.networks.cascade import Carried

SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Arrangement:
    """So many worker threads, each running its batches on so many cores, and the images a second they reach."""

    workers: int
    threads: int
    images_per_second: float


def together(count: int, threads: int, work: Callable[[], float]) -> list[float]:
    """What ``work`` gives in ``count`` threads at once, each with ``threads`` intra-op threads. Raises what it raises.

    ``work`` is called twice in each, the second time when all are ready: the first call warms up.
    """
    barrier = threading.Barrier(count)
    results: list[float] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            torch.set_num_threads(threads)
            work()
            barrier.wait()
            results.append(work())
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    runners = [threading.Thread(target=run) for _ in range(count)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    first = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if first:
        raise first[0]
    return results


def measure_together(predictor: Predictor, workers: int) -> LatencyTable:
    """The latency table with the single-scale network's, measured by all workers at once as the server does."""
    tables: list[LatencyTable] = []
    single = single_scale(predictor)

    def work() -> float:
        tables.append(measure_single(measure(predictor), single))
        return 0.0

    together(workers, predictor.threads, work)
    return LatencyTable.mean(tables[workers:])


def arrange(
    load: Callable[[int], Predictor], cores: int, size: int, reaching: Sequence[float], seconds: float = SECONDS
) -> list[Arrangement]:
    """The cascade on decoded images for every way to share out ``cores``, fastest first.

    Args:
        load: gives the predictor that uses so many threads for a batch.
        size: images in a batch of the first stage.
        reaching: share of them that reach each stage; 1 for the first.
    """
    found = []
    for threads in [n for n in range(1, cores + 1) if cores % n == 0]:
        predictor = load(threads)
        rates = together(cores // threads, threads, partial(_cascade_rate, predictor, size, reaching, seconds))
        found.append(Arrangement(cores // threads, threads, sum(rates)))
    return sorted(found, key=lambda a: -a.images_per_second)


def _cascade_rate(predictor: Predictor, size: int, reaching: Sequence[float], seconds: float) -> float:
    images = predictor.noise(size)
    rows = [max(1, round(size * share)) for share in reaching]

    def step() -> None:
        carried: Carried = ()
        for stage, count in enumerate(rows):
            logits, carried = predictor.run(stage, images[stage][:count], tuple(each[:count] for each in carried))
            logits.cpu()

    return size * rate(step, seconds)


def rate(step: Callable[[], object], seconds: float) -> float:
    """Steps a second, over about ``seconds``."""
    began, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        step()
        steps += 1
    return steps / spent

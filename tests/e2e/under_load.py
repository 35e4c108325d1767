"""Clients that post without end while a test changes something, and waiting until the change is seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count

import httpx

TIMEOUT = 60  # a machine may be busy
RAW = {"Content-Type": "image/jpeg"}


def until(reached: Callable[[], bool], timeout: float = TIMEOUT) -> float:
    """Look until it is so; the seconds that took."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() < began + timeout
        time.sleep(0.01)
    return time.monotonic() - began


@contextmanager
def repeating(*steps: Callable[[], None], pause: float = 0) -> Iterator[None]:
    """Each step again and again in a thread of its own, with so many seconds in between."""
    stopping = threading.Event()

    def repeat(step: Callable[[], None]) -> None:
        while not stopping.wait(pause):
            step()

    threads = [threading.Thread(target=repeat, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


@contextmanager
def posting(
    urls: Sequence[httpx.URL], body: Callable[[int], bytes], pause: float = 0, timeout: float = TIMEOUT
) -> Iterator[list[int]]:
    """A client a URL posts one photograph after another; of ``n`` clients the i-th posts bodies i, i + n, i + 2n, ….

    Gives the statuses of the answers, 0 for none, which grow.
    """
    statuses: list[int] = []

    def post(client: httpx.Client, numbers: Iterator[int]) -> None:
        try:
            status = client.post("/classify", content=body(next(numbers)), headers=RAW).status_code
        except httpx.TransportError:
            status = 0
        statuses.append(status)

    clients = [httpx.Client(base_url=url, timeout=timeout) for url in urls]
    steps = [partial(post, client, count(first, len(clients))) for first, client in enumerate(clients)]
    try:
        with repeating(*steps, pause=pause):
            yield statuses
    finally:
        for client in clients:
            client.close()

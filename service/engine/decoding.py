"""Decodes images, the first step, in separate threads or in the worker that runs the image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from service.engine.entry import Entry
from service.engine.lanes import Lanes
from service.errors import Busy, DeviceFailed, LowfirstError
from service.images.decode import DecodedLate, TakesLong, decode
from service.images.helper import TURN_SECONDS, Crashed, TookTooLong
from service.images.sizes import in_sizes
from service.log import logger
from service.metrics import Metrics
from service.model_spec import ModelSpec

UNFORESEEN: dict[type[LowfirstError], str] = {TookTooLong: "slow", Crashed: "crashed", DecodedLate: "late"}


def decode_threads(count: int, name: str = "decode") -> ThreadPoolExecutor:
    """Number of threads that decode beside the workers."""
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(1,))


class DecodeAhead:
    """Threads that decode beside the workers, as far ahead as the lanes have room.

    Args:
        count: number of threads.
        lanes: receive decoded images.
        decode: decodes an entry; returns whether it has its pixels.
    """

    def __init__(self, count: int, lanes: Lanes, decode: Callable[[Entry], bool]) -> None:
        self._threads = decode_threads(count)
        self._lanes = lanes
        self._decode = decode

    def submit(self, entry: Entry) -> None:
        """Queue an entry for decoding."""
        self._threads.submit(self._run, entry)

    def close(self) -> None:
        """Finish the queue, and stop."""
        self._threads.shutdown()

    def _run(self, entry: Entry) -> None:
        if not entry.is_dead:
            self._lanes.wait_for_room()
        if self._decode(entry):
            entry.enqueued = time.monotonic()
            self._lanes.push([entry])


class Aside:
    """A thread that waits for the helper process, so that neither workers nor a slow image's batch wait.

    Args:
        spec: of the model.
        metrics: count images.
        push: called with each decoded entry.
        patience: seconds after which a waiting image is refused.
    """

    def __init__(
        self,
        spec: ModelSpec,
        metrics: Metrics,
        push: Callable[[Sequence[Entry]], None],
        patience: float = TURN_SECONDS,
    ) -> None:
        self._spec = spec
        self._metrics = metrics
        self._push = push
        self._patience = patience
        self._thread = decode_threads(1, "decode-aside")  # started by the first slow image

    def take(self, entry: Entry) -> bool:
        """Take an entry to decode here and push again; returns False once this is closed."""
        try:
            self._thread.submit(self._decode, entry, time.monotonic())
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """Wait until all taken entries are decoded; dropped ones take no time."""
        self._thread.shutdown()

    def _decode(self, entry: Entry, taken: float) -> None:
        if time.monotonic() > taken + self._patience:
            error = Busy("too many slow images are waiting to be decoded", field="image")
            entry.loop.call_soon_threadsafe(entry.fail, error)
        elif decode_entry(entry, self._spec, self._metrics):
            entry.enqueued = time.monotonic()
            self._push([entry])


def decode_entry(entry: Entry, spec: ModelSpec, metrics: Metrics, aside: Callable[[Entry], bool] | None = None) -> bool:
    """Whether ``entry`` has its pixels now. If not, it has failed, was dropped, or was taken ``aside``."""
    body = entry.body
    if body is None or entry.is_dead:
        metrics.dropped.labels("decode").inc()
        return False
    began = time.monotonic()
    try:
        entry.pixels = in_sizes(_decoded(body, spec, entry, aside), spec.resolutions)
    except TakesLong:
        return False
    except LowfirstError as error:
        if reason := UNFORESEEN.get(type(error)):
            logger.warning("an image took more than any bound allows to decode (%s): %s", reason, error)
            metrics.decoders_ended.labels(reason).inc()
        entry.loop.call_soon_threadsafe(entry.fail, error)
        return False
    except BaseException:
        logger.exception("decoding failed")
        failure = DeviceFailed("decoding failed on this image")
        entry.loop.call_soon_threadsafe(entry.fail, failure)
        return False
    entry.body = None
    entry.timing.decode = time.monotonic() - began
    metrics.decode_seconds.observe(entry.timing.decode)
    return True


def _decoded(body: bytes, spec: ModelSpec, entry: Entry, aside: Callable[[Entry], bool] | None) -> Tensor:
    """Raises: TakesLong: it was taken ``aside``; otherwise as ``decode``."""
    try:
        return decode(body, spec.preprocessing, waits=aside is None)
    except TakesLong:
        assert aside is not None
        if aside(entry):
            raise
        return decode(body, spec.preprocessing)

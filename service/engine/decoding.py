"""Bytes to pixels: the first step of an image, in threads of its own or in the worker that runs it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import torch

from service.engine.entry import Entry
from service.errors import DeviceFailed, LowfirstError
from service.images.decode import decode
from service.images.sizes import in_sizes
from service.log import logger
from service.metrics import Metrics
from service.model_spec import ModelSpec


def decode_threads(count: int) -> ThreadPoolExecutor:
    """Threads that decode beside the workers."""
    return ThreadPoolExecutor(count, thread_name_prefix="decode", initializer=torch.set_num_threads, initargs=(1,))


def decode_entry(entry: Entry, spec: ModelSpec, metrics: Metrics) -> bool:
    """Whether ``entry`` has its pixels now; if not it has failed, or nobody waits for it."""
    body = entry.body
    if body is None or entry.is_dead:
        metrics.dropped.labels("decode").inc()
        return False
    began = time.monotonic()
    try:
        entry.pixels = in_sizes(decode(body, spec.preprocessing), spec.resolutions)
    except LowfirstError as error:
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

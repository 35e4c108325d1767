"""The number of processes, and each one's share of the server's limits."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from service.settings import Settings

MOST = 8

# As in service.engine.admission, which the parent must not load: a test holds them together.
RESERVE = 4


def how_many(cores: int, on_gpu: bool) -> int:
    """The number of processes for ``auto``, given the number of cores for workers.

    One process answers at most 1,000 to 2,000 images per second, because one thread at a time runs Python. With a small
    network on two cores, two processes with one worker each answered 1,159 images per second, and one process with two
    workers 867. With more workers, a process waits longer for Python's lock. On a GPU one process forms the largest
    batches, and each further process would load the network again.
    """
    return 1 if on_gpu else min(cores, max(2, cores // 2), MOST)


def is_on_gpu(device: str) -> bool:
    """Whether ``LOWFIRST_DEVICE`` means a GPU, decided without loading PyTorch."""
    if device != "auto":
        return device.startswith("cuda")
    try:
        return Path("/dev/nvidiactl").exists() and not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def part(whole: int, index: int, count: int) -> int:
    """The part of ``whole`` for process ``index`` of ``count``: at least 1. The parts add up to ``whole`` if it is at
    least ``count``.
    """
    return max(1, whole // count + (index < whole % count))


def share(settings: Settings, index: int, count: int) -> Settings:
    """The settings of process ``index`` of ``count``.

    Limits of a single request are unchanged. What a process may hold is at least the largest request plus the reserve
    that admission keeps free for others.
    """

    def of(whole: int, at_least: int = 1) -> int:
        return max(part(whole, index, count), min(whole, at_least))

    return settings.model_copy(
        update={
            "processes": 1,
            "workers": settings.workers and of(settings.workers),
            "decode_threads": settings.decode_threads and of(settings.decode_threads),
            "max_connections": settings.max_connections and of(settings.max_connections),
            "max_images_in_flight": of(settings.max_images_in_flight, _beside_reserve(settings.max_batch_images)),
            "max_bytes_in_flight": of(settings.max_bytes_in_flight, _beside_reserve(settings.max_batch_bytes)),
            "feature_slots": of(settings.feature_slots),
            "cache_entries": settings.cache_entries and of(settings.cache_entries),
        }
    )


def _beside_reserve(largest: int) -> int:
    """The smallest limit of which ``largest`` leaves 1 / ``RESERVE`` free."""
    return largest * RESERVE // (RESERVE - 1) + 1

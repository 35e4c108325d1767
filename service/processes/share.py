"""How many processes serve as one, and what each gets of the whole."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from service.settings import Settings

MOST = 8

# As in service.engine.admission, which the parent must not load: a test holds them together.
RESERVE = 4


def how_many(cores: int, on_gpu: bool) -> int:
    """The processes that ``auto`` means, for so many cores that workers are to use.

    One process answers at most 1,000 to 2,000 images per second, as one thread at a time runs Python. On two cores, two
    processes with one worker each answered 1,159 images per second of a small network where one process with two
    workers answered 867; a process with more than two workers waits for Python ever more. On a GPU one process makes
    the fullest batches, and each further one would load the network again.
    """
    return 1 if on_gpu else min(cores, max(2, cores // 2), MOST)


def is_on_gpu(device: str) -> bool:
    """Whether ``LOWFIRST_DEVICE`` means a GPU, as far as can be told without loading PyTorch."""
    if device != "auto":
        return device.startswith("cuda")
    try:
        return Path("/dev/nvidiactl").exists() and not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def part(whole: int, index: int, count: int) -> int:
    """What process ``index`` of ``count`` gets of ``whole``: at least 1, and together ``whole`` where it suffices."""
    return max(1, whole // count + (index < whole % count))


def share(settings: Settings, index: int, count: int) -> Settings:
    """The settings of process ``index`` of ``count``.

    Limits of a single request stay as they are, and what a process may hold is never less than one such request and
    the part of all that it has to leave to others.
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
    """The least limit of which ``largest`` leaves one part in ``RESERVE`` free."""
    return largest * RESERVE // (RESERVE - 1) + 1

"""Combines the metrics of several processes into those of one server.

The metrics are in files that all processes map (prometheus_client's multiprocess mode). So the counters of a killed
process are exact to the last image; periodic snapshots would not be. A counter takes 0.6 us more than in memory (0.9
instead of 0.3), a histogram 1.9 us more (2.6 instead of 0.7), in total about 10 us per image. This mode lacks gauges
that are functions, and the figures of Python and the system. These are read when somebody asks for the metrics.

On a full disk no image fails. The space of a file is allocated before the file is mapped. A series for which there is
no space is counted only within its process, and is missing from the exposition.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.log import logger
from service.metrics import Metrics

Mode = Literal["livesum", "livemax", "livemin"]

# How gauges of the system's and Python's own become one.
SYSTEM_GAUGES: dict[str, Mode] = {
    "process_virtual_memory_bytes": "livesum",
    "process_resident_memory_bytes": "livesum",
    "process_open_fds": "livesum",
    "process_max_fds": "livemin",
    "process_start_time_seconds": "livemin",
    "python_info": "livemax",
}

Labels = tuple[tuple[str, str], ...]

# What each file is made with: a model's histograms take some 25 KB. Files that are fuller grow.
FILE_BYTES = 256 * 1024
ENTRY_BYTES = 28  # of a series beside its name, at most

# What the C library says where the file system allocates nothing ahead: EBADF of files opened to append.
UNSUPPORTED = (errno.EBADF, errno.EINVAL, errno.EOPNOTSUPP)


def keep_in_files(index: int) -> None:
    """Make this process count in files named after ``index``. A process that replaces a dead one continues its counts.

    ``PROMETHEUS_MULTIPROC_DIR`` names the folder; it must be set before prometheus_client is imported. Call this before
    any metric is created.
    """
    values.MmapedDict = _Allocated  # type: ignore[attr-defined,]
    values.ValueClass = _Values(index)


class _Allocated(MmapedDict):
    """A file with all its pages allocated. A write to a page without disk space would end the process with SIGBUS."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            _allocate(filename)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + ENTRY_BYTES > self._capacity:  # it is to be twice as large
            _reserve(self._f.fileno(), 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def _allocate(filename: str) -> None:
    """Allocate the file. Raises OSError if there is no space; then the file is removed, because an empty one cannot be
    read.
    """
    with open(filename, "ab") as file:
        size = os.fstat(file.fileno()).st_size
        if size >= FILE_BYTES:
            return
        try:
            _reserve(file.fileno(), FILE_BYTES)
        except OSError:
            if not size:
                with suppress(OSError):
                    os.unlink(filename)
            raise


def _reserve(descriptor: int, size: int) -> None:
    """Raises OSError: there is no room. Where a file system cannot tell, the file is used as it is."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


class _Values:
    """Creates the values behind metrics: in files that all processes read, or in memory if there is no space.

    Attributes:
        unshared: number of values in memory.
    """

    def __init__(self, index: int) -> None:
        self.unshared = 0
        self._in_file = values.MultiProcessValue(lambda: index)  # type: ignore[no-untyped-call]

    def __call__(self, *given: Any, **named: Any) -> Any:
        try:
            return self._in_file(*given, **named)
        except OSError as error:
            if not self.unshared:
                folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
                logger.warning("%s: %s: some series are missing in /metrics from now on", folder, error.strerror)
            self.unshared += 1
            return values.MutexValue(*given, **named)  # type: ignore[no-untyped-call]


def _unshared() -> int:
    return values.ValueClass.unshared if isinstance(values.ValueClass, _Values) else 0


class SharedMetrics(Collector):
    """The metrics of all processes, in the form that ``generate_latest`` takes. Each process calls ``sample`` before.

    Args:
        own: this process's registry, which lists all metrics.
        files: the folder of the metric files.
    """

    def __init__(self, own: Metrics, files: Path) -> None:
        self._own = own
        self._files = MultiProcessCollector(None, str(files))  # type: ignore[no-untyped-call]
        self._system = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._system)
        self._mirrors: dict[str, Gauge | Counter] = {}
        self._counted: dict[tuple[str, Labels], float] = {}
        own.watch(own.unshared_series, _unshared)

    def sample(self) -> None:
        """Write the values that only this process can compute to its files."""
        for gauge in self._gauges():
            for family in gauge.collect():
                for sample in family.samples:
                    (gauge.labels(**sample.labels) if sample.labels else gauge).set(sample.value)
        for family in self._system.collect():
            for sample in family.samples:
                self._mirror(family, sample.labels, sample.value)

    def exposition(self) -> bytes:
        """All metrics of all processes, in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Each metric. For gauges, only the series that this process still has, because files keep removed ones."""
        known = {
            (sample.name, frozenset(sample.labels.items()))
            for gauge in self._gauges()
            for family in gauge.collect()
            for sample in family.samples
        }
        for family in self._files.collect():  # type: ignore[no-untyped-call]
            if family.type == "gauge" and family.name not in SYSTEM_GAUGES:
                family.samples = [
                    sample for sample in family.samples if (sample.name, frozenset(sample.labels.items())) in known
                ]
            yield family

    def _gauges(self) -> Iterator[Gauge]:
        return (metric for metric in vars(self._own).values() if isinstance(metric, Gauge))

    def _mirror(self, family: Metric, labels: dict[str, str], value: float) -> None:
        """Copy a system metric into our metric of the same name: a gauge's value, or a counter's increase."""
        mirror = self._mirrors.get(family.name)
        if mirror is None:
            name, told, names = family.name, family.documentation, tuple(labels)
            mirror = self._mirrors[name] = (
                Counter(name, told, names, registry=None)
                if family.type == "counter"
                else Gauge(name, told, names, registry=None, multiprocess_mode=SYSTEM_GAUGES.get(name, "livemax"))
            )
        one = mirror.labels(**labels) if labels else mirror
        if isinstance(one, Gauge):
            one.set(value)
        else:
            key = (family.name, tuple(labels.items()))
            one.inc(max(0.0, value - self._counted.get(key, 0.0)))
            self._counted[key] = value

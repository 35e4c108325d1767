"""Counters and gauges of several processes as those of one: each in a process of its own, over real files."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = """
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from service.processes.metrics import SharedMetrics, keep_in_files

keep_in_files(int(sys.argv[1]))
from service.metrics import Metrics

metrics = Metrics(CollectorRegistry())
shared = SharedMetrics(metrics, Path(sys.argv[2]))
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Process:
    """Runs lines of Python with ``metrics`` and ``shared`` at hand."""

    def __init__(self, index: int, files: Path, before: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{PROCESS}", str(index), str(files)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(files)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        said = ""
        while (each := self._process.stdout.readline()) != "done\n":
            assert each, "the process has ended"
            said += each
        return said

    def told(self) -> dict[str, float]:
        """Every sample, by its name and labels."""
        text = self.run("shared.sample(); print(shared.exposition().decode())")
        samples = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in samples}

    def let_no_file_grow(self) -> None:
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Process, Process]:
    return Process(0, tmp_path), Process(1, tmp_path)


def test_counts_are_sums_and_stay_when_a_process_is_killed(pair: tuple[Process, Process], tmp_path: Path) -> None:
    first, second = pair
    count = "for _ in range({}): metrics.images.labels('m/1', 'low', 'confident').inc()"
    first.run(count.format(1000))
    second.run(count.format(234))
    second.run("metrics.decode_seconds.observe(0.003)")
    second.kill()
    images, decoded = 'lowfirst_images_total{exit="low",model="m/1",reason="confident"}', "lowfirst_decode_seconds"
    told = first.told()
    assert (told[images], told[f"{decoded}_count"], told[f"{decoded}_sum"]) == (1234, 1, 0.003)
    assert (told[f'{decoded}_bucket{{le="0.002"}}'], told[f'{decoded}_bucket{{le="0.005"}}']) == (0, 1)
    again = Process(1, tmp_path)
    again.run("metrics.images.labels('m/1', 'low', 'confident').inc()")
    assert again.told()[images] == first.told()[images] == 1235
    again.kill()
    first.kill()


def test_each_gauge_becomes_one_by_its_meaning(pair: tuple[Process, Process]) -> None:
    values = {
        "in_flight": (3, 4, 7), "feature_bytes": (10, 20, 30), "queued_seconds.labels('low')": (0.5, 0.25, 0.5),
        "store_up": (1, 0, 0), "config_invalid": (0, 1, 1), "config_version": (4, 5, 5),
        "effective_threshold.labels('m/1')": (0.4, 0.7, 0.4),
    }  # fmt: skip
    for index, process in enumerate(pair):
        for gauge, each in values.items():
            process.run(f"metrics.{gauge}.set_function(lambda: {each[index]})")
        process.told()
    told = pair[0].told()
    names = {"in_flight": "images_in_flight", "queued_seconds.labels('low')": 'queued_seconds{stage="low"}'}
    names["effective_threshold.labels('m/1')"] = 'effective_threshold{model="m/1"}'
    assert {gauge: told[f"lowfirst_{names.get(gauge, gauge)}"] for gauge in values} == {
        gauge: each[2] for gauge, each in values.items()
    }
    for process in pair:
        process.kill()


def test_a_gauge_that_is_removed_is_gone(pair: tuple[Process, Process]) -> None:
    for process in pair:
        process.run("metrics.threshold.labels('m/1').set(0.5)")
        assert 'lowfirst_threshold{model="m/1"}' in process.told()
    pair[0].run("import warnings; warnings.simplefilter('ignore'); metrics.threshold.remove('m/1')")
    assert 'lowfirst_threshold{model="m/1"}' not in pair[0].told()
    for process in pair:
        process.kill()


def test_counters_of_the_system_never_fall(pair: tuple[Process, Process]) -> None:
    first, second = pair
    second.run("sum(i * i for i in range(3_000_000))")
    spent = second.told()["process_cpu_seconds_total"]
    assert spent > 0
    second.kill()
    told = first.told()
    assert told["process_cpu_seconds_total"] >= spent
    assert told['python_gc_collections_total{generation="0"}'] > 0
    first.kill()


def test_a_full_disk_fails_no_count_and_what_is_not_told_is(pair: tuple[Process, Process]) -> None:
    first, second = pair
    first.run("metrics.requests.labels('/classify', 200).inc()")
    second.run("metrics.requests.labels('/classify', 404).inc()")  # so that its file is there
    assert first.told()["lowfirst_unshared_series"] == 0
    for process in pair:
        process.let_no_file_grow()
    first.run("for n in range(9000): metrics.requests.labels(f'/{n}', 418).inc()")
    first.run("for _ in range(2): metrics.requests.labels('/classify', 200).inc()")
    first.run("for n in range(50): metrics.image_seconds.labels(f'm/{n}', 'low').observe(0.1)")
    second.run("metrics.requests.labels('/classify', 200).inc()")
    told = second.told() | first.told()
    counted = [name for name in told if name.startswith("lowfirst_requests_total") and "418" in name]
    assert told['lowfirst_requests_total{code="200",route="/classify"}'] == 4
    assert 1000 < len(counted) < 9000
    assert told["lowfirst_unshared_series"] > 9000 - len(counted)
    for process in pair:
        process.kill()


def test_where_a_file_system_allocates_nothing_ahead_all_is_told(tmp_path: Path) -> None:
    refuse = "import os\ndef refuse(*_): raise OSError(95, 'not supported')\nos.posix_fallocate = refuse"
    process = Process(0, tmp_path, before=refuse)
    process.run("for n in range(1000): metrics.requests.labels(f'/{n}', 418).inc()")
    told = process.told()
    assert sum(value for name, value in told.items() if name.startswith("lowfirst_requests_total")) == 1000
    assert told["lowfirst_unshared_series"] == 0
    process.kill()


def test_a_process_that_starts_on_a_full_disk_runs(pair: tuple[Process, Process], tmp_path: Path) -> None:
    first, _ = pair
    first.run("metrics.requests.labels('/classify', 200).inc()")
    third = Process(2, tmp_path, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))")
    third.run("metrics.requests.labels('/classify', 200).inc()")
    assert third.told()['lowfirst_requests_total{code="200",route="/classify"}'] == 1
    for process in (*pair, third):
        process.kill()

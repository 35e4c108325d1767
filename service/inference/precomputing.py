"""Prepares a model (conversion, timing) in a separate process, once for all processes of a server.

Converting a network holds Python's lock for more than a second, during which requests would wait. The separate process
has low priority, and writes its results to files.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from service import child_python
from service.errors import BrokenModel, Draining, InvalidOption, LowfirstError, NotFound, PreparationEnded
from service.inference.device import Precision
from service.inference.latency import LatencyTable, measure, measure_single, sizes_up_to
from service.inference.predictor import Predictor, load_network
from service.inference.runtimes import save_converted
from service.inference.single_scale import single_scale
from service.log import logger
from service.model_spec import ModelSpec
from service.store import WEIGHTS, read_spec, verified

# Of the process: it gets a quarter of a core that another one wants too.
NICENESS = 5

# How often is looked whether another process of the server has finished the same.
LOOK_SECONDS = 0.02

# Models whose results are kept: a switch back to the one before takes no second time.
KEPT = 2

# After so long it is given up, and done here.
MOST_SECONDS = 600.0

# Of what the process said before it failed, as much as the log gets.
MOST_SAID = 1000

TIMES, ERROR, SAID = "times.json", "error.json", "said"
ERRORS = {each.__name__: each for each in (BrokenModel, InvalidOption, NotFound)}


@dataclass(frozen=True, slots=True)
class Served:
    """How models are served on a CPU (arguments of ``Predictor.load``), and the largest number of images in a batch."""

    runtime: str
    precision: Precision
    threads: int
    max_batch_size: int


@dataclass(frozen=True, slots=True)
class Precomputed:
    """The results for one model.

    Attributes:
        converted: folder of the converted stages, for ``Predictor.load``; None if they need no conversion.
        table: latency table of the stages; None if it was not measured.
    """

    converted: Path | None = None
    table: LatencyTable | None = None


class Precomputing:
    """Starts the separate process, for one model at a time. Call all methods in one event loop.

    Args:
        served: how models are served. If None, the runtime converts nothing, and nothing is precomputed.
        shared: a folder that only the processes of this server use; None if this process is the only one.
        check: raises BrokenModel for a model folder that must not be loaded. Called in a thread.
    """

    def __init__(
        self, served: Served | None, shared: Path | None = None, check: Callable[[Path], None] | None = None
    ) -> None:
        self._served = served
        self._shared = shared
        self._check = check
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._running: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    async def of(self, folder: Path, *, is_timed: bool) -> Precomputed:
        """The results for the model in ``folder``. They are empty if the process cannot run, or cannot write its files.

        The files are kept until ``KEPT`` other models have been precomputed.

        Args:
            is_timed: whether the latency table is known and need not be measured.

        Raises:
            NotFound, BrokenModel, InvalidOption: as in ``Predictor.load``.
            PreparationEnded: the process was killed.
            Draining: the server is stopping.
        """
        if self._served is None:
            return Precomputed()
        spec = await asyncio.to_thread(self._checked, folder)
        made_of = hashlib.sha256(f"{is_timed} {spec.to_json()}".encode())
        try:
            root = self._root()
            place = root / made_of.hexdigest()
            async with _locked(root / "lock"):
                if not place.exists():
                    await self._make(folder, place, is_timed=is_timed)
            os.utime(place)
            return await asyncio.to_thread(_read, place, spec)
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("%s is prepared beside the requests, which may wait for it: %s", spec.title, error)
            return Precomputed()

    def stop(self) -> None:
        """End the running process; the server is stopping and accepts no other model."""
        self._is_stopping = True
        if self._running is not None:
            self._running.kill()

    def close(self) -> None:
        """Stop, and remove the files."""
        self.stop()
        if self._own is not None:
            self._own.cleanup()

    def _checked(self, folder: Path) -> ModelSpec:
        """What is broken is told at once. Raises: as ``Predictor.load``."""
        if self._check is not None:
            self._check(folder)
        spec = read_spec(folder)
        verified(folder, WEIGHTS, spec.weights_sha256)
        return spec

    def _root(self) -> Path:
        if self._shared is not None:
            return self._shared
        self._own = self._own or tempfile.TemporaryDirectory(prefix="lowfirst-", ignore_cleanup_errors=True)
        return Path(self._own.name)

    async def _make(self, folder: Path, place: Path, *, is_timed: bool) -> None:
        """Run the process and move its results to ``place`` in one step.

        Raises the same errors as ``of``, and OSError or SubprocessError if the process cannot run.
        """
        assert self._served is not None
        await asyncio.to_thread(_forget, place.parent)
        with tempfile.TemporaryDirectory(dir=place.parent, ignore_cleanup_errors=True) as name:
            made = Path(name) / "made"
            made.mkdir()
            order = {"folder": str(folder.absolute()), "made": str(made), "is_timed": is_timed, **asdict(self._served)}
            if self._is_stopping:
                raise Draining("the server is stopping")
            began = time.monotonic()
            status = await self._run(order, made / SAID)
            if self._is_stopping:
                raise Draining("the server is stopping")
            _check_ended(status, made)
            logger.debug("%s is precomputed in %.1f s", folder, time.monotonic() - began)
            made.rename(place)

    async def _run(self, order: dict[str, object], said: Path) -> int:
        """Run a process for ``order`` and return its exit status."""
        process = self._running = await asyncio.to_thread(_start, order, said)
        try:
            if self._is_stopping:
                process.kill()
            return await asyncio.to_thread(process.wait, MOST_SECONDS)
        finally:
            self._running = None
            process.kill()  # whoever waited was cancelled
            assert process.stdin is not None
            process.stdin.close()


def _start(order: dict[str, object], said: Path) -> subprocess.Popen[bytes]:
    with said.open("wb") as log:
        return child_python.start(
            f"from {__name__} import main; main()",
            json.dumps(order),
            environment={"OMP_NUM_THREADS": str(order["threads"])},
            stdin=subprocess.PIPE,  # its end is the server's
            output=log,
        )


def _check_ended(status: int, made: Path) -> None:
    """Raise the error that the process reported, if any."""
    if (made / ERROR).exists():
        named = json.loads((made / ERROR).read_text())
        kind = ERRORS[named.pop("error")]
        error = kind.__new__(kind)  # constructors differ
        LowfirstError.__init__(error, **named)
        raise error
    if status < 0:
        raise PreparationEnded(
            f"the process that prepared the model was ended by {signal.Signals(-status).name}: try again"
        )
    if status:
        said = (made / SAID).read_bytes()[-MOST_SAID:].decode(errors="replace").strip()
        raise subprocess.SubprocessError(f"the process ended with status {status}: {said}")


def _read(place: Path, spec: ModelSpec) -> Precomputed:
    times = place / TIMES
    table = LatencyTable.of_json(json.loads(times.read_text())) if times.exists() else None
    return Precomputed(place if (place / f"{spec.stages[0].name}.xml").exists() else None, table)


def _forget(root: Path) -> None:
    """Remove all results but the latest, to make room for one more."""
    places = sorted((each for each in root.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
    for place in places[: max(0, len(places) - KEPT + 1)]:
        shutil.rmtree(place, ignore_errors=True)


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold a lock among all processes. If a process is killed, its lock is released."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOOK_SECONDS)
        yield


# in the process


def main() -> None:
    """Run the order in ``sys.argv[1]``. This process ends when its parent does."""
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process ends, not the server
    order = json.loads(sys.argv[1])
    folder, made, is_timed = Path(order.pop("folder")), Path(order.pop("made")), order.pop("is_timed")
    try:
        _precompute(folder, made, Served(**order), is_timed=is_timed)
    except tuple(ERRORS.values()) as error:
        told = {"message": error.message, "field": error.field, "value": error.value, "bound": error.bound}
        (made / ERROR).write_text(json.dumps({"error": type(error).__name__, **told}))
        sys.exit(1)


def _end_with_the_server() -> None:
    with suppress(OSError):
        os.read(0, 1)
    os._exit(1)


def _precompute(folder: Path, made: Path, served: Served, *, is_timed: bool) -> None:
    """Raises the same errors as ``Predictor.load``, and RuntimeError if the disk is full."""
    import torch

    torch.set_num_threads(served.threads)
    spec, converted = read_spec(folder), None
    if served.precision != "int8":  # which are converted in the store
        save_converted(load_network(folder, spec), spec, made)
        converted = made
    if is_timed:
        return
    predictor = Predictor.load(folder, "cpu", served.precision, served.runtime, served.threads, converted)
    # of one thread, what it computed: by the clock it would be the time of those that came first, too
    clock = time.process_time if served.threads == 1 else time.perf_counter
    table = measure(predictor, sizes=sizes_up_to(served.max_batch_size), clock=clock)
    table = measure_single(table, single_scale(predictor), clock)
    (made / TIMES).write_text(json.dumps(table.as_json()))

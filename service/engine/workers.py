"""Worker threads, which take batches and run them. A worker whose device fails is replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from service.engine import tuning
from service.engine.executor import Executor
from service.engine.lanes import Lanes
from service.engine.pace import Pace
from service.engine.pick import Plan
from service.engine.preparing import Preparation
from service.errors import DeviceFailed
from service.inference.latency import LatencyTable
from service.log import logger, starting


class Workers:
    """``count`` threads that run the batches of ``lanes``. On a CPU each uses one core.

    Args:
        lanes: source of batches.
        executor: runs them.
        preparation: what every thread does first.
        pace: receives the measured durations.
        count: number of threads.

    Attributes:
        failure: error of the latest failed worker; None while all run.
        alive: threads that take batches.
    """

    def __init__(self, lanes: Lanes, executor: Executor, preparation: Preparation, pace: Pace, count: int) -> None:
        self.failure: str | None = None
        self.alive = 0
        self._lanes = lanes
        self._executor = executor
        self._preparation = preparation
        self._pace = pace
        self._count = count
        self._planned = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._since: dict[int, float] = {}  # by thread: start of its batch

    def start(self, profile: LatencyTable | None = None) -> None:
        """Warm up in all threads at once, as they will run, and measure (unless ``profile`` is given); then take
        batches.

        Raises: the exception of a stage; DeviceFailed: the network's outputs are not finite.
        """
        if profile is None:
            starting.info("measuring %s", self._preparation.model)
        tables: list[Future[LatencyTable]] = [Future() for _ in range(self._count)]
        warm: list[Future[None]] = [Future() for _ in range(self._count)]
        for measured, warmed in zip(tables, warm, strict=True):
            self._spawn(partial(self._first_life, profile, measured, warmed))
        try:
            self.plan(LatencyTable.mean([future.result() for future in tables]))
            self._preparation.free_single()
            starting.info("warming up %s", self._preparation.model)
            self._planned.set()
            for future in warm:
                future.result()
        except BaseException:
            self._lanes.close()
            self._stopping.set()
            self._planned.set()
            self.join()
            raise

    def join(self) -> None:
        """Wait until every thread has emptied the closed lanes and freed what a runtime kept for it.

        A thread that still frees compiled stages when the interpreter exits would abort the process (SIGABRT).
        """
        self._stopping.set()
        while True:
            with self._lock:
                thread = next(iter(self._threads), None)
            if thread is None:
                return
            thread.join()
            with self._lock:
                self._threads.discard(thread)

    def why_not_ready(self) -> str | None:
        """Why the server is not ready: a worker failed, or none finishes its batch; None if it is ready."""
        if self.failure is not None:
            return f"the device failed ({self.failure}) and is being retried"
        since = list(self._since.values())
        stalled = time.monotonic() - max(since) if since and len(since) == self.alive else 0.0
        return f"no worker has finished a batch for {stalled:.0f} s" if stalled > tuning.STALL_SECONDS else None

    def plan(self, table: LatencyTable) -> None:
        """Use the measured durations, and derive batch sizes from them."""
        self._pace.table = table
        self._pace.sizes = self._preparation.sizes(table)
        self._lanes.plan = Plan(self._pace.sizes, self._pace.predicted, self._pace.soonest)

    # a thread's life

    def _spawn(self, life: Callable[[], None]) -> None:
        def live() -> None:
            self._preparation.use_one_core()
            life()

        with self._lock:
            self._threads = {each for each in self._threads if each.is_alive()}
            thread = threading.Thread(target=live, name=f"worker-{len(self._threads)}", daemon=True)
            self._threads.add(thread)
            thread.start()  # here, or ``join`` could meet it before

    def _first_life(self, profile: LatencyTable | None, measured: Future[LatencyTable], warmed: Future[None]) -> None:
        try:
            measured.set_result(profile or self._preparation.measure())
            self._planned.wait()
            if not self._stopping.is_set():
                self._preparation.warm_up(self._pace.sizes)
                self._executor.probe()
        except BaseException as error:
            for future in (measured, warmed):
                if not future.done():
                    future.set_exception(error)
            return
        warmed.set_result(None)
        self._serve()

    def _next_life(self, delay: float) -> None:
        """Replaces a thread whose device failed. Thread-local state of a runtime is created again in the new thread."""
        if self._stopping.wait(delay):
            return
        try:
            self._executor.probe()
            self._preparation.warm_up(self._pace.sizes)
        except BaseException as error:
            logger.error("the device still fails: %s", error)
            self._spawn(partial(self._next_life, min(2 * delay, tuning.LAST_DEVICE_RETRY_SECONDS)))
            return
        self._serve()

    def _serve(self) -> None:
        self._began()
        thread = threading.get_ident()
        try:
            while (batch := self._lanes.wait()) is not None:
                self._since[thread] = time.monotonic()
                self._executor.run(batch)
                del batch, self._since[thread]  # otherwise its images stay in memory while this thread waits
        except BaseException as error:
            self._since.pop(thread, None)
            logger.critical("a worker failed", exc_info=error)
            self._ended(str(error) or type(error).__name__)  # not the exception: its traceback keeps all alive
            self._spawn(partial(self._next_life, tuning.FIRST_DEVICE_RETRY_SECONDS))
        else:
            self._ended(None)

    def _began(self) -> None:
        with self._lock:
            self.alive += 1
            self._lanes.resume()
            if self.alive == self._count and self.failure is not None:
                logger.info("the device runs again")
                self.failure = None

    def _ended(self, failure: str | None) -> None:
        with self._lock:
            self.alive -= 1
            if failure is None:
                return
            self.failure = failure
            if not self.alive:  # no worker is left to run what waits
                self._lanes.fail_all(partial(DeviceFailed, "the device failed"))

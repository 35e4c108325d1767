"""Worker threads: each pulls batches and runs them; one that the device fails is replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from service.engine.batch_runner import BatchRunner
from service.engine.scheduler import Scheduler
from service.inference.latency import LatencyTable
from service.log import logger

# Seconds before a thread that replaces a failed one tries the device: doubled each time, up to the last.
FIRST_RETRY, LAST_RETRY = 0.1, 5.0


class Workers:
    """``count`` threads that run what ``scheduler`` has for them. On a CPU each uses one core.

    Args:
        scheduler: where batches come from.
        runner: what runs them.
        count: how many threads.
        on_failure: told, in the worker's thread, of the error that ended it and how many workers are left.
        on_recovery: told once all of them run.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: BatchRunner,
        count: int,
        on_failure: Callable[[BaseException, int], None] = lambda error, left: None,
        on_recovery: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._count = count
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        self._planned = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._alive = 0

    def start(self, profile: LatencyTable | None = None) -> None:
        """Warm up in all threads at once, as they will run, and measure (unless ``profile`` tells); then pull batches.

        Raises: what a pass raised.
        """
        tables: list[Future[LatencyTable]] = [Future() for _ in range(self._count)]
        warm: list[Future[None]] = [Future() for _ in range(self._count)]
        for measured, warmed in zip(tables, warm, strict=True):
            self._spawn(partial(self._first_life, profile, measured, warmed))
        try:
            self._runner.plan(LatencyTable.mean([future.result() for future in tables]))
            self._planned.set()
            for future in warm:
                future.result()
        except BaseException:
            self._scheduler.close()
            self._stopping.set()
            self._planned.set()
            self.join()
            raise

    def join(self) -> None:
        """Wait until every thread has run the closed scheduler empty."""
        self._stopping.set()
        while True:
            with self._lock:
                thread = next(iter(self._threads), None)
            if thread is None:
                return
            thread.join()

    @property
    def alive(self) -> int:
        """Threads that pull batches."""
        return self._alive

    # a thread's life

    def _spawn(self, life: Callable[[], None]) -> None:
        def live() -> None:
            try:
                self._runner.use_one_core()
                life()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        with self._lock:
            thread = threading.Thread(target=live, name=f"worker-{len(self._threads)}", daemon=True)
            self._threads.add(thread)
            thread.start()  # here, or ``join`` could meet it before

    def _first_life(self, profile: LatencyTable | None, measured: Future[LatencyTable], warmed: Future[None]) -> None:
        try:
            measured.set_result(profile or self._runner.measure())
            self._planned.wait()
            if not self._stopping.is_set():
                self._runner.warm_up()
        except BaseException as error:
            for future in (measured, warmed):
                if not future.done():
                    future.set_exception(error)
            return
        warmed.set_result(None)
        self._serve()

    def _next_life(self, delay: float) -> None:
        """In place of a thread that the device failed. What a runtime keeps for a thread is made anew in a new one."""
        if self._stopping.wait(delay):
            return
        try:
            self._runner.probe()
            self._runner.warm_up()
        except BaseException as error:
            logger.error("the device still fails: %s", error)
            self._spawn(partial(self._next_life, min(2 * delay, LAST_RETRY)))
            return
        self._serve()

    def _serve(self) -> None:
        with self._lock:
            self._alive += 1
            if self._alive == self._count:
                self._on_recovery()
        try:
            while (batch := self._scheduler.wait()) is not None:
                self._runner.run(batch)
                del batch  # or its images live on while this thread waits
        except BaseException as error:
            logger.critical("a worker failed", exc_info=error)
            self._on_failure(error, self._one_less_alive())
            self._spawn(partial(self._next_life, FIRST_RETRY))
        else:
            self._one_less_alive()

    def _one_less_alive(self) -> int:
        with self._lock:
            self._alive -= 1
            return self._alive

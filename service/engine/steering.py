"""Adjusts the threshold to the load, many times per second."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace

from service.engine import tuning
from service.engine.backlog import Backlog
from service.engine.brown_out import BrownOut
from service.engine.executor import Executor
from service.engine.periods import Periods
from service.engine.recent import Recent
from service.state.base import ThresholdConfig


class Steering:
    """Sets the executor's policy every ``tuning.STEERING_SECONDS``, in the event loop's thread.

    Args:
        executor: whose policy is set.
        brown_out: computes the threshold.
        backlog: the queued work.
        recent: the latest confidences.
        asked: returns the threshold and floor asked for.
        periods: are informed of the threshold.
    """

    def __init__(
        self,
        executor: Executor,
        brown_out: BrownOut,
        backlog: Backlog,
        recent: Recent,
        asked: Callable[[], ThresholdConfig],
        periods: Periods,
    ) -> None:
        self._executor = executor
        self._brown_out = brown_out
        self._backlog = backlog
        self._recent = recent
        self._asked = asked
        self._periods = periods
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lowered(self) -> float:
        """The threshold in force while it is lower than the one asked for; otherwise infinite."""
        return self._executor.policy.lowered

    def run(self) -> None:
        """Adjust the threshold now, and again until ``stop``."""
        config = self._asked()
        self._periods.look(config.threshold)
        confidences = self._recent.confidences(tuning.STEERING_CONFIDENCES) if config.floor is not None else ()
        lowered = self._brown_out.steer(
            time.monotonic(),
            self._backlog.load(),
            confidences,
            config.threshold,
            config.floor,
            self._backlog.foresight(),
        )
        self._executor.policy = replace(
            self._executor.policy, lowered=lowered if lowered < config.threshold else math.inf
        )
        self._timer = asyncio.get_running_loop().call_later(tuning.STEERING_SECONDS, self.run)

    def stop(self) -> None:
        """Stop adjusting."""
        if self._timer is not None:
            self._timer.cancel()

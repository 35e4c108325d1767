"""Ends a trial once its counts show, with 95 % confidence, that the model differs or fails too often."""

from __future__ import annotations

import asyncio

from service.engine import tuning
from service.engine.background import end
from service.engine.comparison import Comparison
from service.engine.trials import Trials
from service.errors import ConfigConflict, Conflict, LowfirstError
from service.log import logger
from service.state.base import Ending


class Guard:
    """Watches the running trial. Used in the event loop."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self._task: asyncio.Task[None] | None = None
        self._known: tuple[float, ...] = ()  # time of the last check

    async def start(self) -> None:
        """Check regularly from now on."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop checking."""
        await end(self._task)

    async def look(self) -> None:
        """End the trial if necessary, by the counts of all processes. Without new counts here, other processes check.

        Raises: as ``Trials.cancel``.
        """
        trial = self._trials.current
        own = None if trial is None else self._trials.counted(trial)
        if trial is None or trial.max_disagreement is None or own is None:
            return
        known = trial.began, trial.max_disagreement, own.images, own.tried.errors
        if known == self._known:
            return
        version = self._trials.version
        counts = await self._trials.comparison(trial, with_times=False)
        outcome = counts.verdict(trial.max_disagreement)
        if outcome is not None:
            why = _in_words(outcome, counts, trial.max_disagreement)
            logger.warning("%s %s is cancelled by its guard: %s", trial.kind, trial.reference, why)
            await self._trials.cancel(outcome, why, version)
        self._known = known

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(tuning.GUARD_SECONDS)
            try:
                await self.look()
            except (Conflict, ConfigConflict):  # another process was faster, or the config changed: check again
                pass
            except LowfirstError as error:
                logger.error("the trial could not be ended: %s", error)
            except Exception:
                logger.exception("the guard of the trial failed")


def _in_words(outcome: Ending, counts: Comparison, most: float) -> str:
    if outcome == "disagreement":
        of, at_least = f"{counts.disagreements} of {counts.images} images differ", counts.disagreement_at_least
    else:
        errors = counts.tried.errors
        of, at_least = f"{errors} of {counts.tried.images + errors} images failed", counts.tried.errors_at_least
    return f"{of}, a share of at least {at_least:.4f} (95 %); {most:g} is allowed"

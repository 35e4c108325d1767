"""Ends a trial once its counts show, with 95 % confidence, that the model differs or fails too often."""

from __future__ import annotations

import asyncio

from service.engine import tuning
from service.engine.comparison import Comparison
from service.errors import ConfigConflict, Conflict, LowfirstError
from service.hosting.background import end
from service.hosting.trials import Trials
from service.log import logger
from service.state.base import Ending, Trial


class Guard:
    """Watches the running trial. Used in the event loop."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self._task: asyncio.Task[None] | None = None
        self._known: tuple[float | None, ...] = ()  # at the last check
        self._failure = ""  # the last reason why the trial could not be ended

    async def start(self) -> None:
        """Check regularly from now on."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop checking."""
        await end(self._task)

    async def look(self) -> None:
        """Report the counts of this process, and end the trial if the counts of all processes require it.

        Where nothing new was counted here, others look. Raises: as ``Trials.cancel``.
        """
        trial = self._trials.current
        own = None if trial is None else self._trials.counted(trial)
        if trial is None or own is None:
            return
        known = trial.began, trial.max_disagreement, own.images, own.skipped, own.served.errors, own.tried.errors
        if known == self._known:
            return
        version, counts = self._trials.version, await self._trials.comparison(trial)
        if trial.max_disagreement is not None:
            await self._judge(trial, trial.max_disagreement, counts, version)
        self._known = known

    async def _judge(self, trial: Trial, most: float, counts: Comparison, version: int) -> None:
        outcome = counts.verdict(most)
        self._trials.halt(trial, outcome is not None)
        if outcome is not None:
            why = _in_words(outcome, counts, most)
            await self._trials.cancel(outcome, why, version)
            logger.warning("%s %s is cancelled by its guard: %s", trial.kind, trial.reference, why)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(tuning.GUARD_SECONDS)
            try:
                await self.look()
                self._failure = ""
            except (Conflict, ConfigConflict):  # another process was faster, or the config changed: check again
                pass
            except LowfirstError as error:
                self._fail(str(error))
            except Exception:
                logger.exception("the guard of the trial failed")

    def _fail(self, why: str) -> None:
        """The log has it once."""
        if why != self._failure:
            logger.error("the trial is halted here, and cannot be ended everywhere yet: %s", why)
        self._failure = why


def _in_words(outcome: Ending, counts: Comparison, most: float) -> str:
    if outcome == "disagreement":
        of, at_least = f"{counts.disagreements} of {counts.images} images differ", counts.disagreement_at_least
    else:
        errors = counts.tried.errors
        of, at_least = f"{errors} of {counts.tried.images + errors} images failed", counts.tried.errors_at_least
    return f"{of}, a share of at least {at_least:.4f} (95 %); {most:g} is allowed"

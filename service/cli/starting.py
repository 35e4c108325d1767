"""Start-up progress: a bar on a terminal, in place of log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.cli.console import errors
from service.log import STARTED, logger, starting

STEPS = 3  # of a model: it is loaded, measured, warmed up


@contextmanager
def bar(models: int, *, wanted: bool = True) -> Iterator[None]:
    """Show a bar on a terminal while ``models`` start, until they are done, anything else is logged, or the block
    ends."""
    if not (wanted and errors.is_terminal):
        yield
        return
    shown = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*shown, console=errors, transient=True, refresh_per_second=4) as progress:
        drawn = _Bar(progress, progress.add_task("starting", total=STEPS * models))
        try:
            yield
        finally:
            drawn.end()


class _Bar(logging.Handler):
    """Takes the lines of ``starting`` for itself, until another logger says something, which goes below."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        super().__init__()
        self._progress = progress
        self._task = task
        self._done = -1
        self._level = starting.level
        starting.setLevel(logging.INFO)
        starting.propagate = False
        starting.addHandler(self)
        logger.handlers.insert(0, self)  # before the one that writes

    def emit(self, record: logging.LogRecord) -> None:
        """Called by ``logging``, one thread at a time."""
        if record.name == starting.name and record.msg != STARTED:
            self._done += 1
            self._progress.update(self._task, description=record.getMessage(), completed=self._done)
        else:
            self.end()

    def end(self) -> None:
        """Take the bar away."""
        self._progress.stop()
        for each in (starting, logger):
            each.removeHandler(self)
        starting.propagate = True
        starting.setLevel(self._level)

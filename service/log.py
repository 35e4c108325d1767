"""Logging to standard error, one line per event, as text or JSON. Slow readers never block the server."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from contextlib import suppress
from contextvars import ContextVar

logger = logging.getLogger("lowfirst")

# What a start-up is doing, ``STARTED`` in the end. A terminal shows it as a bar: ``service.cli.starting``.
starting = logger.getChild("starting")
STARTED = "started"

# The request that is being answered; "" outside of any.
current_request: ContextVar[str] = ContextVar("current_request", default="")

TEXT = "%(asctime)s %(levelname)s [%(request_id)s] %(message)s"
JSON = "%(levelname)s %(message)s %(name)s"
OTHERS = ("uvicorn", "asyncio", "opentelemetry", "py.warnings")

# Most lines that may wait to be written; further ones are lost, and counted.
MOST_WAITING = 10_000

# How long an exiting process waits for lines to be written.
FLUSH_SECONDS = 1.0


def configure(level: str, log_format: str = "text") -> None:
    """Send log lines to standard error: those of this project from ``level`` on, and warnings of libraries.

    Args:
        level: debug, info, warning or error.
        log_format: text, or json: one object per line with ``time``, ``level``, ``message``, ``logger``; ``request_id``
            while a request is answered; ``exc_info``; and the fields of ``extra``.
    """
    handler = BackgroundHandler(sys.stderr.fileno())
    handler.setFormatter(_json() if log_format == "json" else logging.Formatter(TEXT, defaults={"request_id": "-"}))
    handler.addFilter(_name_request)
    for each in (logger, *map(logging.getLogger, OTHERS)):
        each.handlers[:] = [handler]
        each.propagate = False
    logger.setLevel(level.upper())
    logging.captureWarnings(True)


def flush() -> None:
    """Wait until all lines are written, so that later output comes after them."""
    for handler in logger.handlers:
        handler.flush()


class BackgroundHandler(logging.Handler):
    """Writes in a separate thread: a pipe without a reader fills up, and would block the code that logs.

    It writes to the descriptor directly. A thread that held the lock of ``sys.stderr`` for ever would keep the process
    from exiting.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[str | threading.Event] = queue.Queue(MOST_WAITING)
        self._lost = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by ``logging``, one thread at a time."""
        try:
            self._waiting.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all is written, for at most ``FLUSH_SECONDS``. ``logging`` calls it when the process ends."""
        written = threading.Event()
        with suppress(queue.Full):
            self._waiting.put_nowait(written)
            written.wait(FLUSH_SECONDS)

    def _write_all(self) -> None:
        while True:
            line = self._waiting.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            self._write(line)
            if self._lost:
                self._write(self.format(self._tell_lost()))

    def _tell_lost(self) -> logging.LogRecord:
        self.acquire()
        lost, self._lost = self._lost, 0
        self.release()
        message = "%d lines of this log are lost: they were written faster than read"
        return logging.LogRecord(logger.name, logging.WARNING, __file__, 0, message, (lost,), None)

    def _write(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        with suppress(OSError):  # the reader has closed the pipe
            while data:
                data = data[os.write(self._descriptor, data) :]


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(JSON, rename_fields={"levelname": "level", "name": "logger"}, timestamp="time")


def _name_request(record: logging.LogRecord) -> bool:
    request_id = current_request.get()
    if request_id:
        record.request_id = request_id
    return True

"""Logging to standard error, one line an event: text, or JSON for machines."""

from __future__ import annotations

import logging
from contextvars import ContextVar

logger = logging.getLogger("lowfirst")

# The request that is being answered; "" outside of any.
current_request: ContextVar[str] = ContextVar("current_request", default="")

TEXT = "%(asctime)s %(levelname)s [%(request_id)s] %(message)s"
JSON = "%(levelname)s %(message)s %(name)s"
OTHERS = ("uvicorn", "asyncio", "opentelemetry", "py.warnings")


def configure(level: str, log_format: str = "text") -> None:
    """Send log lines to standard error: this project's of ``level`` and above, and warnings of the libraries.

    Args:
        level: debug, info, warning or error.
        log_format: text, or json: an object a line with ``time``, ``level``, ``message``, ``logger``; ``request_id``
            while a request is answered; ``exc_info``; and what a line gives as ``extra``.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_json() if log_format == "json" else logging.Formatter(TEXT, defaults={"request_id": "-"}))
    handler.addFilter(_name_request)
    for each in (logger, *map(logging.getLogger, OTHERS)):
        each.handlers[:] = [handler]
        each.propagate = False
    logger.setLevel(level.upper())
    logging.captureWarnings(True)


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(JSON, rename_fields={"levelname": "level", "name": "logger"}, timestamp="time")


def _name_request(record: logging.LogRecord) -> bool:
    request_id = current_request.get()
    if request_id:
        record.request_id = request_id
    return True

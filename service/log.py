"""Logging to standard error, one line an event."""

from __future__ import annotations

import logging

logger = logging.getLogger("lowfirst")


def configure(level: str) -> None:
    """Send this project's log lines of ``level`` and above to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False

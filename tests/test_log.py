"""Log lines: text or JSON, with the id of the request, the same for the libraries; never a key or a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

CODE = """
import logging, sys
from service.log import configure, current_request, logger
configure(*sys.argv[1:])
logger.debug("not told")
logger.info("outside")
current_request.set("trace-7")
logger.info("%s of %d", "one", 2, extra={"ms": 1.5})
logging.getLogger("uvicorn.error").warning("from\\nuvicorn")
try:
    raise RuntimeError("on fire")
except RuntimeError as error:
    logger.error("failed", exc_info=error)
"""


def told(*arguments: str) -> list[str]:
    """The lines that a process with a log of that kind writes."""
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_text_has_a_line_an_event_with_the_id_of_the_request() -> None:
    outside, inside, library, *_ = told("info")
    assert outside.endswith(" INFO [-] outside")
    assert inside.endswith(" INFO [trace-7] one of 2")
    assert library.endswith(" WARNING [trace-7] from")


def test_json_has_an_object_an_event() -> None:
    outside, inside, library, failed = map(json.loads, told("info", "json"))
    assert (outside["message"], outside["level"], outside["logger"]) == ("outside", "INFO", "lowfirst")
    assert "request_id" not in outside
    assert (inside["message"], inside["request_id"], inside["ms"]) == ("one of 2", "trace-7", 1.5)
    assert (library["message"], library["level"], library["logger"]) == ("from\nuvicorn", "WARNING", "uvicorn.error")
    assert "RuntimeError: on fire" in failed["exc_info"]
    age = datetime.now(UTC) - datetime.fromisoformat(outside["time"])
    assert timedelta(0) <= age < timedelta(minutes=2)

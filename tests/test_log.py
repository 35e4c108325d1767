"""Log lines: text or JSON, with the id of the request, the same for the libraries; never a key or a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

TIMEOUT = 100
BEYOND_PIPE = 30_000  # lines that no pipe holds, nor the log's own queue

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
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, timeout=TIMEOUT)
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


FLOOD = """
import sys
from service.log import configure, logger
configure("info", sys.argv[1])
for number in range(int(sys.argv[2])):
    logger.info("line %d", number)
print("done", flush=True)
sys.stdin.read()
logger.info("last")
"""


def flooding(log_format: str, stderr: int) -> subprocess.Popen[bytes]:
    """A process that has logged more than a pipe holds, and waits for the end of its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", FLOOD, log_format, str(BEYOND_PIPE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"done\n"
    return process


def test_log_that_nobody_reads_stops_nobody_and_does_not_delay_the_end() -> None:
    reader, writer = os.pipe()
    with flooding("text", writer) as process:
        os.close(writer)
        process.communicate(timeout=TIMEOUT)
    os.close(reader)
    assert process.returncode == 0


def test_lines_that_were_lost_are_counted() -> None:
    reader, writer = os.pipe()
    with flooding("json", writer) as process, closing(os.fdopen(reader)) as log:
        os.close(writer)
        told = [json.loads(log.readline())]
        while "lost" not in told[-1]["message"]:
            told.append(json.loads(log.readline()))
        assert told[-1]["level"] == "WARNING"
        assert process.stdin is not None
        process.stdin.close()
        told += map(json.loads, log)
        assert process.wait(TIMEOUT) == 0
    lost = sum(int(line["message"].split()[0]) for line in told if "lost" in line["message"])
    assert told[-1]["message"] == "last"
    assert len([line for line in told if line["message"].startswith("line ")]) + lost == BEYOND_PIPE


def test_log_whose_reader_is_gone_stops_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with flooding("text", writer) as process:
        os.close(writer)
        process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0

"""What a server logs: each line JSON, each request under its id, no key and no picture."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

TIMEOUT = 60
KEY = "api-key-0123456789"


@contextmanager
def serving(environment: dict[str, str], log: Path) -> Iterator[httpx.URL]:
    """A server that writes its log to ``log``; stopped in order at the end."""
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-m", "service.cli", "serve"], env=environment, stderr=stream)
    try:
        end = time.monotonic() + TIMEOUT
        while not (found := re.search(r"listening on (http://[\w.:]+)", log.read_text())):
            assert time.monotonic() < end
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield httpx.URL(found[1])
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()


def written(log: Path, awaited: str) -> str:
    """The whole lines of ``log`` once ``awaited`` stands in one of them."""
    end = time.monotonic() + TIMEOUT
    while awaited not in (text := log.read_text().rpartition("\n")[0]):
        assert time.monotonic() < end, text
        time.sleep(0.02)
    return text


def test_each_line_is_json_and_each_request_is_told_under_its_id(
    environment: dict[str, str], jpeg: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    settings = {"LOWFIRST_LOG_FORMAT": "json", "LOWFIRST_LOG_LEVEL": "debug", "LOWFIRST_API_KEY": KEY}
    with (
        serving({**environment, **settings}, log) as address,
        httpx.Client(base_url=address, timeout=TIMEOUT) as client,
    ):
        headers = {"Content-Type": "image/jpeg", "X-API-Key": KEY, "X-Request-ID": "trace-7"}
        assert client.post("/classify?top_k=1", content=jpeg, headers=headers).status_code == 200
        assert client.get("/stats", headers={"X-API-Key": "wrong-" + KEY, "X-Request-ID": "trace-8"}).status_code == 401
        text = written(log, '"code": 401')  # before it ends: native libraries say goodbye in words of their own
    lines = [json.loads(line) for line in text.splitlines()]
    told = {line.get("request_id"): line for line in lines if "route" in line}
    assert {name: told["trace-7"][name] for name in ("method", "route", "code", "level")} == {
        "method": "POST", "route": "/classify", "code": 200, "level": "DEBUG"
    }  # fmt: skip
    assert told["trace-7"]["ms"] > 0
    assert told["trace-8"]["code"] == 401
    assert KEY not in text
    assert max(map(len, text.splitlines())) < 1000

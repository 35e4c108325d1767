"""Real servers: ``lowfirst serve`` in a process of its own, on a free port, over the tiny store."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.console import (  # noqa: F401  (fixtures)
    _config_as_it_was,
    any_depth,
    browser,
    open_page,
    page,
    priced,
    site,
    store,
)

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

TIMEOUT = 60  # a machine may be busy

_LOGS: dict[subprocess.Popen[str], list[str]] = {}


def log_of(process: subprocess.Popen[str]) -> list[str]:
    """The lines that a server has written to standard error."""
    return _LOGS[process]


@pytest.fixture(scope="session")
def environment(tiny_store: Path) -> dict[str, str]:
    """Settings of every process: the tiny model on one thread, a free port."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOWFIRST_")}
    return {
        **inherited,
        "LOWFIRST_MODEL_STORE": str(tiny_store),
        "LOWFIRST_MODEL": "tiny",
        "LOWFIRST_PRECISION": "float32",
        "LOWFIRST_RUNTIME": "eager",
        "LOWFIRST_DEVICE": "cpu",
        "LOWFIRST_PORT": "0",
        "LOWFIRST_PROCESSES": "1",
        "LOWFIRST_WORKERS": "1",
        "LOWFIRST_MAX_BATCH_SIZE": "2",
        "LOWFIRST_DRAIN_DELAY_SECONDS": "0",
    }


@pytest.fixture
def serve(environment: dict[str, str]) -> Iterator[Serve]:
    """``serve(**settings)``: a server of the test's own and a client of it. It is killed at the end."""
    with _servers(environment) as start:
        yield start


@pytest.fixture(scope="module")
def serve_once(environment: dict[str, str]) -> Iterator[Serve]:
    """``serve``, of servers that a module's tests share."""
    with _servers(environment) as start:
        yield start


@pytest.fixture(scope="session")
def server(environment: dict[str, str]) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with _servers(environment) as start:
        yield start()


@pytest.fixture(scope="module")
def servers(environment: dict[str, str]) -> Iterator[Serve]:
    """As ``serve``, for all tests of a file."""
    with _servers(environment) as start:
        yield start


@contextmanager
def _servers(environment: dict[str, str]) -> Iterator[Serve]:
    running: list[tuple[subprocess.Popen[str], httpx.Client, _Log]] = []

    def start(**settings: str) -> Server:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"],
            env={**environment, **{f"LOWFIRST_{name.upper()}": value for name, value in settings.items()}},
            stderr=subprocess.PIPE,
            text=True,
        )
        log = _Log(process)
        client = httpx.Client(base_url=log.address(), timeout=TIMEOUT)
        running.append((process, client, log))
        return process, client

    try:
        yield start
    finally:
        for process, client, log in running:
            client.close()
            process.kill()
            process.wait()
            log.close()
    for _, _, log in running:
        told = "".join(log.lines)
        if "Traceback" in told:
            pytest.fail("the server logged a traceback:\n" + told)


class _Log:
    """What a server writes to standard error, read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.lines: list[str] = []
        _LOGS[process] = self.lines
        self._process = process
        self._stream = process.stderr
        self._address: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def address(self) -> str:
        """Where the server listens, as soon as it does."""
        try:
            address = self._address.get(timeout=TIMEOUT)
        except queue.Empty:
            address = None
        if address is None:
            self._process.kill()
            self._process.wait()
            self.close()
            pytest.fail("the server did not come up:\n" + "".join(self.lines))
        return address

    def close(self) -> None:
        """Once the process has ended."""
        self._reader.join()
        self._stream.close()

    def _read(self) -> None:
        for line in self._stream:
            self.lines.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                self._address.put(found[1])
        self._address.put(None)


@pytest.fixture(scope="session")
def jpeg(make_jpeg: Callable[..., bytes]) -> bytes:
    """A photograph."""
    return make_jpeg(1)

"""Servers in processes of their own: started on loopback, waited for, and stopped with all that they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 300  # of a machine that does much else
STOP_SECONDS = 15


class ServerFailed(Exception):
    """A server that did not come up, or answered wrongly."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: where images are posted to.
        pid: of the process that was started.
        log: what it and its children wrote.
    """

    url: str
    pid: int
    log: Path

    @property
    def origin(self) -> str:
        """``http://host:port``."""
        return str(httpx.URL(self.url).copy_with(path="/")).rstrip("/")

    def rss(self) -> int:
        """Resident bytes of the process and all its descendants; pages that they share count for each."""
        return sum(each.memory_info().rss for each in self._family())

    def pss(self) -> int:
        """Resident bytes of them, of pages that several processes share each one's part."""
        return sum(self._of_each(lambda process: process.memory_full_info().pss).values())

    def cpu_seconds(self) -> dict[int, float]:
        """Processor time that the process and each of its descendants, those that live, have taken so far."""
        return self._of_each(lambda process: process.cpu_times().user + process.cpu_times().system)

    def _of_each(self, read: Callable[[Any], T]) -> dict[int, T]:
        """By process id; those that end meanwhile are left out."""
        found = {}
        for each in self._family():
            with suppress(psutil.Error):
                found[each.pid] = read(each)
        return found

    def _family(self) -> list[Any]:
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def unwind_on_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does, so that the servers it started are stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], url: str, body: bytes, content_type: str, log: Path
) -> Iterator[Server]:
    """Start ``command``, wait until it answers ``body`` with 200, and in the end kill it and its descendants.

    Args:
        environment: variables added to this process's own, less every LOWFIRST_*.
        log: a file, made anew.

    Raises:
        ServerFailed: it ended, or gave no such answer in time. The message names the log.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOWFIRST_")}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            server = Server(url, process.pid, log)
            _wait(process, server, body, content_type)
            yield server
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], server: Server, body: bytes, content_type: str) -> None:
    until = time.monotonic() + START_SECONDS
    last = "no answer"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ServerFailed(f"the server ended with status {process.returncode}; see {server.log}")
        try:
            answer = httpx.post(server.url, content=body, headers={"Content-Type": content_type}, timeout=30)
        except httpx.TransportError as error:
            last = repr(error)
        else:
            if answer.status_code == 200:
                return
            last = f"{answer.status_code} {answer.text[:200]}"
        time.sleep(0.1)
    raise ServerFailed(f"the server was not ready in {START_SECONDS} seconds ({last}); see {server.log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """First as it may clean up after itself, then for certain."""
    family = [psutil.Process(process.pid)] if process.poll() is None else []
    with suppress(psutil.NoSuchProcess):
        family += [child for each in family for child in each.children(recursive=True)]
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    _, alive = psutil.wait_procs(family, timeout=2)
    for each in alive:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(alive, timeout=2)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

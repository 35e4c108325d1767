"""Several processes as one server: their parent starts, watches, replaces and stops them. It loads no PyTorch.

Two Unix sockets connect each child with the parent: one for messages (``Line``), and one that passes client connections
(``Handover``). When either process ends, the other notices that the line is closed.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from service.errors import LowfirstError
from service.log import logger
from service.processes.reception import Handover, Reception
from service.settings import Settings
from service.state.line import Line, LineClosed
from service.state.local import PREFIX, SharedConfig

# How long a process may take to say how it stands; then the others are told of without it.
ANSWER_SECONDS = 1.0

# Pauses before a process that ended is replaced: doubled each time, from the first again once one lived for long.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
LONG_LIFE_SECONDS = 60.0

# How long after its own time to drain a process may still live.
GRACE_SECONDS = 10.0

Start = Callable[[int, socket.socket, socket.socket], BaseProcess]  # which one, its ends of the line and the handover


@dataclass(eq=False, slots=True)
class Child:
    """One process.

    Attributes:
        is_up: whether it was ever ready. Then it takes connections, and finishes them when it is told to stop.
        failure: why it could not start, in its own words.
    """

    index: int
    process: BaseProcess
    line: Line
    handover: Handover
    is_ready: bool = False
    is_up: bool = False
    failure: str | None = None
    began: float = field(default_factory=time.monotonic)


class Parent:
    """Runs ``count`` processes until a signal stops it.

    After SIGTERM the server is not ready, keeps serving for the drain delay, and then stops. After SIGINT or a second
    SIGTERM it stops at once. Stopping finishes accepted requests, as in a server with one process.

    Args:
        settings: those of the whole server.
        count: number of processes.
        start: starts a process. It closes its copies of the sockets once the process has them.
        listeners: bound sockets by purpose; this object closes them.
        files: folder of the children's metrics.
    """

    def __init__(
        self,
        settings: Settings,
        count: int,
        start: Start,
        listeners: Mapping[bytes, Sequence[socket.socket]],
        files: Path,
    ) -> None:
        self._settings = settings
        self._count = count
        self._start = start
        self._files = files
        self._where = [_address(each) for each in next(iter(listeners.values()))]
        self._children: dict[int, Child] = {}
        self._config = SharedConfig()
        self._times: dict[str, Any] = {}  # latency tables that all reckon with, by model
        self._reception = Reception(listeners, self._handovers)
        self._is_open = False
        self._is_draining = False
        self._starting = asyncio.Lock()
        self._all_ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._signal: signal.Signals | None = None  # that ended it at once

    async def run(self) -> signal.Signals | None:
        """Serve until stopped. Returns the signal, if one stopped the server at once.

        Raises:
            LowfirstError: one of the first processes could not start. All processes have ended then.
        """
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._signalled, each)
        watched = [asyncio.create_task(self._keep(index)) for index in range(self._count)]
        stopping, ready = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._all_ready.wait())
        try:
            await asyncio.wait([stopping, ready, *watched], return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set() and self._all_ready.is_set():
                self._open()
                await asyncio.wait([stopping, *watched], return_when=asyncio.FIRST_COMPLETED)
            await self._close(watched)
        finally:
            for child in self._children.values():
                child.process.kill()
            for task in (stopping, ready, *watched):
                task.cancel()
        for outcome in await asyncio.gather(*watched, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return self._signal

    def _open(self) -> None:
        self._is_open = True
        self._reception.open()
        for address in self._where:
            logger.info("listening on http://%s", address)
        logger.info("%d processes serve as one", self._count)

    async def _close(self, watched: Sequence[asyncio.Task[None]]) -> None:
        self._stop.set()
        await self._reception.close()
        for child in self._children.values():
            if child.is_up:
                child.handover.end()
            else:
                child.process.kill()  # it has nothing to finish, and hears nothing while it loads its model
        patience = self._settings.drain_timeout_seconds + GRACE_SECONDS
        _, late = await asyncio.wait(watched, timeout=patience)
        if late:
            logger.error("%d processes did not stop in %g seconds, and are killed", len(late), patience)

    def _signalled(self, number: signal.Signals) -> None:
        self._tell_all("drain")
        if number == signal.SIGTERM and not self._is_draining:
            self._is_draining = True
            seconds = self._settings.drain_delay_seconds if self._is_open else 0
            logger.info("stopping: not ready, serving for %g seconds more", seconds)
            asyncio.get_running_loop().call_later(seconds, self._stop.set)
            return
        if self._stop.is_set() and number == signal.SIGINT:
            self._tell_all("force")
        self._is_draining = True
        self._signal = number
        self._stop.set()

    async def _keep(self, index: int) -> None:
        """Keep process ``index`` running until all stop."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            child = await self._started(index)
            if self._stop.is_set():
                child.process.kill()
            await child.line.wait_closed()
            why = child.failure or _ending(await self._ended(child))
            if self._stop.is_set():
                return
            if not self._is_open:
                raise LowfirstError(child.failure or f"process {index} {why} before it was ready")
            if time.monotonic() - child.began > LONG_LIFE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.error("process %d %s: a new one starts in %g seconds", index, why, pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()
                    return
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _started(self, index: int) -> Child:
        (words, their_words), (handover, their_handover) = socket.socketpair(), socket.socketpair()
        async with self._starting:  # the first waits until the template has loaded PyTorch
            process = await asyncio.to_thread(self._start, index, their_words, their_handover)
        child = Child(index, process, Line(words, lambda kind, body: self._hear(child, kind, body)), Handover(handover))
        self._children[index] = child
        await child.line.open()
        return child

    async def _ended(self, child: Child) -> int | None:
        """Clean up after a process. Returns its exit code, or the negative number of the signal that ended it."""
        del self._children[child.index]
        self._config.leave(child.line)
        self._tell_census()
        await asyncio.to_thread(child.process.join, GRACE_SECONDS)
        if child.process.exitcode is None:
            child.process.kill()
            await asyncio.to_thread(child.process.join)
        child.handover.close()
        for gauges in self._files.glob(f"gauge_live*_{child.index}.db"):  # what it was, it is no more
            gauges.unlink(missing_ok=True)
        return child.process.exitcode

    async def _hear(self, child: Child, kind: str, body: Any) -> Any:
        if kind.startswith(PREFIX):
            return await self._config.hear(child.line, kind, body)
        match kind:
            case "ready":
                self._is_ready(child, bool(body))
            case "failed":
                child.failure = str(body)
            case "times":
                model, measured = body
                return self._times.setdefault(model, measured)
            case "others":
                asked = [self._ask(each, *body) for each in self._children.values() if each is not child]
                return [answer for answer in await asyncio.gather(*asked) if answer is not None]
        return None

    async def _ask(self, child: Child, kind: str, body: Any) -> Any:
        """The answer of ``child``; None if there is none in time."""
        if not child.is_up:
            return None
        with suppress(LineClosed, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                return await child.line.ask(kind, body)
        return None

    def _is_ready(self, child: Child, is_ready: bool) -> None:
        child.is_ready = is_ready
        child.is_up = True
        if self._is_draining:
            child.line.tell("drain")
        if self._ready == self._count:
            self._all_ready.set()
        self._tell_census()
        if is_ready and self._is_open:
            self._even_out()

    @property
    def _ready(self) -> int:
        return sum(child.is_ready for child in self._children.values())

    def _tell_census(self) -> None:
        self._tell_all("census", [self._ready, self._count])

    def _even_out(self) -> None:
        """Make processes with too many connections close some after an answer; their clients connect again."""
        connections = sum(child.handover.connections for child in self._children.values())
        fair = -(-connections // max(1, self._ready))
        for child in self._children.values():
            if child.handover.connections > fair:
                child.line.tell("shed", child.handover.connections - fair)

    def _tell_all(self, kind: str, body: Any = None) -> None:
        for child in self._children.values():
            child.line.tell(kind, body)

    def _handovers(self) -> list[Handover]:
        up = [child for child in self._children.values() if child.is_up]
        return [child.handover for child in up if child.is_ready] or [child.handover for child in up]


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

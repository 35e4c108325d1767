"""One of several processes: serves the connections that its parent hands over."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from service.api.dependencies import Parts
from service.app import create_app
from service.cli.draining import http_config, leave_alone
from service.cli.starting import bar
from service.errors import LowfirstError
from service.log import configure, starting
from service.processes.metrics import keep_in_files
from service.processes.reception import MAIN, OWN, received
from service.processes.siblings import Together
from service.settings import Settings
from service.state.line import frame, has_hung_up

ADOPTED_AT_ONCE = 16


def serve_child(
    settings: Settings,
    index: int,
    count: int,
    words: socket.socket,
    handover: socket.socket,
    files: Path,
    shared: Path | None,
    own_address: str,
) -> None:
    """Serve until the parent says stop, or has exited. See ``Together`` and ``Handover``."""
    # sent to the whole process group: the parent handles them
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    configure(settings.log_level, settings.log_format)
    if index:  # the first one reports for all
        starting.setLevel(logging.WARNING)
    try:
        _serve(settings, index, count, words, handover, files, shared, own_address)
    finally:
        logging.shutdown()  # nobody else calls it in a process that was forked


def _serve(
    settings: Settings,
    index: int,
    count: int,
    words: socket.socket,
    handover: socket.socket,
    files: Path,
    shared: Path | None,
    own_address: str,
) -> None:
    keep_in_files(index)
    if has_hung_up(words):
        return
    # gauges are read by functions here, and those of a model that went are not there to be read
    warnings.filterwarnings("ignore", "Removal of labels", UserWarning)
    together = Together(index, count, words, files, shared, own_address)
    with bar(len(settings.models) + 1, wanted=index == 0 and settings.log_format == "text"):
        try:
            app = create_app(settings, together)
        except LowfirstError as error:
            words.sendall(frame(0, "failed", error.message))
            sys.exit(1)
        server = ChildServer(app, settings, together, handover)
        server.run(sockets=[])
    together.clear_up()
    if not server.started:
        sys.exit(1)


class ChildServer(uvicorn.Server):
    """Serves connections that come over ``handover``; stops when that or the line to the parent ends."""

    def __init__(self, app: FastAPI, settings: Settings, together: Together, handover: socket.socket) -> None:
        parts: Parts = app.state.parts
        self._app = app
        self._parts = parts
        self._together = together
        self._handover = handover
        self._closed = 0  # connections, of which the parent does not know yet
        self._to_shed = 0  # connections to close after their next answer: other processes have fewer
        self._is_ready = False
        self._tasks: set[asyncio.Task[None]] = set()
        served = {MAIN: app, OWN: app.state.own_port.app if app.state.own_port is not None else app}
        self._configs = {
            name: http_config(each, settings, parts, is_leaving=self._is_leaving, on_close=self._on_close)
            for name, each in served.items()
        }
        super().__init__(self._configs[MAIN])
        together.answer("drain", lambda _: parts.models.drain())
        together.answer("force", self._force)
        together.answer("shed", self._shed_some)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The parent handles signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections."""
        try:
            await super().startup(sockets)
        except SystemExit:
            if (failure := self._app.state.failure) is not None:
                await self._together.line.ask("failed", failure.message)
            raise
        leave_alone()
        self._configs[OWN].load()
        self._handover.setblocking(False)
        asyncio.get_running_loop().add_reader(self._handover, self._take)
        self._spawn(self._stop_orphaned())
        self._tell_readiness()

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times per second; returns whether to stop."""
        self._tell_readiness()
        self._tell_closed()
        return await super().on_tick(counter)

    def _tell_readiness(self) -> None:
        is_ready = self._parts.models.why_not_ready() is None
        if is_ready != self._is_ready:
            self._is_ready = is_ready
            self._together.tell("ready", is_ready)

    def _take(self) -> None:
        for _ in range(ADOPTED_AT_ONCE):
            try:
                name, descriptors, *_ = socket.recv_fds(self._handover, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                name, descriptors = b"", []
            if not name:  # the last one came
                asyncio.get_running_loop().remove_reader(self._handover)
                self.should_exit = True
                return
            for descriptor in descriptors:
                self._spawn(self._adopt(name, descriptor))

    async def _adopt(self, name: bytes, descriptor: int) -> None:
        config, loop = self._configs[name], asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: config.http_protocol_class(  # type: ignore[call-arg]
                    config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
                ),
                received(descriptor),
            )
        except OSError:  # the client has gone already
            self._on_close()

    def _on_close(self) -> None:
        self._closed += 1
        self._tell_closed()

    def _tell_closed(self) -> None:
        if self._closed:
            with suppress(OSError):  # again at the next tick; or the parent is gone
                self._closed -= self._handover.send(bytes(self._closed))

    def _is_leaving(self) -> bool:
        """Whether the connection of a request is to be closed after its answer."""
        if self._parts.models.is_draining:
            return True
        if self._to_shed:
            self._to_shed -= 1
            return True
        return not self._is_ready

    def _shed_some(self, connections: int) -> None:
        self._to_shed = connections

    def _force(self, _: object) -> None:
        self.force_exit = True

    async def _stop_orphaned(self) -> None:
        await self._together.wait_orphaned()
        self._parts.models.drain()
        self.should_exit = True

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""A process's view of the whole server, alone or as one of several processes (see ``parent``)."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from service.cores import cores
from service.log import logger
from service.processes.share import part
from service.state.base import RuntimeConfig
from service.state.line import Line, LineClosed
from service.state.local import PREFIX, LocalConfigStore

Answer = Callable[[Any], Any]


class Siblings(Protocol):
    """The other processes of this server.

    Attributes:
        index, count: this process's index, and the number of processes.
        ready: number of ready processes, including this one.
    """

    count: int
    index: int
    ready: int

    async def start(self) -> None:
        """Open the line to the other processes."""
        ...

    def answer(self, kind: str, answer: Answer) -> None:
        """Answer questions of this ``kind`` with ``answer(body)``. Both are JSON; None means no answer."""
        ...

    async def others(self, kind: str, body: Any = None) -> list[Any]:
        """The answers of the other processes that answer in time."""
        ...

    def tell(self, kind: str, body: Any = None) -> None:
        """Send a message to the parent."""
        ...


class Alone:
    """A server that consists of this process only."""

    count = 1
    index = 0
    ready = 0

    async def start(self) -> None:
        """See ``Siblings``."""

    def answer(self, kind: str, answer: Answer) -> None:
        """Ignored: there are no other processes."""

    async def others(self, kind: str, body: Any = None) -> list[Any]:  # noqa: ARG002
        """An empty list: there are no other processes."""
        return []

    def tell(self, kind: str, body: Any = None) -> None:
        """Ignored: there is no parent."""


class Together:
    """One process of several.

    Args:
        index, count: this process's index, and the number of processes.
        words: this end of the line to the parent, which this object closes.
        files: the folder of all processes' metrics.
        shared: a folder on disk for everything else that processes share; None if no disk is writable.
        own_address: the parent's address for ``LOWFIRST_METRICS_PORT``, if it is set.

    Attributes:
        ready: number of ready processes, as last reported by the parent.
    """

    def __init__(
        self, index: int, count: int, words: socket.socket, files: Path, shared: Path | None, own_address: str = ""
    ) -> None:
        self.index = index
        self.count = count
        self.files = files
        self.shared = shared
        self.own_address = own_address
        self.ready = 0
        self.line = Line(words, self._hear)
        self._config: LocalConfigStore | None = None
        self._answers: dict[str, Answer] = {"census": self._count_ready}

    @property
    def cores(self) -> int:
        """Its share of the machine's cores."""
        return part(cores(), self.index, self.count)

    def config_store(self, start: RuntimeConfig) -> LocalConfigStore:
        """The config that the parent stores. Call this once."""
        self._config = LocalConfigStore(self.line, start)
        return self._config

    async def start(self) -> None:
        """See ``Siblings``."""
        await self.line.open()

    def answer(self, kind: str, answer: Answer) -> None:
        """See ``Siblings``."""
        self._answers[kind] = answer

    async def others(self, kind: str, body: Any = None) -> list[Any]:
        """See ``Siblings``."""
        try:
            answers: list[Any] = await self.line.ask("others", [kind, body])
        except LineClosed:
            return []
        return answers or []

    def tell(self, kind: str, body: Any = None) -> None:
        """See ``Siblings``."""
        self.line.tell(kind, body)

    async def wait_orphaned(self) -> None:
        """Wait until the parent has ended."""
        await self.line.wait_closed()
        logger.error("the parent process is gone: stopping")

    async def times(self, model: str, measured: Any) -> Any:
        """The latency table of ``model`` from the process that measured first, as JSON. If this is the first,
        ``measured``.
        """
        try:
            return await self.line.ask("times", [model, measured]) or measured
        except LineClosed:
            return measured

    def clear_up(self) -> None:
        """Remove the shared folders if the parent has ended and cannot do it."""
        if not self.line.is_open:
            for folder in filter(None, (self.files, self.shared)):
                shutil.rmtree(folder, ignore_errors=True)

    def _count_ready(self, census: Any) -> None:
        self.ready, _ = census

    async def _hear(self, kind: str, body: Any) -> Any:
        if kind.startswith(PREFIX):
            return await self._config.hear(kind, body) if self._config is not None else None
        return self._answers[kind](body) if kind in self._answers else None

"""What one process knows of the whole server: alone, or as one of several (see ``parent``)."""

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
        index, count: which of how many this one is.
        ready: how many are, of several, this one among them.
    """

    count: int
    index: int
    ready: int

    async def start(self) -> None:
        """Be heard from now on."""
        ...

    def answer(self, kind: str, answer: Answer) -> None:
        """Answer with ``answer(body)`` what others ask by ``kind``; both JSON. None is no answer."""
        ...

    async def others(self, kind: str, body: Any = None) -> list[Any]:
        """What each of the others answers that does so in time."""
        ...

    def tell(self, kind: str, body: Any = None) -> None:
        """Tell the parent."""
        ...


class Alone:
    """This process is the server: there are no others."""

    count = 1
    index = 0
    ready = 0

    async def start(self) -> None:
        """See ``Siblings``."""

    def answer(self, kind: str, answer: Answer) -> None:
        """Nobody asks."""

    async def others(self, kind: str, body: Any = None) -> list[Any]:  # noqa: ARG002
        """None."""
        return []

    def tell(self, kind: str, body: Any = None) -> None:
        """There is no parent."""


class Together:
    """One process of several.

    Args:
        index, count: which one, of how many.
        words: this end of the line to the parent; taken over.
        files: the folder of the metrics of all.
        shared: a folder on disk for whatever else they share; None where no disk can be written to.
        own_address: where the parent listens for ``LOWFIRST_METRICS_PORT``, if it does.

    Attributes:
        ready: how many are, as the parent said last.
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
        """Its share of the machine's."""
        return part(cores(), self.index, self.count)

    def config_store(self, start: RuntimeConfig) -> LocalConfigStore:
        """The config that the parent holds; made once."""
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
        """Until the parent is gone."""
        await self.line.wait_closed()
        logger.error("the parent process is gone: stopping")

    async def times(self, model: str, measured: Any) -> Any:
        """The latency table of ``model`` that the first of them measured, as JSON: ``measured``, if this one is it."""
        try:
            return await self.line.ask("times", [model, measured]) or measured
        except LineClosed:
            return measured

    def clear_up(self) -> None:
        """Remove the folders of all, as an orphan at its end: the parent cannot."""
        if not self.line.is_open:
            for folder in filter(None, (self.files, self.shared)):
                shutil.rmtree(folder, ignore_errors=True)

    def _count_ready(self, census: Any) -> None:
        self.ready, _ = census

    async def _hear(self, kind: str, body: Any) -> Any:
        if kind.startswith(PREFIX):
            return await self._config.hear(kind, body) if self._config is not None else None
        return self._answers[kind](body) if kind in self._answers else None

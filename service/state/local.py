"""Shared state of the processes of one server: their parent holds the config, and each has a line to it.

A process that changes the config sends a new one based on the version it knows. The parent accepts it if no other
change came between, and responds once every responsive process has it. So after the response all use the new threshold.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any

from service.errors import ConfigConflict, StoreUnavailable
from service.log import logger
from service.state.base import Change, RuntimeConfig, check_expected_version
from service.state.encoding import decode_config, encode_config
from service.state.line import Line, LineClosed
from service.state.others import Others

# How often a change is repeated because another came between.
ATTEMPTS = 20

# How long the response to a change waits for processes that are too busy to apply it; they do so as soon as they can.
SPREAD_SECONDS = 1.0

PREFIX = "config."


class SharedConfig:
    """The parent's side: the config, and its followers. The first process to join provides the initial config."""

    def __init__(self) -> None:
        self._current: RuntimeConfig | None = None
        self._announced: Mapping[str, int] = {}
        self._asker: Line | None = None  # who announced it
        self._members: dict[Line, int] = {}
        self._joined = 0
        self._turns: dict[tuple[Line, int], asyncio.Event] = {}  # in order; the first one is current

    async def hear(self, line: Line, kind: str, body: Any) -> Any:
        """Answer a request of the process at ``line``; ``kind`` begins with ``PREFIX``."""
        match kind.removeprefix(PREFIX):
            case "join":
                return self._join(line, _decoded(body))
            case "swap":
                return await self._swap(line, _decoded(body))
            case "announce":
                self._asker, self._announced = line, body
                for other in self._others(line):
                    other.tell(f"{PREFIX}announced", body)
                return len(self._others(line))
            case "prepared":
                models, why_not = body
                if self._asker is not None and models == self._announced:
                    self._asker.tell(f"{PREFIX}prepared", [models, self._members.get(line, 0), why_not])
            case "serving":
                for other in self._others(line):
                    other.tell(f"{PREFIX}serving", [body, self._members.get(line, 0)])
            case "turn":
                await self._turn(line, body)
            case "turn-over":
                self._end_turn((line, body))
        return None

    def leave(self, line: Line) -> None:
        """The process at ``line`` has ended."""
        member = self._members.pop(line, None)
        if self._asker is line:
            self._asker = None
        for turn in [turn for turn in self._turns if turn[0] is line]:
            self._end_turn(turn)
        for other in self._members:
            other.tell(f"{PREFIX}left", member)

    async def _turn(self, line: Line, number: int) -> None:
        """Wait for the turn of the process at ``line``."""
        mine = self._turns[line, number] = asyncio.Event()
        self._next_turn()
        await mine.wait()

    def _end_turn(self, turn: tuple[Line, int]) -> None:
        """End a turn that is over or was cancelled."""
        if (ended := self._turns.pop(turn, None)) is not None:
            ended.set()
        self._next_turn()

    def _next_turn(self) -> None:
        if (first := next(iter(self._turns.values()), None)) is not None:
            first.set()

    def _join(self, line: Line, start: RuntimeConfig) -> str:
        self._joined += 1
        self._members[line] = self._joined
        if self._current is None:
            self._current = start
        return _encoded(self._current)

    async def _swap(self, line: Line, after: RuntimeConfig) -> dict[str, Any]:
        assert self._current is not None
        taken = after.version == self._current.version + 1
        if taken:
            self._current = after
            told = [self._tell(other, after) for other in self._others(line)]
            await asyncio.gather(*told)
        return {"taken": taken, "config": _encoded(self._current), "others": len(self._others(line))}

    async def _tell(self, other: Line, config: RuntimeConfig) -> None:
        with suppress(LineClosed, TimeoutError):
            async with asyncio.timeout(SPREAD_SECONDS):
                await other.ask(f"{PREFIX}changed", _encoded(config))

    def _others(self, line: Line) -> list[Line]:
        return [other for other in self._members if other is not line]


class LocalConfigStore:
    """The runtime config of all processes of one server, as seen by one of them.

    Args:
        line: to the parent, which passes messages to ``hear``; opened and closed by its creator.
        start: in force until the store is started, and for all if no process joined before.
    """

    is_invalid = False

    def __init__(self, line: Line, start: RuntimeConfig) -> None:
        self._line = line
        self._current = start
        self._lock = asyncio.Lock()
        self._is_told = False  # of a change
        self._announced: Mapping[str, int] = {}
        self._others = Others()
        self._turns = count()

    @property
    def current(self) -> RuntimeConfig:
        """The newest config known here."""
        return self._current

    @property
    def is_up(self) -> bool:
        """Whether the parent lives."""
        return self._line.is_open

    @property
    def announced(self) -> Mapping[str, int]:
        """See ``ConfigStore.announced``."""
        return self._announced

    async def hear(self, kind: str, body: Any) -> None:
        """Handle a message of the parent; ``kind`` begins with ``PREFIX``."""
        match kind.removeprefix(PREFIX):
            case "changed":
                self._is_told = True
                self._apply(_decoded(body))
            case "announced":
                self._announced = body
            case "prepared":
                self._others.prepared(*body)
            case "serving":
                self._others.serving(*body)
            case "left":
                self._others.left(body)

    async def start(self) -> None:
        """Take over the parent's config, and follow it."""
        with suppress(LineClosed):
            held = _decoded(await self._line.ask(f"{PREFIX}join", _encoded(self._current)))
            if not self._is_told:  # otherwise the config known here is newer
                self._current = held

    async def announce(self, models: Mapping[str, int]) -> None:
        """See ``ConfigStore.announce``."""
        self._others.expect(models)
        with suppress(LineClosed):
            self._others.hear_of(await self._line.ask(f"{PREFIX}announce", dict(models)))

    async def tell_prepared(self, models: Mapping[str, int], why_not: str | None = None) -> None:
        """See ``ConfigStore.tell_prepared``."""
        self._line.tell(f"{PREFIX}prepared", [dict(models), why_not])

    async def others_prepared(self) -> list[str]:
        """See ``ConfigStore.others_prepared``. It does not wait for processes that have ended."""
        return await self._others.wait_prepared()

    async def tell_serving(self, version: int) -> None:
        """See ``ConfigStore.tell_serving``."""
        self._line.tell(f"{PREFIX}serving", version)

    async def others_serving(self, version: int) -> None:
        """See ``ConfigStore.others_serving``. It waits for new processes too, not for ended ones."""
        await self._others.wait_serving(version)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """See ``ConfigStore.turn``."""
        number = next(self._turns)
        try:
            with suppress(LineClosed):
                await self._line.ask(f"{PREFIX}turn", number)
            yield
        finally:
            self._line.tell(f"{PREFIX}turn-over", number)

    async def close(self) -> None:
        """See ``ConfigStore.close``. The line stays open for others."""

    async def update(self, change: Change, expected_version: int | None = None) -> RuntimeConfig:
        """See ``ConfigStore.update``. If another change came between, the change is repeated on top of it."""
        async with self._lock:
            for _ in range(ATTEMPTS):
                before = self._current
                check_expected_version(before, expected_version)
                after = replace(change(before), version=before.version + 1)
                try:
                    answer = await self._line.ask(f"{PREFIX}swap", _encoded(after))
                except LineClosed as error:
                    raise StoreUnavailable("the process that holds the config has exited") from error
                self._apply(_decoded(answer["config"]))
                if answer["taken"]:
                    self._others.are(answer["others"])
                    return after
        raise ConfigConflict(f"the config was changed by others {ATTEMPTS} times during this change")

    def _apply(self, config: RuntimeConfig) -> None:
        if config.version > self._current.version:
            logger.debug("the shared config has version %d", config.version)
            self._current = config


def _encoded(config: RuntimeConfig) -> str:
    return encode_config(config).decode()


def _decoded(text: str) -> RuntimeConfig:
    return decode_config(text.encode())

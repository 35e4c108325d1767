"""The runtime config of all replicas: one value under one key.

A change compares the bytes it read and swaps them for new ones, in one script. A value that is missing, or older than
the config of a replica, is replaced in the same way, so the version never decreases.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

from redis.asyncio.lock import Lock

from service.errors import ConfigConflict, StoreUnavailable
from service.log import logger
from service.state.base import Change, RuntimeConfig, check_expected_version
from service.state.encoding import (
    MAX_VERSION,
    Notice,
    Unreadable,
    decode_config,
    decode_notice,
    encode_config,
    encode_notice,
)
from service.state.others import Others
from service.state.redis.link import RedisLink, as_bytes

# A replica applies a change after at most this long if its announcement is lost.
POLL_SECONDS = 0.4

# Interval of new subscriptions: a dead connection is not noticed otherwise.
SUBSCRIPTION_SECONDS = 60.0

# How long a lost replica keeps its turn to change models, and how often others ask for the turn.
TURN_SECONDS = 8.0
TURN_LOOK_SECONDS = 0.1

# How often a change is repeated because another came between.
ATTEMPTS = 20

# KEYS: the config. ARGV: what it must still be ("" for none), what it becomes, the channel.
SWAP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], '')
return 1
"""


class RedisConfigStore:
    """The runtime config of all replicas. ``start`` before use, ``close`` after; both in one event loop.

    Args:
        link: to Redis; closed with the store.
        start: in force until Redis answers, and stored there if there is no config.

    Attributes:
        is_invalid: whether the config in Redis is ignored: written by a newer release, or by hand and out of bounds.
    """

    def __init__(self, link: RedisLink, start: RuntimeConfig) -> None:
        self._link = link
        self._current = start
        self._has_joined = False
        self._ignored: Unreadable | None = None
        self._key = f"{link.prefix}config"
        self._swap_script = link.client.register_script(SWAP)
        self._lock = asyncio.Lock()
        self._news = asyncio.Event()
        self._name = secrets.token_hex(8)  # to recognise its own announcements
        self._announced: Mapping[str, int] = {}
        self._others = Others()
        self._own_turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def current(self) -> RuntimeConfig:
        """The newest config known here."""
        return self._current

    @property
    def is_up(self) -> bool:
        """Whether Redis answered the last poll."""
        return self._link.is_up

    @property
    def is_invalid(self) -> bool:
        """Whether the config in Redis is ignored."""
        return self._ignored is not None

    @property
    def announced(self) -> Mapping[str, int]:
        """See ``ConfigStore.announced``."""
        return self._announced

    async def announce(self, models: Mapping[str, int]) -> None:
        """See ``ConfigStore.announce``."""
        self._others.expect(models)
        self._others.hear_of(await self._say(Notice(self._name, models)) - 1)

    async def tell_prepared(self, models: Mapping[str, int], why_not: str | None = None) -> None:
        """See ``ConfigStore.tell_prepared``."""
        await self._say(Notice(self._name, models, is_prepared=True, why_not=why_not))

    async def others_prepared(self) -> list[str]:
        """See ``ConfigStore.others_prepared``."""
        return await self._others.wait_prepared()

    async def tell_serving(self, version: int) -> None:
        """See ``ConfigStore.tell_serving``."""
        await self._say(Notice(self._name, {}, is_prepared=True, serving=version))  # earlier releases read no models

    async def others_serving(self, version: int) -> None:
        """See ``ConfigStore.others_serving``. Replicas of earlier releases never report."""
        await self._others.wait_serving(version)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """See ``ConfigStore.turn``. A replica that dies loses its turn after ``TURN_SECONDS``."""
        async with self._own_turn:
            turn = self._link.client.lock(f"{self._link.prefix}turn", timeout=TURN_SECONDS, thread_local=False)
            keeping = asyncio.create_task(self._keep(turn)) if await self._take(turn) else None
            try:
                yield
            finally:
                if keeping is not None:
                    keeping.cancel()
                    with suppress(StoreUnavailable):  # then it expires, or another replica already has it
                        await self._link.run(turn.release())

    async def _take(self, turn: Lock) -> bool:
        """Wait for ``turn``; False if Redis cannot be reached or accepts no writes: then no change is possible."""
        with suppress(StoreUnavailable):
            while not await self._link.run(turn.acquire(blocking=False)):
                await asyncio.sleep(TURN_LOOK_SECONDS)
            return True
        return False

    async def _keep(self, turn: Lock) -> None:
        while True:
            await asyncio.sleep(TURN_SECONDS / 4)
            with suppress(StoreUnavailable):
                await self._link.run(turn.reacquire())

    async def _say(self, notice: Notice) -> int:
        """Number of listeners, including this one."""
        with suppress(StoreUnavailable):
            return await self._link.run(self._link.client.publish(self._key, encode_notice(notice)))
        return 0

    async def start(self) -> None:
        """Take over the config in Redis, then follow it; if Redis does not answer, as soon as it does."""
        await self._refresh()
        self._tasks = [asyncio.create_task(self._poll()), asyncio.create_task(self._listen())]

    async def close(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()

    async def update(self, change: Change, expected_version: int | None = None) -> RuntimeConfig:
        """See ``ConfigStore.update``. If another change came between, the change is repeated on top of it.

        Raises:
            ConfigConflict: the version is not ``expected_version``, or others kept changing the config.
            StoreUnavailable: Redis did not answer (it may still have applied the change), or holds the config of a
                newer release.
        """
        async with self._lock:
            for _ in range(ATTEMPTS):
                raw = await self._agree()
                if self._current.version >= MAX_VERSION:
                    raise StoreUnavailable(f"the shared config has version {MAX_VERSION}, the last there is")
                if self._ignored is not None and self._ignored.is_newer:
                    raise StoreUnavailable(
                        f"a newer release wrote the shared config, and only that can change it: {self._ignored}"
                    )
                before = self._current
                check_expected_version(before, expected_version)
                after = replace(change(before), version=before.version + 1)
                if await self._swap(raw, after):
                    self._ignored = None
                    self._apply(after)
                    return self._current
        raise ConfigConflict(f"the config was changed by others {ATTEMPTS} times during this change")

    async def _poll(self) -> None:
        """Refresh regularly, and at once after a notification."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._news.wait()
            self._news.clear()
            await self._refresh()

    async def _listen(self) -> None:
        """Receive announcements. They only save time: the poll finds every change without them.

        An empty one announces a change; others announce models that will be requested.
        """
        while True:
            with suppress(Exception):  # whatever ended it, the poll finds out whether Redis is up
                async with asyncio.timeout(SUBSCRIPTION_SECONDS), self._link.client.pubsub() as channel:
                    await channel.subscribe(self._key)
                    async for message in channel.listen():
                        self._hear(message["data"])
            await asyncio.sleep(POLL_SECONDS)

    def _hear(self, raw: Any) -> None:
        notice = decode_notice(raw) if isinstance(raw, bytes) and raw else None
        if notice is None:
            self._news.set()
        elif notice.sender == self._name:
            pass
        elif notice.serving is not None:
            self._others.serving(notice.serving, notice.sender)
        elif notice.is_prepared:
            self._others.prepared(notice.models, notice.sender, notice.why_not)
        else:
            self._announced = notice.models

    async def _refresh(self) -> None:
        try:
            async with self._lock:
                await self._agree()
        except StoreUnavailable as error:
            self._link.went_down(error.__cause__ or error)
        except Exception as error:  # the poller must not die
            if self._link.is_up:
                logger.exception("the shared state could not be read")
            self._link.went_down(error)
        else:
            self._link.came_up()

    async def _agree(self) -> bytes:
        """Make the config here and in Redis equal, using the newer one; returns its bytes there, none without a config.

        If the config there is ignored, it stays there, and the config here stays as it was.
        """
        for _ in range(ATTEMPTS):
            raw = await self._link.run(as_bytes(self._link.client.get(self._key)))
            stored = self._understand(raw)
            if raw and stored is None:
                return raw
            agreed = self._newer(stored)
            if agreed is stored:
                self._apply(agreed)
                return raw
            if await self._swap(raw, agreed):
                self._apply(agreed)
                return encode_config(agreed)
        raise StoreUnavailable(f"the shared config changed {ATTEMPTS} times during the read")

    def _understand(self, raw: bytes) -> RuntimeConfig | None:
        """Decode ``raw``; None if it is empty or ignored, which is logged once for each."""
        try:
            stored = decode_config(raw) if raw else None
        except Unreadable as ignored:
            if self._ignored is None or self._ignored.raw != raw:
                logger.error("%s in Redis is ignored, version %d stays: %s", self._key, self._current.version, ignored)
            self._ignored = ignored
            return None
        self._ignored = None
        return stored

    def _newer(self, stored: RuntimeConfig | None) -> RuntimeConfig:
        """The newer of the current and the stored config. Before joining, the stored one."""
        if stored is None or (self._has_joined and stored.version < self._current.version):
            return self._current
        return stored

    async def _swap(self, raw: bytes, config: RuntimeConfig) -> bool:
        """Replace ``raw`` by ``config``; False if the stored bytes have changed."""
        swapped = self._swap_script(keys=[self._key], args=[raw, encode_config(config), self._key])
        return bool(await self._link.run(cast(Awaitable[int], swapped)))

    def _apply(self, config: RuntimeConfig) -> None:
        if config.version != self._current.version:
            logger.info("the shared config has version %d", config.version)
        self._current = config
        self._has_joined = True

"""Metrics addresses of all replicas: each lists itself every few seconds."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from service.errors import StoreUnavailable
from service.state.base import Target
from service.state.redis.link import RedisLink

# Interval at which a replica lists its metrics, and time after which it is removed.
LISTED_EVERY_SECONDS = 5.0
LISTED_FOR_SECONDS = 15

# KEYS: the targets, each with the second of Redis' clock at which it is forgotten. ARGV: for how many seconds; which.
LIST = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), ARGV[2])
"""

# KEYS: the targets. Which are listed, the newest last.
LISTED = """
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. redis.call('TIME')[1], '+inf')
"""


class RedisTargets:
    """Metrics addresses of all replicas: each lists itself every few seconds. ``close`` it before its link."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._key = f"{link.prefix}targets"
        self._list = link.client.register_script(LIST)
        self._listed = link.client.register_script(LISTED)
        self._own = ""
        self._listing: asyncio.Task[None] | None = None

    async def start(self, own: Target) -> None:
        """See ``Targets.start``. It is not listed while Redis does not answer, and again afterwards."""
        self._own = f"{own.address} {own.replica}"
        await self._list_own()
        self._listing = asyncio.create_task(self._keep_listed())

    async def close(self) -> None:
        """See ``Targets.close``."""
        if self._listing is None:
            return
        self._listing.cancel()
        await asyncio.gather(self._listing, return_exceptions=True)
        with suppress(StoreUnavailable):
            await self._link.run(self._link.client.zrem(self._key, self._own))

    async def listed(self) -> list[Target]:
        """See ``Targets.listed``."""
        found: list[bytes] = await self._link.run(self._listed(keys=[self._key]))
        newest = dict(each.decode().split(" ", 1) for each in found)  # who died at an address leaves it to the next
        return [Target(address, name) for address, name in sorted(newest.items())]

    async def _keep_listed(self) -> None:
        while True:
            await asyncio.sleep(LISTED_EVERY_SECONDS)
            await self._list_own()

    async def _list_own(self) -> None:
        with suppress(StoreUnavailable):
            await self._link.run(self._list(keys=[self._key], args=[LISTED_FOR_SECONDS, self._own]))

"""Connections to one Redis, and whether it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import redis.asyncio as aio
from redis import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry as BlockingRetry

from service.errors import InvalidOption, StoreUnavailable
from service.log import logger

T = TypeVar("T")

URL = "LOWFIRST_REDIS_URL"
URL_FORMS = "redis://[[user]:password@]host[:port][/db], the same with rediss:// (TLS), or unix:///path/to/socket"

# How long Redis may take to answer where a request waits for it; and to a poll or a change, which a busy moment of this
# process must not fail; and at the start.
CACHE_SECONDS = 0.15
CONFIG_SECONDS = 1.0
CHECK_SECONDS = 2.0

CONNECTIONS = 16


class RedisLink:
    """Connections to one Redis, and whether it answers; shared by the config store and the cache.

    Args:
        url: see ``URL_FORMS``. It may contain a password, and is never shown.
        prefix: of every key and channel.

    Attributes:
        is_up: whether it answered the config store's last poll.
        is_passed_by: whether a command has failed since. The cache then ignores Redis until the next successful poll,
            so that a hanging Redis delays only a request now and then.
        address: of the URL, for messages.

    Raises:
        InvalidOption: ``url`` is invalid.
    """

    def __init__(self, url: str, prefix: str = "lowfirst:") -> None:
        self.is_up = True
        self.is_passed_by = False
        self.prefix = prefix
        self._url = url
        try:
            pool = aio.BlockingConnectionPool.from_url(
                url, max_connections=CONNECTIONS, timeout=None, socket_timeout=None, retry=Retry(NoBackoff(), 0)
            )
            pool.make_connection()  # type: ignore[no-untyped-call]  # connects nowhere, but knows its options
        except (ValueError, TypeError, AttributeError):
            raise InvalidOption(URL, "(not shown)", URL_FORMS) from None  # the cause may show a password
        self.client = aio.Redis.from_pool(pool)
        where = pool.connection_kwargs
        self.address = str(where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}")

    def check(self) -> None:
        """Wait until Redis answers, in this thread, before there is an event loop.

        Raises:
            StoreUnavailable: it does not answer.
        """
        try:
            with Redis.from_url(
                self._url,
                socket_timeout=CHECK_SECONDS,
                socket_connect_timeout=CHECK_SECONDS,
                retry=BlockingRetry(NoBackoff(), 0),
            ) as client:
                client.ping()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(
                f"{URL}: {self.address} does not answer ({_reason(error)}); "
                "LOWFIRST_REDIS_OPTIONAL=true starts without it",
                field=URL,
                value=self.address,
            ) from error

    async def run(self, command: Awaitable[T]) -> T:
        """The response of Redis, to a poll or a change.

        Raises:
            StoreUnavailable: it did not answer in time, or refused.
        """
        return await self._within(CONFIG_SECONDS, command)

    async def run_for_request(self, command: Awaitable[T]) -> T:
        """The same where a request waits for it, so it takes less time. Raises as ``run``."""
        return await self._within(CACHE_SECONDS, command)

    async def _within(self, seconds: float, command: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await command
        except Exception as error:  # besides the client's own: a transport that closes under it raises RuntimeError
            if not isinstance(error, ResponseError):
                self.is_passed_by = True
            raise StoreUnavailable(f"the shared state at {self.address}: {_reason(error)}") from error

    def went_down(self, error: BaseException) -> None:
        """Record that a poll failed; logged once."""
        if self.is_up:
            logger.warning("Redis at %s cannot be reached (%s): continuing without it", self.address, _reason(error))
        self.is_up = False
        self.is_passed_by = True

    def came_up(self) -> None:
        """Record that a poll succeeded."""
        if not self.is_up:
            logger.info("Redis at %s answers again", self.address)
        self.is_up = True
        self.is_passed_by = False

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()


async def as_bytes(got: Awaitable[Any]) -> bytes:
    """The response of a GET; None without such a key."""
    return cast(bytes, await got or b"")


def _reason(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__

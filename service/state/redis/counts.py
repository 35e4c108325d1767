"""The counts of a trial from each process of each replica: one hash in Redis, with one field per process.

A process writes its counts and reads all others in the same round trip, so the last one to write has the complete
counts. When a process ends, its counts remain, because its images were compared.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from service.errors import StoreUnavailable
from service.state.redis.link import RedisLink

Counts = Mapping[str, Any]
Exchange = Callable[[float, Counts | None], Awaitable[Sequence[Counts]]]

# Counts of a trial are kept for so long after the last one.
KEPT_SECONDS = 7 * 24 * 3600

# KEYS: the trial. ARGV: this process' field, its counts ("" for none), for how many seconds all are kept. All fields.
EXCHANGE = """
if ARGV[2] ~= '' then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return redis.call('HGETALL', KEYS[1])
"""


class RedisCounts:
    """Exchanges counts with every process that shares the Redis.

    Args:
        otherwise: exchanges counts while Redis does not answer.
    """

    def __init__(self, link: RedisLink, otherwise: Exchange) -> None:
        self._link = link
        self._otherwise = otherwise
        self._name = secrets.token_hex(8)
        self._script = link.client.register_script(EXCHANGE)

    async def exchange(self, began: float, own: Counts | None) -> Sequence[Counts]:
        """The counts of the other processes for the trial that started at ``began``; ``own`` are this process's, if
        any.
        """
        if self._link.is_passed_by:
            return await self._otherwise(began, own)
        counts = "" if own is None else json.dumps(own)
        told = self._script(keys=[f"{self._link.prefix}trial:{began!r}"], args=[self._name, counts, KEPT_SECONDS])
        try:
            flat: list[bytes] = await self._link.run(told)
        except StoreUnavailable:
            return await self._otherwise(began, own)
        fields = zip(flat[::2], flat[1::2], strict=True)
        return [json.loads(counts) for name, counts in fields if name.decode() != self._name]

"""Results of all replicas."""

from __future__ import annotations

from contextlib import suppress

from service.errors import StoreUnavailable
from service.state.base import CachedOutputs
from service.state.encoding import decode_outputs, encode_outputs
from service.state.redis.link import RedisLink, as_bytes

# In the keys of cached outputs: those that other releases encode otherwise are others.
CACHE_FORMAT = 1

# KEYS: the entry. ARGV: its new bytes, for how many seconds. The first byte of an entry says how many stages ran.
KEEP = """
local kept = redis.pcall('GETRANGE', KEYS[1], 0, 0)
if type(kept) == 'string' and kept > string.sub(ARGV[1], 1, 1) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


class RedisResultCache:
    """Results of all replicas, each kept for ``ttl_seconds``. While Redis is ignored, there are none."""

    def __init__(self, link: RedisLink, ttl_seconds: int) -> None:
        self._link = link
        self._ttl_seconds = ttl_seconds
        self._keep = link.client.register_script(KEEP)

    async def get(self, key: str) -> CachedOutputs | None:
        """See ``ResultCache.get``."""
        if self._link.is_passed_by:
            return None
        with suppress(StoreUnavailable):
            raw = await self._link.run_for_request(as_bytes(self._link.client.get(self._name(key))))
            return decode_outputs(raw) if raw else None
        return None

    async def put(self, key: str, known: CachedOutputs) -> None:
        """See ``ResultCache.put``."""
        if self._link.is_passed_by:
            return
        kept = self._keep(keys=[self._name(key)], args=[encode_outputs(known), self._ttl_seconds])
        with suppress(StoreUnavailable):
            await self._link.run_for_request(kept)

    def _name(self, key: str) -> str:
        return f"{self._link.prefix}cache:{CACHE_FORMAT}:{key}"

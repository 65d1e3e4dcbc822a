"""Sessions in Redis: several workers and hosts serve the same ones, and a restart of the server loses none.

A session is one hash: ``steps`` and ``record`` (``Session.to_bytes``), which expires when idle. A second key outlives
it and tells an expired session from one that never was. Writes go through one script, which Redis runs atomically.
"""

from __future__ import annotations

import time
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from server.sessions import Session, SessionNotFound

PREFIX = "inferencegym:"
REMEMBERED_S = 24 * 3600  # how long after its expiry a session is still called expired rather than unknown

# KEYS: session, memory; ARGV: expected steps, steps, record, idle ms, memory ms. 1: stored, 0: other steps, -1: gone
REPLACE = """
local steps = redis.call('HGET', KEYS[1], 'steps')
if not steps then return -1 end
if steps ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'steps', ARGV[2], 'record', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 1
"""
# Reading counts as a use: KEYS: session, memory; ARGV: idle ms, memory ms. The record, or false
READ = """
local record = redis.call('HGET', KEYS[1], 'record')
if record then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return record
"""


class RedisStore:
    """Sessions in Redis. Memory is Redis' own matter: with ``maxmemory`` and ``volatile-lru`` it evicts like the
    embedded store. An evicted session is called expired, or "unknown or expired" where Redis evicted its memory too."""

    def __init__(self, url: str, idle_s: float):
        retry = Retry(ExponentialBackoff(cap=0.2, base=0.02), 3)
        self._redis = Redis.from_url(url, retry=retry, socket_timeout=5, socket_connect_timeout=5)
        self._idle = max(1, round(1000 * idle_s))
        self._memory = self._idle + 1000 * REMEMBERED_S
        self._count, self._counted_until = 0, 0.0
        self._replace = self._redis.register_script(REPLACE)
        self._read = self._redis.register_script(READ)

    def _keys(self, session_id: str) -> list[str]:
        # braces: both keys of a session lie in one slot of a cluster
        return [f"{PREFIX}session:{{{session_id}}}", f"{PREFIX}known:{{{session_id}}}"]

    async def create(self, session: Session) -> None:
        """Add a new session."""
        key, memory = self._keys(session.id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping={"steps": session.steps, "record": session.to_bytes()})
            pipe.pexpire(key, self._idle)
            pipe.set(memory, 1, px=self._memory)
            await pipe.execute()

    async def get(self, session_id: str) -> Session:
        """The session; counts as a use."""
        record = await self._read(keys=self._keys(session_id), args=[self._idle, self._memory])
        if record is None:
            raise await self._missing(session_id)
        try:
            return Session.from_bytes(cast(bytes, record))
        except (ValueError, TypeError) as error:  # written by another version of this server
            raise SessionNotFound(session_id, expired=True) from error

    async def replace(self, session: Session, expected_steps: int) -> bool:
        """Compare-and-set on the step count, in one script."""
        args: list[Any] = [expected_steps, session.steps, session.to_bytes(), self._idle, self._memory]
        result = await self._replace(keys=self._keys(session.id), args=args)
        if result == -1:
            raise await self._missing(session.id)
        return result == 1

    async def count(self) -> int:
        """Sessions of all workers, by a scan of the keys; at most one scan a second."""
        if time.monotonic() >= self._counted_until:
            count = 0
            async for _ in self._redis.scan_iter(match=f"{PREFIX}session:*", count=1000):
                count += 1
            self._count, self._counted_until = count, time.monotonic() + 1.0
        return self._count

    async def ping(self) -> None:
        """Raise ``redis.RedisError`` if Redis cannot be reached."""
        await cast(Any, self._redis.ping())

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _missing(self, session_id: str) -> SessionNotFound:
        known = await self._redis.exists(self._keys(session_id)[1])
        return SessionNotFound(session_id, expired=True if known else None)  # Redis may have evicted the memory too

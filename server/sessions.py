"""Sessions: one episode of one HTTP client each, behind one small interface with two stores.

A session is the environment's small state and what is needed to grade it: no compiled code, no locks.
``EmbeddedStore`` keeps them in process; ``redis_store.RedisStore`` shares them between workers and hosts.
"""

from __future__ import annotations

import base64
import dataclasses
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

RECORD_VERSION = 1
EXPIRED_KEPT = 100_000  # ids of expired sessions that are remembered, to say "expired" rather than "unknown"
LEAST_ROOM = 100_000_000  # bytes that sessions in process may hold together, whatever SESSION_CAPACITY says
ROOM_EACH = 10_000  # bytes a session of SESSION_CAPACITY, where that is more
OBJECTS = 2000  # bytes of a session beside what it holds as bytes


class SessionNotFound(LookupError):
    """No such session: it never was (``expired`` False), it expired or was evicted (True), or either (None)."""

    def __init__(self, session_id: str, expired: bool | None = False):
        self.expired = expired
        gone = "idle too long, or evicted for newer ones; POST /reset starts another"
        text = {
            True: f"session {session_id!r} expired: {gone}",
            False: f"session {session_id!r} is unknown; POST /reset starts one",
            None: f"session {session_id!r} is unknown or expired: it never was, or was {gone}",
        }[expired]
        super().__init__(text)


@dataclass(frozen=True)
class Session:
    """One episode. Immutable: a step makes the next session, and the store swaps them atomically."""

    id: str
    task: int
    seed: int
    config: dict[str, float]
    state: bytes  # the packed EnvState
    episode_id: str
    steps: int = 0
    total_reward: float = 0.0
    done: bool = False
    phase: int = 0  # models.Phase of the last step
    actions: bytes = b""  # 20 bytes a step, see SingleStep.pack_action
    step_id: str | None = None  # of the last step
    response: bytes = field(default=b"", repr=False)  # the last step's response body, for a retry with the same step_id

    @property
    def size(self) -> int:
        """Bytes that it takes in process, about."""
        return OBJECTS + len(self.state) + len(self.actions) + len(self.response)

    def to_bytes(self) -> bytes:
        """The session as versioned JSON."""
        record = dataclasses.asdict(self)
        for name in ("state", "actions", "response"):
            record[name] = base64.b64encode(record[name]).decode()
        return orjson.dumps({"version": RECORD_VERSION, **record})

    @classmethod
    def from_bytes(cls, data: bytes) -> Session:
        """The session of ``to_bytes``.

        Raises:
            ValueError: the record is of another version.
        """
        record: dict[str, Any] = orjson.loads(data)
        version = record.pop("version", None)
        if version != RECORD_VERSION:
            raise ValueError(f"session record version {version!r}: this server reads version {RECORD_VERSION}")
        for name in ("state", "actions", "response"):
            record[name] = base64.b64decode(record[name])
        return cls(**record)


def new_id() -> str:
    """An unguessable session id of 32 hexadecimal digits."""
    return secrets.token_hex(16)


class SessionStore(Protocol):
    """Where sessions live. All methods are safe to call concurrently."""

    async def create(self, session: Session) -> None:
        """Add a new session."""
        ...

    async def get(self, session_id: str) -> Session:
        """The session as last stored; raises ``SessionNotFound``."""
        ...

    async def replace(self, session: Session, expected_steps: int) -> bool:
        """Store a session if the one there still stands at ``expected_steps``; false, and no change, otherwise.

        Raises:
            SessionNotFound: it is gone.
        """
        ...

    async def count(self) -> int:
        """Sessions that are not expired."""
        ...

    async def ping(self) -> None:
        """Raise if the store cannot be reached."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class EmbeddedStore:
    """Sessions in this process: least recently used first out above capacity, or above the memory of so many episodes
    of the usual length (``room``, bytes); idle ones expire."""

    def __init__(
        self,
        capacity: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
        room: int | None = None,
    ):
        self.capacity, self.idle_s, self._clock = capacity, idle_s, clock
        self.room = max(LEAST_ROOM, ROOM_EACH * capacity) if room is None else room
        self._held = 0  # bytes
        self._sessions: OrderedDict[str, tuple[Session, float]] = OrderedDict()  # oldest use first
        self._expired: OrderedDict[str, None] = OrderedDict()

    async def create(self, session: Session) -> None:
        """Add a new session; evicts the least recently used one when full."""
        self._sweep()
        while len(self._sessions) >= self.capacity:
            self._bury(next(iter(self._sessions)))
        self._keep(session)

    async def get(self, session_id: str) -> Session:
        """The session; counts as a use."""
        self._sweep()
        entry = self._sessions.get(session_id)
        if entry is None:
            raise SessionNotFound(session_id, session_id in self._expired)
        self._sessions[session_id] = (entry[0], self._clock())
        self._sessions.move_to_end(session_id)
        return entry[0]

    async def replace(self, session: Session, expected_steps: int) -> bool:
        """Compare-and-set on the step count. No await between: the event loop makes it atomic."""
        current = await self.get(session.id)
        if current.steps != expected_steps:
            return False
        self._held -= current.size
        self._keep(session)
        return True

    async def count(self) -> int:
        """Live sessions."""
        self._sweep()
        return len(self._sessions)

    async def ping(self) -> None:
        """Always there."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def _sweep(self) -> None:
        limit = self._clock() - self.idle_s
        while self._sessions:
            oldest, (_, used) = next(iter(self._sessions.items()))
            if used > limit:
                return
            self._bury(oldest)

    def _keep(self, session: Session) -> None:
        self._sessions[session.id] = (session, self._clock())
        self._held += session.size
        while self._held > self.room and len(self._sessions) > 1:
            self._bury(next(iter(self._sessions)))

    def _bury(self, session_id: str) -> None:
        self._held -= self._sessions.pop(session_id)[0].size
        self._expired[session_id] = None
        if len(self._expired) > EXPIRED_KEPT:
            self._expired.popitem(last=False)

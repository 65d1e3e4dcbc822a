"""Who is let into an engine, and who waits: one rule for the live environment, the proxy and the replay.

A request enters as in the open-loop physics: while fewer than ``limit`` (batch_size) are inside, and while the tokens
in the engine's KV cache and its prompt are at most the share ``kv_budget`` of the pool. The most urgent class goes
first, nobody overtakes a head that does not fit, and an empty engine takes any. A full line turns away the youngest of
its laxest class. Conservation: entered = inside + waiting + left + rejected + given up, to the request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from inferencegym_jax.models import KNOBS, QUEUE_CAPACITY

CLASSES = ("interactive", "batch", "best_effort")
Item = TypeVar("Item")


@dataclass(frozen=True)
class CacheReading:
    """What the engine last said of its KV cache.

    Attributes:
        share: of the pool in use, with the prompts that may not have reached the engine yet.
        pool_tokens: size of the pool; None where the engine does not say.
        held: tokens of the requests inside at that moment.
    """

    share: float
    pool_tokens: float | None
    held: float


class AdmissionLine(Generic[Item]):
    """The line in front of an engine; limits may change at any time.

    A limit of None and a kv_budget of 1 are plain pass-through. The share of the cache in use is the engine's last
    reading, with the prompts that had not reached it then, plus what is known to have changed since: prompts that were
    let in, tokens that they got, requests that left. Where the engine tells no share, kv_budget limits nothing
    (``sees_cache``).

    A subclass says what becomes of an item: ``_let_in``, ``_turn_away``, and ``_is_alive`` where items may go by
    themselves.
    """

    def __init__(self, limit: int | None = None, capacity: int = QUEUE_CAPACITY):
        if capacity < 0:
            raise ValueError(f"capacity = {capacity}: must be at least 0")
        self._limit, self._kv_budget = limit, 1.0
        self.capacity = capacity
        self.inside = 0
        self.held = 0.0  # tokens of the requests inside: their prompts, and what they got
        self._unstarted = 0  # requests inside that have no first token yet
        self._unseen = 0.0  # tokens of their prompts
        self.reading: CacheReading | None = None
        self.entered = self.left = self.rejected = self.given_up = self.admitted = 0
        self._queues: tuple[deque[tuple[Item, float]], ...] = tuple(deque() for _ in CLASSES)

    def _let_in(self, item: Item) -> None:
        """It is inside from now on."""
        raise NotImplementedError

    def _turn_away(self, item: Item) -> None:
        """It is rejected."""
        raise NotImplementedError

    def _is_alive(self, item: Item) -> bool:
        """Whether one that waits still wants to enter; one that does not takes itself out by ``withdraw``."""
        del item
        return True

    @property
    def limit(self) -> int | None:
        """Most requests inside at once."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit = {limit}: must be at least 1, or None for no limit")
        self._limit = limit
        self._admit()

    @property
    def kv_budget(self) -> float:
        """Share of the KV pool up to which new requests are admitted; 1: the engine's own admission decides."""
        return self._kv_budget

    @kv_budget.setter
    def kv_budget(self, share: float) -> None:
        knob = KNOBS["kv_budget"]
        if not knob.low <= share <= knob.high:
            raise ValueError(f"kv_budget = {share}: must be from {knob.low:g} to {knob.high:g}")
        self._kv_budget = share
        self._admit()

    @property
    def sees_cache(self) -> bool:
        """Whether the engine tells the share of its KV cache in use, without which kv_budget limits nothing."""
        return self.reading is not None

    def read_cache(self, share: float | None, pool_tokens: float | None = None, running: float | None = None) -> None:
        """Note what the engine says of its KV cache, and admit who fits now.

        Args:
            share: of the pool in use; None leaves the last reading.
            pool_tokens: size of the pool, tokens; None or 0 where the engine does not say: then the share counts as it
                was read until the next reading.
            running: requests that run there. Those inside beyond them are on their way, and not on the gauge yet; None
                where the engine does not say: then that is everybody without a first token.
        """
        if share is not None:
            missing = self._unstarted if running is None else self.inside - running
            unseen = self._unseen * min(max(missing, 0.0) / max(self._unstarted, 1), 1.0)
            on_the_way = unseen / pool_tokens if pool_tokens else 0.0
            self.reading = CacheReading(share + on_the_way, pool_tokens or None, self.held)
            self._admit()

    def cache_use(self, prompt: float = 0.0) -> float | None:
        """Share of the KV pool in use, with ``prompt`` more tokens; None where the engine does not say."""
        if self.reading is None:
            return None
        if self.reading.pool_tokens is None:
            return self.reading.share
        return self.reading.share + (self.held - self.reading.held + prompt) / self.reading.pool_tokens

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return sum(map(len, self._queues))

    @property
    def waiting_by_class(self) -> list[int]:
        """Requests in the line: interactive, batch, best effort."""
        return [len(queue) for queue in self._queues]

    def arrive(self, item: Item, klass: int, prompt: float) -> None:
        """Let it in, put it in the line, or turn away it or the youngest of the laxest class below its own.

        Args:
            item: the request.
            klass: 0 interactive, 1 batch, 2 best effort.
            prompt: its tokens.
        """
        self.entered += 1
        if self.waiting == 0 and self._has_room(prompt):
            self._take(item, prompt)
        elif self.waiting >= self.capacity and not self._make_room(klass):
            self.rejected += 1
            self._turn_away(item)
        else:
            self._queues[klass].append((item, prompt))

    def withdraw(self, item: Item, klass: int) -> None:
        """One that waited does not want to enter any more."""
        self.given_up += 1
        queue = self._queues[klass]
        for i, (other, _) in enumerate(queue):
            if other is item:
                del queue[i]
                break
        self._admit()  # it may have been the head that did not fit

    def grow(self, tokens: float) -> None:
        """Requests inside got ``tokens`` more, which their caches hold."""
        self.held += tokens

    def start(self, prompt: float) -> None:
        """A request inside has its first token, or will show none: its prompt is on the engine's gauge from now on."""
        self._unstarted -= 1
        self._unseen -= prompt

    def leave(self, tokens: float = 0.0, unseen: float | None = None) -> None:
        """A request that was let in is done.

        Args:
            tokens: its prompt and what ``grow`` was told of it.
            unseen: its prompt once more, if it never started.
        """
        if unseen is not None:
            self.start(unseen)
        self.inside -= 1
        self.left += 1
        self.held -= tokens
        if not self.inside:  # what rounding leaves of nobody
            self.held, self._unseen, self._unstarted = 0.0, 0.0, 0
        self._admit()

    def _make_room(self, klass: int) -> bool:
        for queue in reversed(self._queues[klass + 1 :]):
            while queue:
                item, _ = queue.pop()
                if self._is_alive(item):
                    self.rejected += 1
                    self._turn_away(item)
                if self.waiting < self.capacity:
                    return True
        return False

    def _has_room(self, prompt: float) -> bool:
        if self._limit is not None and self.inside >= self._limit:
            return False
        if self._kv_budget >= 1.0 or self.inside == 0:
            return True
        used = self.cache_use(prompt)
        return used is None or used <= self._kv_budget

    def _take(self, item: Item, prompt: float) -> None:
        self.inside += 1
        self.held += prompt
        self._unstarted += 1
        self._unseen += prompt
        self.admitted += 1
        self._let_in(item)

    def _admit(self) -> None:
        for queue in self._queues:
            while queue:
                item, prompt = queue[0]
                if not self._is_alive(item):
                    queue.popleft()
                    continue
                if not self._has_room(prompt):
                    return
                queue.popleft()
                self._take(item, prompt)

"""One GPU of the reference: continuous batching, request by request and iteration by iteration, in plain Python.

``submit`` puts a request in its line, ``begin`` schedules what runs next and says in ``event`` when that ends, ``end``
carries it out. A schedule is made in this order: decoding requests (a token each, k more with drafts), prompts that are
already in, then new requests while slot, watermark and token budget allow. Times are ms, lengths tokens.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from tests.reference.iteration import Batch, IterationTimes, pool_tokens, tokens_accepted
from tests.reference.settings import Settings


class Request:
    """One request and what became of it; of `target` tokens the keys and values of `computed` are held."""

    __slots__ = (
        "index", "arrival", "prompt", "output", "priority", "kind", "generated", "target", "computed", "first_token",
        "finish", "preemptions", "rejected", "gpu",
    )  # fmt: skip

    def __init__(self, index: int, arrival: float, prompt: int, output: int, priority: int = 0, kind: str = "chat"):
        self.index, self.arrival, self.prompt, self.output = index, arrival, prompt, output
        self.priority, self.kind = priority, kind
        self.generated, self.target, self.computed, self.preemptions = 0, prompt, 0, 0
        self.first_token = self.finish = math.nan
        self.rejected, self.gpu = False, 0


class PrefillQueue:
    """What an engine sees of a GPU that computes prompts for it: a queue."""

    def put(self, request: Request) -> None:
        """A prompt to compute; slot and room are taken at the engine that asks."""
        raise NotImplementedError

    def drop(self, request: Request) -> None:
        """The request was preempted: forget it."""
        raise NotImplementedError


class Engine:
    """A GPU that prefills and decodes.

    Args:
        profile: the JSON of an engine profile.
        settings: as they stand at the start.
        number: 0 or 1, which GPU this is.
    """

    def __init__(self, profile: dict[str, Any], settings: Settings, number: int = 0):
        self.profile, self.number = profile, number
        self.lines: tuple[deque[Request], ...] = (deque(), deque(), deque())
        self.prefilling: list[Request] = []  # in order of entry
        self.away: list[Request] = []  # slot and room are taken here, the prompt is computed on another GPU
        self.ready: deque[tuple[float, Request]] = deque()  # computed there, and when they can decode here
        self.remote: PrefillQueue | None = None  # that GPU, while new requests go through it
        self.decoding: list[Request] = []  # in order of entry
        self.left = np.zeros(0, np.int64)  # output tokens that each decoding request still has to make
        self.log_accepted = np.zeros(0)  # log of each decoding request's probability that a draft is accepted
        self.context = 0  # tokens of the decoding requests, the newest of each included
        self.reserved = 0  # tokens of the requests whose prompt is being computed, here or away
        self.surfacing: list[tuple[Request, bool]] = []  # sampled in the last iteration: (whose, whether its last)
        self.event = math.inf  # when the iteration or the restart under way ends, or the next of `ready` is there
        self.phase = "idle"  # "iteration" or "restart"
        self.switched: Settings | None = None  # settings whose weights are to be loaded
        self.started, self.scheduled, self.drafts = 0.0, 0, 0  # of the iteration under way; `scheduled` decode
        self.chunks: list[tuple[Request, int, int]] = []  # (request, first, end) of its prompt chunks
        self.log: list[tuple[float, float, int, int, int, int]] = []  # serving.ITERATION_FIELDS
        self.preempted = 0
        self.random = np.random.default_rng([settings.seed, number])
        self.load_weights(settings)

    def load_weights(self, settings: Settings) -> None:
        """Times and pool of the settings' weight format."""
        self.settings = settings
        self.times = IterationTimes(self.profile, settings.quant_tier)
        self.pool = pool_tokens(self.profile, settings.quant_tier, settings.memory_gb)
        self.budget = settings.token_budget or int(self.profile["tokens_per_iteration"])

    def change(self, settings: Settings) -> None:
        """Other settings: at once, but for weights, which are loaded after the iteration under way."""
        if settings.quant_tier != self.settings.quant_tier:
            self.switched = settings
        else:
            self.settings, self.switched = settings, None
            self.log_accepted = np.array([self.acceptance(request.kind) for request in self.decoding])

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self.decoding) + len(self.prefilling) + len(self.away)

    @property
    def waiting(self) -> int:
        """Requests in the three lines."""
        return sum(map(len, self.lines))

    @property
    def held(self) -> int:
        """Tokens of the pool that are taken."""
        return self.context + self.reserved

    def submit(self, request: Request) -> None:
        """Put a request at the end of its class's line; reject it if the lines are full or the pool is too small."""
        capacity = self.settings.queue_capacity
        full = capacity is not None and self.waiting >= capacity
        request.rejected = full or request.prompt + request.output > self.pool
        request.gpu = self.number
        if not request.rejected:
            self.lines[request.priority].append(request)

    def begin(self, now: float) -> None:
        """Schedule what runs from now on."""
        if self.switched is not None:
            self.restart(now)
            return
        while self.ready and self.ready[0][0] <= now:
            request = self.ready.popleft()[1]
            self.away.remove(request)
            self.sampled(request)
        k = self.drafts = self.settings.spec_length
        preempted = self.preempted
        while self.held + k * len(self.decoding) > self.pool and self.running > 1:
            self.preempt()
        self.scheduled = min(len(self.decoding), self.budget // (k + 1))
        budget = self.budget - self.scheduled * (k + 1)
        self.chunks = []
        for request in self.prefilling:
            budget -= self.take_chunk(request, budget)
        if self.preempted == preempted:
            self.admit(budget)
        if not self.scheduled and not self.chunks:
            self.idle(now)
            return
        context = self.context
        for request, left in zip(self.decoding[self.scheduled :], self.left[self.scheduled :].tolist(), strict=True):
            context -= request.prompt + request.output - left
        chunks = [(first, end) for _, first, end in self.chunks]
        complete = sum(end == request.target for request, _, end in self.chunks)
        self.phase, self.started = "iteration", now
        self.event = now + self.times.iteration(Batch(self.scheduled, context, chunks, complete, k))

    def idle(self, now: float) -> None:
        """Nothing to run. What was sampled last surfaces after the iteration that its requests would have had next."""
        self.phase, self.event = "idle", self.ready[0][0] if self.ready else math.inf
        if self.surfacing:
            context = sum(request.prompt + request.generated for request, _ in self.surfacing)
            self.surface(now + self.times.iteration(Batch(len(self.surfacing), context)))

    def restart(self, now: float) -> None:
        """All running requests are preempted and other weights are loaded: no service for restart_s."""
        assert self.switched is not None
        while self.running:
            self.preempt()
        self.idle(now)
        self.load_weights(self.switched)
        self.switched = None
        for waiting in self.lines:
            for request in [r for r in waiting if r.prompt + r.output > self.pool]:
                request.rejected = True
                waiting.remove(request)
        self.phase, self.event = "restart", now + 1000 * self.settings.restart_s

    def surface(self, now: float) -> None:
        """The tokens sampled in the iteration before the one that ends now go to their clients: h ms."""
        at = now + self.profile["path_ms"]
        for request, last in self.surfacing:
            if math.isnan(request.first_token):
                request.first_token = at
            if last:
                request.finish = at
        self.surfacing = []

    def take_chunk(self, request: Request, budget: int) -> int:
        """Put as much of the prompt into the iteration as the token budget allows; tokens taken."""
        take = min(budget, request.target - request.computed)
        if take > 0:
            self.chunks.append((request, request.computed, request.computed + take))
        return max(take, 0)

    def admit(self, budget: int) -> None:
        """Let requests in, the most urgent line first and none past a head that does not fit.

        An empty engine lets the head in whatever the watermark: else a prompt longer than that would wait for ever.
        """
        settings = self.settings
        watermark = min(settings.kv_budget * self.pool, self.pool - self.drafts * len(self.decoding))
        while (budget > 0 or self.remote is not None) and self.running < settings.batch_size:
            waiting = next((waiting for waiting in self.lines if waiting), None)
            if waiting is None or self.held + waiting[0].target > (watermark if self.running else self.pool):
                return
            request = waiting.popleft()
            self.reserved += request.target
            request.computed = min(int(settings.prefix_share * request.prompt), request.target - 1)
            if self.remote is not None:
                self.away.append(request)
                self.remote.put(request)
            else:
                self.prefilling.append(request)
                budget -= self.take_chunk(request, budget)

    def sampled(self, request: Request) -> None:
        """The last chunk is in and a token was sampled: the request decodes, if it wants more than that one."""
        self.reserved -= request.target
        request.generated += 1
        left = request.output - request.generated
        self.surfacing.append((request, left == 0))
        if left:
            self.decoding.append(request)
            self.context += request.prompt + request.generated
            self.left = np.append(self.left, left)
            self.log_accepted = np.append(self.log_accepted, self.acceptance(request.kind))

    def acceptance(self, kind: str) -> float:
        """Log of the probability that a draft token of this kind of traffic is accepted."""
        drafts = self.settings.spec_length
        if not drafts:
            return -math.inf
        length = self.profile["acceptance_lengths"][kind][self.profile["spec_lengths"].index(drafts)]
        probability = tokens_accepted(length, drafts)
        return math.log(probability) if probability > 0 else -math.inf

    def preempt(self) -> None:
        """The youngest goes back to the head of its line; what it held is dropped and will be computed again."""
        self.preempted += 1
        if self.prefilling or self.away:
            request = self.prefilling.pop() if self.prefilling else self.away.pop()
            self.ready = deque(entry for entry in self.ready if entry[1] is not request)
            if self.remote is not None:
                self.remote.drop(request)
            self.reserved -= request.target
        else:
            request = self.decoding.pop()
            request.generated = request.output - int(self.left[-1])
            self.left, self.log_accepted = self.left[:-1], self.log_accepted[:-1]
            self.context -= request.prompt + request.generated
        request.preemptions += 1
        request.target, request.computed = request.prompt + request.generated, 0
        self.lines[request.priority].appendleft(request)

    def end(self, now: float) -> None:
        """Carry out what ends now."""
        if self.phase == "iteration":
            running, held = self.running, self.held
            self.surface(now)
            tokens = self.decode()
            for request, _, end in self.chunks:
                request.computed = end
                if end == request.target:
                    self.prefilling.remove(request)
                    self.sampled(request)
                    tokens += 1
            self.log.append((self.started, now, self.scheduled, running, tokens, held))
        self.phase, self.event = "idle", math.inf

    def decode(self) -> int:
        """A verification, or a token, of each scheduled request; tokens made."""
        if not self.scheduled:
            return 0
        left = self.left[: self.scheduled]
        made = np.ones(self.scheduled, np.int64)
        if self.drafts:
            misses, log_accepted = np.log(1 - self.random.random(self.scheduled)), self.log_accepted[: self.scheduled]
            with np.errstate(divide="ignore"):  # P(at least i accepted) = a^i
                accepted = np.where(log_accepted < 0, misses / log_accepted, np.inf)
            made += np.minimum(accepted, self.drafts).astype(np.int64)
        made = np.minimum(made, left)
        left -= made
        tokens = int(made.sum())
        self.context += tokens
        if not left.all():
            for i in np.flatnonzero(left == 0)[::-1].tolist():
                request = self.decoding.pop(i)
                request.generated = request.output
                self.context -= request.prompt + request.output
                self.surfacing.append((request, True))
            rest = self.left > 0
            self.left, self.log_accepted = self.left[rest], self.log_accepted[rest]
        return tokens

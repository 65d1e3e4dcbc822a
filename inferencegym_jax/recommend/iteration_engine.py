"""A continuous-batching engine, iteration by iteration: what ``request_engine`` steps through.

``arrivals, lengths, EngineSettings, profile -> IterationEngine``. The rules are those of the open loop in
ENVIRONMENT.md, admission on the prompt, preemption of the youngest and chunked prefill among them, and no formula of
the fluid is used. ``tests/reference`` has the same rules written once more, plainly and slowly.

What makes it fast: a decoding request is touched when it enters and when it leaves. Its tokens are counted by iteration
(``growth``) and its last iteration is known on entry, so an iteration costs a few look-ups however many requests run;
and iterations between two events are stepped through without asking who may come in (``glide``).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from inferencegym_jax.recommend.engine_settings import EngineSettings, draft_probability, tokens_of_verifications
from inferencegym_jax.recommend.iteration_times import IterationTimes
from inferencegym_jax.recommend.tokens_seen import TokensSeen


class IterationEngine:
    """The engine, and the GPU that computes its prompts where there is one. Requests are numbers."""

    def __init__(
        self, arrival: np.ndarray, prompt: np.ndarray, output: np.ndarray, settings: EngineSettings, profile: Any
    ):
        self.arrival: list[float] = np.asarray(arrival, np.float64).tolist()
        self.prompt: list[int] = np.asarray(prompt, np.int64).tolist()
        self.output: list[int] = np.asarray(output, np.int64).tolist()
        count = len(self.arrival)
        self.generated: list[int] = [0] * count
        self.target: list[int] = list(self.prompt)
        self.computed: list[int] = [0] * count
        self.rejected: list[bool] = [False] * count
        self.last_iteration: list[int] = [-1] * count  # in which its last token is made
        self.drawn: dict[int, tuple[int, np.ndarray]] = {}  # with drafts: first iteration, tokens of each
        self.settings: EngineSettings = settings
        self.random: np.random.Generator = np.random.default_rng(settings.seed)
        self.drafts: int = settings.spec_length
        self.width: int = settings.spec_length + 1
        self.log_accepted: float = 0.0
        if self.drafts:
            self.log_accepted = math.log(draft_probability(settings.accepted, self.drafts))
        longest = max((p + o for p, o in zip(self.prompt, self.output, strict=True)), default=1)
        self.times: IterationTimes = IterationTimes(
            profile, settings.quant_tier, settings.token_budget, settings.batch_size, longest
        )
        self.pool: int = int(profile.pool_tokens(settings.quant_tier, settings.memory_gb))
        self.watermark: float = settings.kv_budget * self.pool
        self.most_decoding: int = settings.token_budget // self.width
        self.waiting: deque[int] = deque()
        self.prefilling: list[int] = []
        self.decoding: int = 0  # requests that an iteration decodes
        self.entered: list[tuple[int, int]] = []  # they, in order of entry, each with its last iteration
        self.parked: deque[int] = deque()  # decoding requests for which the token budget has no room
        self.parked_context: int = 0
        self.context: int = 0
        self.reserved: int = 0
        self.leaving: dict[int, list[int]] = {}  # iteration -> requests that it may end
        self.growth: np.ndarray = np.zeros(4096, np.int64)  # with drafts: tokens that each iteration makes
        self.iteration: int = 0
        self.preemptions: int = 0
        self.peak: int = 0
        self.just_preempted: bool = False
        self.seen: TokensSeen = TokensSeen(count, int(profile.first_token_extra_iterations), profile.path_ms)
        self.chunks: list[tuple[int, int, int]] = []
        self.event: float = math.inf
        self.now: float = 0.0
        self.arrivals: list[float] = [*self.arrival, math.inf]
        self.coming: int = 0
        self.busy: bool = False
        # the prompts' own GPU
        self.away: list[int] = []
        self.queue: list[int] = []
        self.remote_chunks: list[tuple[int, int, int]] = []
        self.remote_event: float = math.inf
        self.link_free: float = 0.0
        self.link_ms: float = profile.kv_bytes_per_token / (profile.host_link_gb_s * 1e6)  # a token
        self.ready: deque[tuple[float, int]] = deque()

    def run(self, until_ms: float) -> None:
        """Serve on, all that happens until then; one turn of the loop is an arrival at an idle engine or the end of an
        iteration."""
        arrivals, coming, count = self.arrivals, self.coming, len(self.arrival)
        submit, busy = self.submit, self.busy
        while True:
            at = min(self.event, self.remote_event)
            if at > until_ms and arrivals[coming] > until_ms:
                break
            if arrivals[coming] <= at:
                if coming == count:
                    break
                until = at if busy else arrivals[coming]
                while arrivals[coming] <= until and coming < count:
                    submit(coming)
                    coming += 1
                if busy:
                    continue
                at = until
            self.now = at
            if self.remote_event <= at:
                self.end_prompts(at)
                self.begin_prompts(at)
            began = self.event <= at or not busy
            if began:
                if busy:
                    self.end(at)
                busy = self.begin(at)
            if self.queue and self.remote_event == math.inf:
                self.begin_prompts(at)
            if began and busy and not self.chunks:
                self.glide(min(arrivals[coming], self.remote_event, until_ms))
        self.coming, self.busy = coming, busy

    def submit(self, request: int) -> None:
        """A request arrives."""
        most = self.settings.max_waiting
        full = most is not None and len(self.waiting) >= most
        if full or self.prompt[request] + self.output[request] > self.pool:
            self.rejected[request] = True
        else:
            self.waiting.append(request)

    def begin(self, now: float) -> bool:
        """Schedule the next iteration; whether there is one."""
        while self.ready and self.ready[0][0] <= now:
            request = self.ready.popleft()[1]
            self.away.remove(request)
            self.sampled(request)
        self.seen.made_elsewhere(now)
        preempted = self.preemptions
        self.peak = max(self.peak, self.context + self.reserved)
        while self.context + self.reserved + self.drafts * (self.decoding + len(self.parked)) > self.pool:
            if self.running() <= 1:
                break
            self.preempt()
        self.just_preempted = self.preemptions != preempted
        budget = self.settings.token_budget - self.decoding * self.width
        self.chunks = []
        for request in self.prefilling:
            budget -= self.take_chunk(request, budget)
        if self.waiting and not self.just_preempted:
            self.admit(budget)
        if not self.decoding and not self.chunks:
            self.event = self.ready[0][0] if self.ready else math.inf
            while those := self.seen.awaited():  # after the iterations that they would have had next
                context = sum(self.prompt[request] + self.generated[request] for request in those)
                now += self.times.iteration(len(those), context, (), 0, 0)
                self.seen.ended(now)
            return False
        complete = sum(end == self.target[request] for request, _, end in self.chunks)
        self.event = now + self.times.iteration(
            self.decoding, self.context - self.parked_context, self.chunks, complete, self.drafts
        )
        return True

    def glide(self, before_ms: float) -> None:
        """Carry out iterations that only decode, up to one that ends at ``before_ms`` or later, or in which
        somebody leaves.

        Right after ``begin``. The same as ``end`` and ``begin`` in turn, without asking what cannot change meanwhile:
        who waits was not let in and is not until somebody leaves, as what is held only grows. (After a preemption
        nobody was asked.)
        """
        before_ms = min(before_ms, self.ready[0][0]) if self.ready else before_ms
        if self.event >= before_ms or self.parked or self.prefilling or self.just_preempted:
            return
        decoding, drafts, growth, leaving = self.decoding, self.drafts, self.growth, self.leaving
        iteration, context, event = self.iteration, self.context, self.event
        times = self.times.decode_only(decoding, drafts)
        most = self.pool - self.reserved - drafts * decoding
        unseen = self.seen.extra  # iterations after which whatever was made before is seen
        while event < before_ms and iteration not in leaving:
            after = context + (int(growth[iteration]) if drafts else decoding)
            if after > most:
                break
            if unseen:
                self.seen.ended(event)
                unseen -= 1
            self.now = event
            context, iteration = after, iteration + 1
            event += times(context)
        self.peak = max(self.peak, context + self.reserved)
        self.iteration, self.context, self.event = iteration, context, event

    def running(self) -> int:
        """Requests that hold a slot."""
        return self.decoding + len(self.parked) + len(self.prefilling) + len(self.away)

    def take_chunk(self, request: int, budget: int) -> int:
        """Put as much of the prompt into the iteration as the budget allows; tokens taken."""
        first = self.computed[request]
        take = min(budget, self.target[request] - first)
        if take <= 0:
            return 0
        self.chunks.append((request, first, first + take))
        return take

    def admit(self, budget: int) -> None:
        """Let requests in, first come first served; an empty engine takes its head whatever the watermark."""
        settings, remote = self.settings, self.settings.prefill_gpu
        limit = min(self.watermark, self.pool - self.drafts * (self.decoding + len(self.parked)))
        running = self.running()
        while (budget > 0 or remote) and running < settings.batch_size and self.waiting:
            request = self.waiting[0]
            target = self.target[request]
            if self.context + self.reserved + target > (limit if running else self.pool):
                return
            self.waiting.popleft()
            running += 1
            self.reserved += target
            self.computed[request] = min(int(settings.prefix_share * self.prompt[request]), target - 1)
            if remote:
                self.away.append(request)
                self.queue.append(request)
            else:
                self.prefilling.append(request)
                budget -= self.take_chunk(request, budget)

    def end(self, now: float) -> None:
        """Carry out the iteration that ends."""
        at = self.iteration
        if self.decoding:
            self.context += int(self.growth[at]) if self.drafts else self.decoding
            for request in self.leaving.pop(at, ()):
                if self.last_iteration[request] == at:  # else it was preempted meanwhile
                    self.decoding -= 1
                    self.last_iteration[request] = -1
                    self.generated[request] = self.output[request]
                    self.context -= self.prompt[request] + self.output[request]
                    self.seen.made(request, True)
                    self.drawn.pop(request, None)
        self.iteration = at + 1
        while self.parked and self.decoding < self.most_decoding:
            request = self.parked.popleft()
            self.parked_context -= self.prompt[request] + self.generated[request]
            self.decode(request)
        for request, _, end in self.chunks:
            self.computed[request] = end
            if end == self.target[request]:
                self.prefilling.remove(request)
                self.sampled(request)
        self.seen.ended(now)

    def sampled(self, request: int) -> None:
        """A prompt is in: its first token is there, and it decodes if it wants more."""
        self.reserved -= self.target[request]
        self.generated[request] += 1
        left = self.output[request] - self.generated[request]
        self.seen.made(request, left == 0)
        if not left:
            return
        context = self.prompt[request] + self.generated[request]
        self.context += context
        if self.decoding < self.most_decoding and not self.parked:
            self.decode(request)
        else:
            self.parked.append(request)
            self.parked_context += context

    def decode(self, request: int) -> None:
        """From the next iteration on the request decodes: plan its tokens."""
        left = self.output[request] - self.generated[request]
        last = self.iteration + left - 1
        if self.drafts:
            tokens = tokens_of_verifications(self.random, self.drafts, self.log_accepted, left)
            last = self.iteration + len(tokens) - 1
            if last >= len(self.growth):
                self.growth = np.concatenate([self.growth, np.zeros(max(len(self.growth), last), np.int64)])
            self.growth[self.iteration : last + 1] += tokens
            self.drawn[request] = (self.iteration, tokens)
        self.decoding += 1
        self.last_iteration[request] = last
        self.leaving.setdefault(last, []).append(request)
        self.entered.append((request, last))
        if len(self.entered) > 4 * self.settings.batch_size + 64:
            self.entered = [(r, end) for r, end in self.entered if self.last_iteration[r] == end]

    def preempt(self) -> None:
        """The youngest goes back to the head of the line; what it held will be computed again."""
        self.preemptions += 1
        if self.prefilling or self.away:
            request = self.prefilling.pop() if self.prefilling else self.away.pop()
            if self.settings.prefill_gpu:
                self.ready = deque(entry for entry in self.ready if entry[1] != request)
                self.queue = [other for other in self.queue if other != request]
                self.remote_chunks = [chunk for chunk in self.remote_chunks if chunk[0] != request]
            self.reserved -= self.target[request]
        elif self.parked:
            request = self.parked.pop()
            self.parked_context -= self.prompt[request] + self.generated[request]
            self.context -= self.prompt[request] + self.generated[request]
        else:
            request, last = self.entered.pop()
            while self.last_iteration[request] != last:
                request, last = self.entered.pop()
            if self.drafts:
                start, tokens = self.drawn.pop(request)
                done = self.iteration - start
                self.growth[self.iteration : last + 1] -= tokens[done:]
                self.generated[request] += int(tokens[:done].sum())
            else:
                self.generated[request] = self.output[request] - (last - self.iteration + 1)
            self.decoding -= 1
            self.last_iteration[request] = -1
            self.context -= self.prompt[request] + self.generated[request]
        self.target[request], self.computed[request] = self.prompt[request] + self.generated[request], 0
        self.waiting.appendleft(request)

    def begin_prompts(self, now: float) -> None:
        """Schedule the next chunks on the prompts' own GPU."""
        budget = self.settings.token_budget
        self.remote_chunks = []
        for request in self.queue:
            first = self.computed[request]
            take = min(budget, self.target[request] - first)
            if take <= 0:
                break
            self.remote_chunks.append((request, first, first + take))
            budget -= take
        self.remote_event = math.inf
        if self.remote_chunks:
            complete = sum(end == self.target[request] for request, _, end in self.remote_chunks)
            self.remote_event = now + self.times.iteration(0, 0, self.remote_chunks, complete, 0)

    def end_prompts(self, now: float) -> None:
        """Prompts that are complete cross the link, one after the other."""
        for request, _, end in self.remote_chunks:
            self.computed[request] = end
            if end == self.target[request]:
                self.queue.remove(request)
                self.link_free = max(self.link_free, now) + self.target[request] * self.link_ms
                self.ready.append((self.link_free, request))
        self.remote_chunks = []

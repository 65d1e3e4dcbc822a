"""A continuous-batching engine, request by request, on the engine profile that the open-loop physics reads.

``profile -> EngineTimes -> ProfileEngine: submit, start, end``. An iteration takes what ``physics.iteration`` says of
its decode requests, and what its prompt chunks add to the matrix products and in attention. Scheduling is that of the
open loop too: a token of every decode request, then prompts in order of their arrival under the token budget, admission
on the prompt as far as the pool goes; past the pool the youngest is preempted and recomputed. Times are ms, lengths
tokens.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from inferencegym_jax.live.server.probe import EngineMetrics
from inferencegym_jax.models import EngineParams, shown
from inferencegym_jax.physics.iteration import rough_iteration_ms
from inferencegym_jax.physics.kernels import MOST_RUNNING
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.table.latency_table import LatencyTable, TableError

TIER = 0  # weight format: that of the engine which the table was measured on


class EngineTimes:
    """What iterations of a table's engine take: the open-loop step's own, tabulated.

    Args:
        table: with an engine profile, or with what one is derived from.

    Raises:
        TableError: the table says too little of the engine; the message names what to add.
    """

    def __init__(self, table: LatencyTable):
        grid = iterations_of(table)
        self.profile = profile = grid.profile
        self.pool_tokens = profile.pool_tokens(TIER)
        self.block_tokens = _positive(table, "kv_block_tokens")
        self.alone_share = _positive(table, "prefill_alone_share")
        self.base_gb = float(profile.weights_gb[TIER]) + profile.runtime_gb
        params = EngineParams(
            overhead_ms=np.float32(profile.overhead_ms),
            overhead_ms_per_sequence=np.float32(profile.overhead_ms_per_sequence),
        )
        self._contexts = grid.attention_axes[1]
        running = jnp.arange(1.0, MOST_RUNNING + 1.0)[:, None]
        contexts = jnp.asarray(self._contexts, jnp.float32)[None, :]
        zero = jnp.zeros((MOST_RUNNING, len(self._contexts)))
        tier = jnp.full(zero.shape, TIER, jnp.int32)
        decode = rough_iteration_ms(grid, running + zero, contexts + zero, zero, tier, params)
        self._decode = np.asarray(decode, np.float64)
        products = grid.products.reshape(len(profile.products_ms), -1)[TIER]
        self.most_tokens = int(grid.most_tokens)
        budget = np.arange(self.most_tokens + MOST_RUNNING + 1)
        self._products = np.interp(np.maximum(budget, 1), grid.tokens, products)
        self._prompts, self._attention = grid.prompt_axis, grid.prefill

    def decode_ms(self, running: float, context: float) -> float:
        """An iteration of ``running`` decode requests of ``context`` tokens each, without prompts; linear between whole
        numbers of requests. An iteration of prompts alone costs as one request."""
        n = min(max(running, 1.0), float(MOST_RUNNING)) - 1.0
        low = int(n)
        iteration_ms = float(np.interp(context, self._contexts, self._decode[low]))
        if n > low:
            iteration_ms += (n - low) * (
                float(np.interp(context, self._contexts, self._decode[low + 1])) - iteration_ms
            )
        return iteration_ms

    def added_ms(self, running: int, chunks: list[tuple[float, float]]) -> float:
        """What prompt chunks add to an iteration of ``running`` decode requests; ``chunks``: (first, end) token of
        each. With none running it is what they add to an idle engine, where the table says that that is another."""
        beside = max(running, 1)
        tokens = sum(end - first for first, end in chunks)
        added = self._products[min(int(beside + tokens), len(self._products) - 1)] - self._products[beside]
        added += sum(self._attention_ms(end) - self._attention_ms(first) for first, end in chunks)
        return float(added) * (1.0 if running else self.alone_share)

    def prompt_ms(self, prompt: float, running: float = 1.0) -> float:
        """What a whole prompt adds, chunk by chunk, beside ``running`` decode requests."""
        room = max(self.profile.tokens_per_iteration - int(running), 1)
        firsts = np.arange(0.0, prompt, room)
        return sum(self.added_ms(int(running), [(first, min(first + room, prompt))]) for first in firsts)

    def _attention_ms(self, tokens: float) -> float:
        return float(np.interp(tokens, self._prompts, self._attention)) if tokens >= 1.0 else 0.0


def _positive(table: LatencyTable, key: str) -> float:
    """A number of the metadata: tokens of a block of the pool, of which a request holds whole ones; what a prompt adds
    to an idle engine, over what it adds beside requests that decode. 1 where the table does not say."""
    text = table.metadata.get(key, "1")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise TableError(f"{table.name}: metadata {key} = {shown(text)}; must be a number above 0")
    return value


@functools.lru_cache(maxsize=8)
def engine_times(table: LatencyTable) -> EngineTimes:
    """The iteration times of a table's engine, made once; see ``EngineTimes``."""
    return EngineTimes(table)


def saturation(table: LatencyTable, prompt: float, output: float) -> float:
    """Requests a second that the engine can at most finish: the best of ``n / (O T(n))`` over the table's batch
    sizes, with ``T(n) = t(n) + n / O p``."""
    times = engine_times(table)
    best = 0.0
    for n in table.axes["batch_size"]:
        iteration = times.decode_ms(n, prompt + output / 2) + n / output * times.prompt_ms(prompt, n)
        best = max(best, 1000.0 * n / (output * iteration))
    return best


@dataclass(eq=False)
class EngineRequest:
    """One request in the engine."""

    prompt: int
    output: int
    made: int = 0  # output tokens sampled
    target: int = 0  # tokens to compute before it decodes: its prompt, and what it had when it was preempted
    computed: int = 0
    preemptions: int = 0

    @property
    def decodes(self) -> bool:
        """Whether its prompt is computed."""
        return self.made > 0 and self.computed >= self.target


class ProfileEngine:
    """The iterations of one engine.

    Args:
        times: of its iterations.
        max_num_seqs: most requests that run.
        token_budget: tokens of one iteration; default: the profile's.

    Raises:
        ValueError: a token budget beyond what the times are known for.
    """

    def __init__(self, times: EngineTimes, max_num_seqs: int = 10**9, token_budget: int | None = None):
        self.times, self.max_num_seqs = times, max_num_seqs
        self.token_budget = times.profile.tokens_per_iteration if token_budget is None else token_budget
        if not 1 <= self.token_budget <= times.most_tokens:
            raise ValueError(
                f"token_budget = {token_budget}: must be from 1 to {times.most_tokens}, as far as the table's "
                "iterations are looked up"
            )
        self.waiting: deque[EngineRequest] = deque()
        self.running: list[EngineRequest] = []  # in order of entry
        self.preempted = 0
        self._chunks: list[tuple[EngineRequest, int, int]] = []
        self._decoding: list[EngineRequest] = []
        # sampled in the last iterations, which the client sees after as many more as the profile says
        delay = times.profile.first_token_extra_iterations
        self._sampled: deque[list[EngineRequest]] = deque([[] for _ in range(delay)])

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run, nor to show."""
        return not self.running and not self.waiting and not any(self._sampled)

    @property
    def held(self) -> float:
        """Tokens of the pool that are taken: each request holds whole blocks."""
        return sum(self._blocks(max(request.target, request.prompt + request.made)) for request in self.running)

    def metrics(self) -> EngineMetrics:
        """What the server's ``/metrics`` would say."""
        pool = self.times.pool_tokens
        return EngineMetrics(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_usage=min(self.held / pool, 1.0),
            kv_cache_gb=pool * self.times.profile.kv_bytes_per_token / 1e9,
            kv_cache_tokens=pool,
            preemptions=self.preempted,
        )

    def submit(self, request: EngineRequest) -> None:
        """Put a request at the end of the engine's own line."""
        request.target = request.prompt
        self.waiting.append(request)

    def start(self) -> float:
        """Schedule the next iteration; its length, ms."""
        before = self.preempted
        held = self.held
        while held > self.times.pool_tokens and len(self.running) > 1:
            held -= self._preempt()
        self._decoding = [request for request in self.running if request.decodes][: self.token_budget]
        room = self.token_budget - len(self._decoding)
        self._chunks = []
        for request in self.running:
            room -= self._chunk(request, room)
        while self.waiting and room > 0 and len(self.running) < self.max_num_seqs and self.preempted == before:
            request = self.waiting[0]
            taken = self._blocks(request.target)
            if self.running and held + taken > self.times.pool_tokens:
                break
            self.running.append(self.waiting.popleft())
            held += taken
            room -= self._chunk(request, room)
        n = len(self._decoding)
        shown = self._decoding or [request for request, _, _ in self._chunks] or [r for s in self._sampled for r in s]
        context = sum(request.prompt + request.made for request in shown) / max(len(shown), 1)
        chunks = [(float(first), float(end)) for _, first, end in self._chunks]
        return self.times.decode_ms(max(n, 1), context) + self.times.added_ms(n, chunks)

    def end(self) -> list[EngineRequest]:
        """Carry the iteration out; the requests whose next token the client sees at its end."""
        made = list(self._decoding)
        for request, _, end in self._chunks:
            request.computed = end
            if end >= request.target:
                made.append(request)
        for request in made:
            request.made += 1
            if request.made >= request.output:
                self.running.remove(request)
        self._sampled.append(made)
        return self._sampled.popleft()

    def _chunk(self, request: EngineRequest, room: int) -> int:
        take = min(request.target - request.computed, room)
        if take > 0:
            self._chunks.append((request, request.computed, request.computed + take))
        return max(take, 0)

    def _blocks(self, tokens: int) -> float:
        block = self.times.block_tokens
        return math.ceil(tokens / block) * block

    def _preempt(self) -> float:
        request = self.running.pop()
        freed = self._blocks(max(request.target, request.prompt + request.made))
        request.target, request.computed = request.prompt + request.made, 0
        request.preemptions += 1
        self.preempted += 1
        self.waiting.appendleft(request)
        return freed

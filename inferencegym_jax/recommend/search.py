"""Every configuration and controller of a search, replayed on a log: many lanes a compiled call, one part a core."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import Environment, assumed_dynamics, assumed_source, source_in
from inferencegym_jax.episodes.parallel import cores
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import EPISODE_LENGTH, KNOBS, EnvParams, ServeAction
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.speculation import DRAFT_LENGTHS
from inferencegym_jax.recommend.log_requests import TRACE_TASK, LoggedRequests
from inferencegym_jax.recommend.quality import Objective, Quality, between, join, judge
from inferencegym_jax.recommend.replay import Seconds, first_tokens, serve
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params

LANES = 384  # controllers a compiled call
NO_LIMIT = 2**30  # of waiting requests: the flags that are printed let an engine turn nobody away


def environment(
    table: LatencyTable, requests: LoggedRequests, memory_gb: float, acceptance: float | None
) -> tuple[Environment, EnvParams]:
    """The open-loop environment that replays the log: no noise, every knob of the table free, nobody turned away.

    Args:
        table: latency table.
        requests: the log's.
        memory_gb: of the engine.
        acceptance: probability a that a drafted token is accepted, so that k drafts yield 1 + a + ... + a^k tokens a
            verification; None: the measured lengths of task 4's traffic.
    """
    spec = get_task(TRACE_TASK)
    params = make_params(spec, table, NOT_NORMALISED, trace=requests.log)
    lengths = params.engine.acceptance_lengths
    if acceptance is not None:
        rate = between("acceptance", acceptance, 0.0, 1.0)
        lengths = np.asarray([sum(rate**i for i in range(k + 1)) for k in (0, *DRAFT_LENGTHS)], np.float32)
    params = params.replace(
        noise_sigma=np.float32(0.0),
        active=np.asarray([name not in table.locked_knobs for name in KNOBS]),
        episode_length=np.int32(requests.length),
        engine=params.engine.replace(
            memory_gb=np.float32(memory_gb), queue_capacity=np.int32(NO_LIMIT), acceptance_lengths=lengths
        ),
    )
    return Environment(table, params, requests.log), params


@dataclass(frozen=True, eq=False)
class Judged:
    """What a search found.

    Attributes:
        actions: one entry a static action.
        controllers: one entry a controller.
        controllers_ttft_ms: float32[requests, controllers].
    """

    actions: Quality
    controllers: Quality
    controllers_ttft_ms: np.ndarray


class Search:
    """The log under static actions and controllers, at most ``LANES`` at a time, one part a core.

    Compiling the step takes ten times as long as running it, so controllers have no program of their own.

    Args:
        env: from ``environment``.
        params: from ``environment``.
        requests: the log's.
        controllers: policies.
        objective: what counts as good.
    """

    def __init__(
        self,
        env: Environment,
        params: EnvParams,
        requests: LoggedRequests,
        controllers: tuple[Policy, ...],
        objective: Objective,
    ):
        self.env: Environment = env
        self.params: EnvParams = params
        self.requests: LoggedRequests = requests
        self.controllers: tuple[Policy, ...] = controllers
        self.objective: Objective = objective
        self._width: int = 1
        self._place = jnp.asarray(requests.stretch * requests.length + requests.second)
        # one draw a request, the same for every controller: where in the iteration under way it arrives
        self._residue = jnp.asarray(np.random.default_rng(0).random(requests.count), jnp.float32)

    def judge(
        self, actions: list[dict[str, Any]], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Judged:
        """Quality of every static action and every controller; all in calls of one compiled program."""
        count = len(self.controllers)
        entries = [*actions, *[dict(self.env.table.knob_defaults)] * count]
        kinds = np.concatenate([np.full(len(actions), -1), np.arange(count)]).astype(np.int32)
        self._width = max(min(LANES // len(self.requests.starts), len(entries)), 1)
        chunks = [slice(start, start + self._width) for start in range(0, len(entries), self._width)]
        done = 0

        def one(chunk: slice) -> tuple[Quality, np.ndarray]:
            seconds, ttft = self.lanes(entries[chunk], kinds[chunk], self._width)
            return judge(seconds, ttft, self.requests, self.objective), ttft[:, kinds[chunk] >= 0]

        parts = [one(chunks[0])]  # it compiles what the threads then share
        with ThreadPoolExecutor(cores()) as pool:
            for part in pool.map(one, chunks[1:]):
                parts.append(part)
                done += len(part[0].goodput)
                progress(done, len(actions))
        all_of_them = join([quality for quality, _ in parts])
        return Judged(
            all_of_them.take(slice(None, len(actions))),
            all_of_them.take(slice(len(actions), None)),
            np.concatenate([ttft for _, ttft in parts], axis=1),
        )

    def ttft_ms(self, action: dict[str, Any]) -> np.ndarray:
        """TTFT of every request under a static action, float32[requests]; after ``judge``, whose program it runs."""
        return self.lanes([action], np.full(1, -1, np.int32), self._width)[1][:, 0]

    def lanes(self, actions: list[dict[str, Any]], kinds: np.ndarray, width: int) -> tuple[Seconds, np.ndarray]:
        """Seconds (fields of shape (seconds, controllers)) and TTFTs (requests, controllers) of at most ``width``."""
        count, requests = len(actions), self.requests
        stretches = len(requests.starts)
        pick = np.resize(np.arange(count), width)  # padded by repeating, so that one shape is compiled
        columns = {name: np.repeat(np.asarray([actions[i][name] for i in pick]), stretches) for name in KNOBS}
        seeds = np.tile(requests.starts // EPISODE_LENGTH, width).astype(np.uint32)
        which = np.repeat(np.where(np.arange(width) < count, kinds[pick], -1), stretches).astype(np.int32)
        # without the other dynamics and sources of requests a step takes a third of the time
        with assumed_dynamics("open_loop"), assumed_source(source_in(self.params)):
            served = serve(
                self.env,
                self.controllers,
                requests.length,
                self.params,
                jnp.asarray(seeds),
                ServeAction(**columns).as_arrays(),
                jnp.asarray(which),
            )

        def in_order(x: jax.Array) -> jax.Array:
            # (length, width x stretches) -> (stretches x length, width)
            return x.reshape(requests.length, width, stretches).transpose(2, 0, 1).reshape(-1, width)

        seconds = jax.tree.map(in_order, served)
        ttft = first_tokens(
            iterations_of(self.env.table),
            seconds,
            self._place,
            jnp.asarray(requests.gap_ms),
            jnp.asarray(requests.prompt),
            self._residue,
            self.params.engine,
        )
        return jax.tree.map(lambda x: np.asarray(x)[:, :count], seconds), np.asarray(ttft)[:, :count]

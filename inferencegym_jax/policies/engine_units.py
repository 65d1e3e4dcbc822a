"""What a controller is told of GPU, model, traffic and objectives, and the units that follow: loads as shares of one
GPU's capacity, running requests as shares of those that keep the objective, latencies over their objectives.

``table, params -> engine_of -> Engine``; ``Engine, observation -> load, running, slots``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import KNOBS, REPLICA, EngineParams, EnvParams, Scalar, ServeObservation
from inferencegym_jax.physics.capacity import work_ms
from inferencegym_jax.physics.iteration import iteration, prompt_nodes, prompts_ms
from inferencegym_jax.physics.kernels import Iterations, by_tier
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.pool import pool_tokens
from inferencegym_jax.scoring.reward import mean_slo_ms
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks.draws import Draws, drawn

NODES = 10  # of the TPOT curve: 1, 2, 4, ... 512 running
SHORTEST_MEAN = 64.0  # tokens: below it the slope of a request's work in its prompt is taken there
ANY_MS = 1e9  # in place of an objective that there is none of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Engine:
    """GPU, model, traffic and objectives as a controller knows them; float32, of one environment."""

    work_base_ms: Scalar  # of a saturated GPU, for a request without a prompt
    work_token_ms: Scalar  # further, a prompt token
    output: Scalar  # mean tokens
    pool: Scalar  # tokens of one GPU's KV pool
    tpot_ms: Scalar = (0.0,) * NODES  # float32[10], with 1, 2, 4, ... 512 running, their prompts beside them
    prompt_ms: Scalar = 0.0  # of a mean prompt on an idle GPU
    slo_ttft_ms: Scalar = (ANY_MS,) * 3  # float32[3], by class
    slo_tpot_ms: Scalar = (ANY_MS,) * 3  # float32[3]
    acceptance: Scalar = (1.0,) * 5  # float32[5], tokens that a verification yields with 0, 1, 2, 4, 8 drafts
    start_s: Scalar = 0.0  # from asking for a second GPU until it serves
    clock: Scalar = 1.0  # seconds of the day that pass in a second
    may_lease: Scalar = 0.0  # 1 where the task leaves the second GPU to the controller, and it is a replica
    may_draft: Scalar = 0.0  # 1 where it leaves the drafts

    @classmethod
    def unknown(cls) -> Engine:
        """Of a task whose table need not describe an engine."""
        one = np.float32(1.0)
        return as_arrays(cls(one, one, one, one))

    def work(self, observation: ServeObservation) -> jax.Array:
        """ms of a saturated GPU that a request of the second takes, float32."""
        return self.work_base_ms + self.work_token_ms * observation.mean_prompt_len

    def load(self, observation: ServeObservation) -> jax.Array:
        """What arrives, as a share of one GPU's capacity, float32."""
        return observation.arrival_rate * self.work(observation) / 1000.0

    def running(self, observation: ServeObservation) -> jax.Array:
        """Requests that run on a GPU, by the tokens that they hold, float32."""
        tokens_in_pool = observation.kv_cache_occupancy * self.pool
        return tokens_in_pool / (observation.mean_prompt_len + 0.5 * self.output)

    def ttft_objective_ms(self, observation: ServeObservation) -> jax.Array:
        """Of the mean request of the last seconds, float32."""
        return mean_slo_ms(observation.priority_distribution, jnp.asarray(self.slo_ttft_ms))

    def tpot_objective_ms(self, observation: ServeObservation) -> jax.Array:
        """Of the mean request of the last seconds, float32."""
        return mean_slo_ms(observation.priority_distribution, jnp.asarray(self.slo_tpot_ms))

    def slots(self, observation: ServeObservation) -> jax.Array:
        """The most requests that run on a GPU within the TPOT objective, without drafts, 1 to 512, float32."""
        curve, objective = jnp.asarray(self.tpot_ms), self.tpot_objective_ms(observation)
        octaves = jnp.zeros_like(objective)
        for i in range(NODES - 1):
            rise = jnp.maximum(curve[..., i + 1] - curve[..., i], 1e-6)
            octaves = octaves + jnp.clip((objective - curve[..., i]) / rise, 0.0, 1.0)
        return jnp.exp2(octaves)


def as_arrays(engine: Engine) -> Engine:
    """Fields as float32 arrays."""
    return Engine(**{name: np.asarray(getattr(engine, name), np.float32) for name in Engine.__dataclass_fields__})


def engine_of(table: LatencyTable, params: EnvParams) -> Engine:
    """What a table and a task tell the controller.

    Raises:
        TableError: the table says too little of an engine.
    """
    grid, engine = iterations_of(table), params.engine
    tier = int(table.knob_defaults["quant_tier"])
    mean, output = max(float(engine.prompt_mean), SHORTEST_MEAN), float(engine.output_mean)
    with jax.ensure_compile_time_eval():
        prompts = np.asarray([0.5 * mean, 1.5 * mean], np.float32)
        low, high = np.asarray(work_ms(grid, engine, prompts, np.full(2, output), tier))
        curve, unloaded_ms = (np.asarray(x) for x in curves_ms(grid, engine, mean, output, np.int32(tier)))
    slope = (high - low) / mean
    active = dict(zip(KNOBS, np.asarray(params.active), strict=True))
    slo_ttft, slo_tpot = (np.minimum(np.asarray(x), ANY_MS) for x in (params.slo_ms, engine.slo_tpot_ms))
    return as_arrays(
        Engine(
            work_base_ms=max(low - 0.5 * mean * slope, 0.0),
            work_token_ms=slope,
            output=output,
            pool=grid.profile.pool_tokens(tier, float(engine.memory_gb)),
            tpot_ms=curve,
            prompt_ms=unloaded_ms,
            slo_ttft_ms=np.broadcast_to(slo_ttft, 3),
            slo_tpot_ms=np.broadcast_to(slo_tpot, 3),
            acceptance=engine.acceptance_lengths,
            start_s=engine.start_s,
            clock=engine.day.clock,
            may_lease=float(active["prefill_disagg"] and int(engine.second_gpu) == REPLICA),
            may_draft=float(active["spec_length"]),
        )
    )


def drawn_engine(draws: Draws, params: EnvParams, seed: jax.Array) -> Engine:
    """What a controller knows of the GPU and the task that a seed drew: as ``engine_of``, but the curves are those at
    the pool's mean lengths.

    Args:
        draws: of the environment.
        params: the task, before anything is drawn.
        seed: uint32, of one environment.
    """
    choice, own = draws.choice(seed), drawn(draws, params, seed)
    slopes, curves, unloaded_ms = (
        draws.pick(draws.pick(table, choice.engine), choice.pool) for table in _curves_of(draws)
    )
    work = draws.pick(draws.pick(draws.work_ms, choice.engine), choice.pool)
    engine, shares = own.engine, own.engine.day.rate / jnp.maximum(own.engine.rate, 1e-6)
    profile = draws.stack.profile
    weights = by_tier(profile.weights_gb, draws.stack.weight_format(choice.engine))
    active = dict(zip(KNOBS, jnp.asarray(own.active, jnp.float32), strict=True))
    return Engine(
        work_base_ms=jnp.maximum((shares * work).sum() - slopes * engine.prompt_mean, 0.0),
        work_token_ms=slopes,
        output=engine.output_mean,
        pool=pool_tokens(engine.memory_gb, weights, profile.runtime_gb, profile.kv_bytes_per_token),
        tpot_ms=curves,
        prompt_ms=unloaded_ms,
        slo_ttft_ms=jnp.minimum(own.slo_ms, ANY_MS),
        slo_tpot_ms=jnp.minimum(engine.slo_tpot_ms, ANY_MS),
        acceptance=engine.acceptance_lengths,
        start_s=engine.start_s,
        clock=engine.day.clock,
        may_lease=active["prefill_disagg"],
        may_draft=active["spec_length"],
    )


@functools.lru_cache(maxsize=4)
def _curves_of(draws: Draws) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(work a prompt token float32[engines, pools], TPOT float32[engines, pools, 10], a prompt alone [engines, pools]),
    at the mean lengths of each pool."""
    days = draws.days
    shares = days.rate / days.rate.sum(axis=1, keepdims=True)
    prompts, outputs = (shares * days.prompt_mean).sum(axis=1), (shares * days.output_mean).sum(axis=1)
    slopes, curves, unloaded_ms = [], [], []
    with jax.ensure_compile_time_eval():
        for i in range(len(draws.stack.engines)):
            own: dict[str, Any] = {name: np.float32(values[i]) for name, values in draws.numbers.items()}
            params = EngineParams(**own)
            for prompt, output in zip(prompts, outputs, strict=True):
                ends = np.asarray([0.5 * prompt, 1.5 * prompt], np.float32)
                low, high = np.asarray(work_ms(draws.stack, params, ends, np.full(2, output), np.int32(i)))
                curve, one = curves_ms(draws.stack, params, prompt, output, np.int32(i))
                slopes.append((high - low) / prompt)
                curves.append(np.asarray(curve))
                unloaded_ms.append(np.asarray(one))
    shape = len(draws.stack.engines), len(prompts)
    columns = (np.asarray(x, np.float32) for x in (slopes, curves, unloaded_ms))
    first, second, third = (x.reshape(*shape, *x.shape[1:]) for x in columns)
    return first, second, third


@functools.partial(jax.jit, static_argnums=0)
def curves_ms(
    grid: Iterations, engine: EngineParams, prompt: Scalar, output: Scalar, tier: Scalar
) -> tuple[jax.Array, jax.Array]:
    """(TPOT with 1, 2, 4, ... 512 running without drafts, float32[10] ms; what a mean prompt takes alone, float32 ms).

    TPOT: an iteration's time, and the time that n prompts add over the tokens of an output.

    Args:
        grid: the engine's lookups.
        engine: its params.
        prompt: mean tokens.
        output: mean tokens.
        tier: weight format, or engine of a stack.
    """
    n = jnp.asarray(2.0 ** np.arange(NODES), jnp.float32)
    tiers, none = jnp.full(NODES, tier, jnp.int32), jnp.zeros(NODES)
    context = jnp.full(NODES, prompt + 0.5 * output, jnp.float32)
    took = iteration(grid, n, jnp.full(NODES, jnp.inf), context, none, tiers, engine).ms
    nodes = prompt_nodes(jnp.full(NODES, prompt, jnp.float32), jnp.square(jnp.float32(engine.prompt_cv)))
    beside = jnp.minimum(n, engine.token_budget - 1.0)
    added = prompts_ms(grid, nodes, beside, engine.token_budget, engine.prefix_share, tiers)
    curve = took + n / jnp.maximum(output, 1.0) * added.mean_ms
    return jax.lax.cummax(curve), took[0] + added.mean_ms[0]

"""Whole episodes in one compiled call: ``jit(scan(vmap))`` over seeds, tasks or both.

``rollout`` returns every step; ``evaluate`` keeps running statistics instead, so that thousands of episodes move no
memory beyond the state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax import parallel, random
from inferencegym_jax.environment import Environment
from inferencegym_jax.models import (
    EPISODE_LENGTH,
    EnvParams,
    MetricsSnapshot,
    ServeAction,
    ServeObservation,
    WorkloadState,
)

Policy: TypeAlias = Callable[[jax.Array, ServeObservation, Any], Any]
"""``policy(key, observation, carry)`` for one environment returns a ``ServeAction``, or (``ServeAction``, new
carry)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trajectory:
    """Every step of a batch of episodes; leading axes are (steps, environments)."""

    observation: ServeObservation  # before the action
    action: ServeAction  # as the policy gave it
    reward: jax.Array  # float32
    terminated: jax.Array  # bool
    truncated: jax.Array  # bool
    metrics: MetricsSnapshot
    workload: WorkloadState
    oom: jax.Array  # bool
    next_observation: ServeObservation  # after the action; at an episode's end its final observation


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EpisodeStatistics:
    """What a batch of episodes came to, one number an environment: all that the graders need, and the usual means."""

    total_reward: jax.Array  # float32, return of the episode
    mean_tps: jax.Array  # tokens/s
    mean_ttft_p50_ms: jax.Array
    mean_ttft_p99_ms: jax.Array
    mean_tpot_ms: jax.Array
    peak_memory_gb: jax.Array
    mean_violations: jax.Array  # requests a step
    mean_violation_rate: jax.Array  # share
    total_cost: jax.Array
    batch_jitter: jax.Array  # standard deviation of the step-to-step change of batch_size
    kv_jitter: jax.Array  # the same of kv_budget
    mean_queue: jax.Array  # requests
    rejected: jax.Array  # requests in the episode
    arrivals: jax.Array  # requests in the episode
    evictions: jax.Array  # events in the episode
    oom_share: jax.Array  # share of steps out of memory
    bound_share: jax.Array  # share of rewards at -1 or 1
    goodput: jax.Array  # tokens/s of the seconds whose median TTFT and TPOT meet the strictest class's objectives
    slo_attainment: jax.Array  # share of seconds whose 99th percentile of TTFT and whose TPOT do


def _check(seeds: Any, params: EnvParams, length: int) -> jax.Array:
    seeds = np.asarray(seeds) if not isinstance(seeds, jax.Array) else seeds
    if seeds.ndim != 1 or seeds.shape[0] == 0:
        raise ValueError(f"seeds: shape {seeds.shape}; must be a vector of at least one seed")
    if not jnp.issubdtype(seeds.dtype, jnp.integer):
        raise TypeError(f"seeds: dtype {seeds.dtype}; must be whole numbers")
    if isinstance(seeds, np.ndarray) and (seeds.min() < 0 or seeds.max() >= 2**32):
        raise ValueError(f"seeds: {seeds.min()} to {seeds.max()}; must be from 0 to {2**32 - 1}")
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"length = {length!r}: must be a whole number of at least 1")
    tasks = jnp.shape(params.task_id)
    if tasks not in ((), (seeds.shape[0],)):
        raise ValueError(f"params: batch shape {tasks}; must be () or ({seeds.shape[0]},), one task a seed")
    return jnp.asarray(seeds, jnp.uint32)


def _spread(carry: Any, axis: int | None, seeds: jax.Array) -> Any:
    if axis == 0:
        return carry
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds.shape[0], *jnp.shape(x))), carry)


def _params_axis(params: EnvParams) -> int | None:
    return 0 if jnp.ndim(params.task_id) else None


def act(policy: Policy, state: Any, observation: ServeObservation, carry: Any) -> tuple[ServeAction, Any]:
    """One policy call for one environment, with the key of (seed, step)."""
    answer = policy(random.policy_key(state.seed, state.time), observation, carry)
    action, carry = answer if isinstance(answer, tuple) else (answer, carry)
    return action.as_arrays(), carry


def rollout(
    env: Environment,
    params: EnvParams,
    policy: Policy,
    seeds: Any,
    *,
    length: int = EPISODE_LENGTH,
    carry: Any = None,
    carry_axis: int | None = None,
) -> Trajectory:
    """Roll a policy out and keep every step. Compiles once per (environment, policy, shapes), not per seed or task.

    Args:
        env: from ``make``.
        params: one task, or a batch of tasks with one entry a seed (stack the leaves).
        policy: ``policy(key, observation, carry)`` for one environment; see ``Policy``.
        seeds: whole numbers, shape (environments,).
        length: steps; beyond 200 auto-reset starts new episodes.
        carry: what the policies start with: one pytree for all, or with ``carry_axis=0`` one entry a seed.
        carry_axis: None or 0.

    Returns:
        ``Trajectory`` with leading axes (length, environments).

    Raises:
        ValueError, TypeError: seeds or length are not usable.
    """
    seeds = _check(seeds, params, length)
    spread = _spread(carry, carry_axis, seeds)
    return parallel.run(_rollout, (env.suited_to(params), policy, length), params, seeds, spread, axis=1, split=False)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rollout(
    env: Environment, policy: Policy, length: int, params: EnvParams, seeds: jax.Array, carry: Any
) -> Trajectory:
    axis = _params_axis(params)

    def one(state: Any, observation: Any, memory: Any, task: EnvParams) -> Any:
        action, memory = act(policy, state, observation, memory)
        after, state, reward, terminated, truncated, info = env.step(None, state, action, task)
        row = Trajectory(
            observation=observation,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            metrics=info["metrics"],
            workload=info["workload"],
            oom=info["oom"],
            next_observation=info["final_observation"],
        )
        return (state, after, memory), row

    def body(loop: Any, _: None) -> Any:
        state, observation, memory = loop
        return jax.vmap(one, in_axes=(0, 0, 0, axis))(state, observation, memory, params)

    observation, state = jax.vmap(env.reset_seed, in_axes=(0, axis))(seeds, params)
    return jax.lax.scan(body, (state, observation, carry), None, length=length)[1]


def evaluate(
    env: Environment,
    params: EnvParams,
    policy: Policy,
    seeds: Any,
    *,
    length: int = EPISODE_LENGTH,
    carry: Any = None,
    carry_axis: int | None = None,
) -> EpisodeStatistics:
    """Roll a policy out and keep statistics only: same arguments and the same episodes as ``rollout``.

    Returns:
        ``EpisodeStatistics``, each field of shape (environments,). Score them with ``grader.score_aggregates``.
    """
    seeds = _check(seeds, params, length)
    spread = _spread(carry, carry_axis, seeds)
    return parallel.run(_evaluate, (env.suited_to(params), policy, length), params, seeds, spread, axis=0, split=True)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluate(
    env: Environment, policy: Policy, length: int, params: EnvParams, seeds: jax.Array, carry: Any
) -> EpisodeStatistics:
    axis = _params_axis(params)

    def one(state: Any, observation: Any, memory: Any, previous: Any, sums: Any, task: EnvParams) -> Any:
        action, memory = act(policy, state, observation, memory)
        first = state.time == 0
        observation, state, reward, _, _, info = env.step(None, state, action, task)
        metrics, traffic, final = info["metrics"], info["workload"], info["final_observation"]
        knobs = (action.batch_size.astype(jnp.float32), action.kv_budget)
        slo, quick = task.slo_ms[..., 0], metrics.tpot_ms <= task.engine.slo_tpot_ms
        changes = tuple(jnp.where(first, 0.0, now - before) for now, before in zip(knobs, previous, strict=True))
        terms = {
            "reward": reward,
            "tps": metrics.tokens_per_sec,
            "ttft_p50": metrics.ttft_p50_ms,
            "ttft_p99": metrics.ttft_p99_ms,
            "tpot": metrics.tpot_ms,
            "violations": metrics.slo_violations,
            "violation_rate": final.slo_violation_rate,
            "cost": metrics.cost_per_1k,
            "queue": traffic.queue_depth,
            "rejected": traffic.rejected,
            "arrivals": traffic.arrivals,
            "evictions": metrics.eviction_events,
            "oom": info["oom"],
            "bound": jnp.abs(reward) >= 1.0,
            "good": jnp.where(quick & (metrics.ttft_p50_ms <= slo), metrics.tokens_per_sec, 0.0),
            "attained": quick & (metrics.ttft_p99_ms <= slo),
            "batch": changes[0],
            "batch_square": changes[0] ** 2,
            "kv": changes[1],
            "kv_square": changes[1] ** 2,
        }
        peak = jnp.maximum(sums["peak_memory"], metrics.gpu_memory_gb)
        sums = {name: sums[name] + value for name, value in terms.items()} | {"peak_memory": peak}
        return state, observation, memory, knobs, sums

    def body(loop: Any, _: None) -> Any:
        state, observation, memory, previous, sums = loop
        return jax.vmap(one, in_axes=(0, 0, 0, 0, 0, axis))(state, observation, memory, previous, sums, params), None

    observation, state = jax.vmap(env.reset_seed, in_axes=(0, axis))(seeds, params)
    zero = jnp.zeros(seeds.shape, jnp.float32)
    names = (
        "reward tps ttft_p50 ttft_p99 tpot violations violation_rate cost queue rejected arrivals evictions oom bound "
        "good attained batch batch_square kv kv_square peak_memory"
    ).split()
    start = (state, observation, carry, (zero, zero), {str(name): zero for name in names})
    sums = jax.lax.scan(body, start, None, length=length)[0][-1]

    def deviation(name: str) -> jax.Array:
        count = max(length - 1, 1)
        mean = sums[name] / count
        return jnp.sqrt(jnp.maximum(sums[f"{name}_square"] / count - mean * mean, 0.0))

    return EpisodeStatistics(
        total_reward=sums["reward"],
        mean_tps=sums["tps"] / length,
        mean_ttft_p50_ms=sums["ttft_p50"] / length,
        mean_ttft_p99_ms=sums["ttft_p99"] / length,
        mean_tpot_ms=sums["tpot"] / length,
        peak_memory_gb=sums["peak_memory"],
        mean_violations=sums["violations"] / length,
        mean_violation_rate=sums["violation_rate"] / length,
        total_cost=sums["cost"],
        batch_jitter=deviation("batch"),
        kv_jitter=deviation("kv"),
        mean_queue=sums["queue"] / length,
        rejected=sums["rejected"],
        arrivals=sums["arrivals"],
        evictions=sums["evictions"],
        oom_share=sums["oom"] / length,
        bound_share=sums["bound"] / length,
        goodput=sums["good"] / length,
        slo_attainment=sums["attained"] / length,
    )


def stack_params(tasks: list[EnvParams]) -> EnvParams:
    """One batched params from a list, one entry an environment, so that a batch mixes tasks."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *tasks)

"""Whole episodes in one compiled call: ``jit(scan(vmap))`` over seeds, tasks or both.

``rollout`` returns every step; ``fold`` reduces the steps as they come, so that thousands of episodes move no memory
beyond the state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes import parallel
from inferencegym_jax.episodes.policy import Policy, act, carry_on, init_carry, spread
from inferencegym_jax.episodes.wrapped import reset_seed, suited
from inferencegym_jax.models import SEEDS, EnvParams, Trajectory, check_whole, is_traced
from inferencegym_jax.scoring.aggregates import EpisodeStatistics, accumulate, no_sums, summarise

STEP_INFO = (
    "action",
    "terminated",
    "truncated",
    "metrics",
    "workload",
    "outcome",
    "oom",
    "final_observation",
    "timestep",
    "violation_rate",
)
"""What a step's ``info`` holds of a ``Trajectory``."""


def _check(seeds: Any, params: EnvParams, length: int) -> jax.Array:
    seeds = np.asarray(seeds) if not isinstance(seeds, jax.Array) else seeds
    if seeds.ndim != 1 or seeds.shape[0] == 0:
        raise ValueError(f"seeds: shape {seeds.shape}; must be a vector of at least one seed")
    if not jnp.issubdtype(seeds.dtype, jnp.integer):
        raise TypeError(f"seeds: dtype {seeds.dtype}; must be whole numbers")
    if isinstance(seeds, np.ndarray) and (seeds.min() < 0 or seeds.max() >= SEEDS):
        raise ValueError(f"seeds: {seeds.min()} to {seeds.max()}; must be from 0 to {SEEDS - 1}")
    check_whole("length", length)
    tasks = jnp.shape(params.task_id)
    if tasks not in ((), (seeds.shape[0],)):
        raise ValueError(f"params: batch shape {tasks}; must be () or ({seeds.shape[0]},), one task a seed")
    return parallel.as_array(seeds.astype(np.uint32))


def steps_of(params: EnvParams, length: int | None) -> int:
    """Steps of a rollout: ``length``, or where it is None the episode of the task.

    Raises:
        ValueError: no length for tasks of different ones, or for params that are traced and so cannot be read.
    """
    if length is not None:
        return length
    if is_traced(params.episode_length):
        raise ValueError("length: must be given where params are traced, which hides the task's episode_length")
    lengths = np.unique(np.asarray(params.episode_length)).tolist()
    if len(lengths) > 1:
        raise ValueError(f"length: must be given for a batch of tasks whose episodes have {lengths} steps")
    return int(lengths[0])


def _with_weights(policy: Policy) -> Partial:
    return policy if isinstance(policy, Partial) else Partial(policy)


def _params_axis(params: EnvParams) -> int | None:
    return 0 if jnp.ndim(params.task_id) else None


def _step(env: Any, policy: Policy, loop: Any, task: EnvParams) -> tuple[Any, Trajectory]:
    """One step of one environment: ((state, observation, policy's carry), what happened)."""
    state, observation, carry = loop
    action, carry = act(policy, state, observation, carry)
    after, state, reward, *_, info = env.step(None, state, action, task)
    absent = [name for name in STEP_INFO if name not in info]
    if absent:
        raise KeyError(f"info[{absent[0]!r}]: {type(env).__name__}.step drops it; a wrapper passes info on")
    row = Trajectory(
        observation=observation,
        reward=reward,
        next_observation=info["final_observation"],
        **{name: info[name] for name in STEP_INFO if name != "final_observation"},
    )
    return (state, after, carry_on(policy, carry, row.terminated | row.truncated)), row


def rollout(
    env: Environment | Any,
    params: EnvParams | Any,
    policy: Policy,
    seeds: Any,
    *,
    length: int | None = None,
    carry: Any = None,
    carry_axis: int | None = None,
) -> Trajectory:
    """Roll a policy out and keep every step. Compiles once per (environment, policy, shapes), not per seed or task.

    Args:
        env: from ``make``, or a wrapper of it, whose observations, actions and rewards then count.
        params: one task, or a batch of tasks with one entry a seed (stack the leaves).
        policy: ``policy(key, observation, carry)`` for one environment; see ``policy.Policy``.
        seeds: whole numbers, shape (environments,).
        length: steps; default: one episode of the task. Beyond its end auto-reset starts the next, and a policy with
            ``init_carry`` forgets.
        carry: what the policies start with: one pytree for all, or with ``carry_axis=0`` one entry a seed. Default:
            ``init_carry`` of the policy.
        carry_axis: None or 0.

    Returns:
        ``Trajectory`` with leading axes (length, environments).

    Raises:
        ValueError, TypeError: seeds or length are not usable.
    """
    length = steps_of(params, length)
    seeds = _check(seeds, params, length)
    own, common = (carry, None) if carry_axis == 0 else (None, carry)
    shared = _with_weights(policy), common
    static = suited(env, params), length
    return parallel.run(_rollout, static, params, seeds, own, shared, axis=1, split=False)


def _begin(env: Any, params: EnvParams, policy: Policy, seeds: jax.Array, own: Any, common: Any) -> Any:
    """(states, observations, policy's carries) before the first step; the carries are ``own``, ``common`` for each, or
    where neither is given the policy's first."""
    start = functools.partial(reset_seed, env)
    observation, state = jax.vmap(start, in_axes=(0, _params_axis(params)))(seeds, params)
    if own is None:
        own = spread(init_carry(policy) if common is None else common, seeds.shape[0])
    return state, observation, own


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rollout(env: Any, length: int, params: EnvParams, seeds: jax.Array, own: Any, shared: Any) -> Trajectory:
    policy, common = shared
    one = jax.vmap(functools.partial(_step, env, policy), in_axes=(0, _params_axis(params)))
    start = _begin(env, params, policy, seeds, own, common)
    return jax.lax.scan(lambda loop, _: one(loop, params), start, None, length=length)[1]


def fold(
    env: Environment | Any,
    params: EnvParams | Any,
    policy: Policy,
    seeds: Any,
    function: Callable[[Any, Trajectory, EnvParams], Any],
    start: Any,
    *,
    length: int | None = None,
    carry: Any = None,
    carry_axis: int | None = None,
) -> Any:
    """Roll a policy out and reduce its steps as they come instead of keeping them: a rollout that needs no memory.

    Same episodes as ``rollout``, several times as fast on a CPU: a part of the batch runs on each core, and only totals
    move. Compiles once per (environment, policy, function, shapes), so pass the same function again.

    Args:
        env: as for ``rollout``, like params, policy, seeds, length, carry and carry_axis.
        function: ``function(total, step, params) -> total`` for one environment; ``step`` is a ``Trajectory`` without
            leading axes, ``params`` that environment's task. Hashable.
        start: the first total of every environment, a pytree of arrays or numbers.

    Returns:
        The last totals, leading axis (environments,).

    Raises:
        ValueError, TypeError: seeds or length are not usable.
    """
    length = steps_of(params, length)
    seeds = _check(seeds, params, length)
    own, common = (carry, None) if carry_axis == 0 else (None, carry)
    shared = _with_weights(policy), common, start
    static = suited(env, params), length, function
    return parallel.run(_fold, static, params, seeds, own, shared, axis=0, split=True)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fold(
    env: Environment | Any,
    length: int,
    function: Callable[[Any, Trajectory, EnvParams], Any],
    params: EnvParams | Any,
    seeds: jax.Array,
    own: Any,
    shared: Any,
) -> Any:
    policy, common, start = shared

    def one(loop: Any, total: Any, task: EnvParams) -> Any:
        loop, row = _step(env, policy, loop, task)
        return loop, function(total, row, task)

    def body(both: Any, _: None) -> Any:
        return jax.vmap(one, in_axes=(0, 0, _params_axis(params)))(both[0], both[1], params), None

    first = _begin(env, params, policy, seeds, own, common), spread(start, seeds.shape[0])
    return jax.lax.scan(body, first, None, length=length)[0][1]


def stack_params(tasks: list[EnvParams]) -> EnvParams:
    """One batched params from a list, one entry an environment, so that a batch mixes tasks."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *tasks)


def evaluate(
    env: Environment | Any,
    params: EnvParams | Any,
    policy: Policy,
    seeds: Any,
    *,
    length: int | None = None,
    carry: Any = None,
    carry_axis: int | None = None,
) -> EpisodeStatistics:
    """Roll a policy out and keep statistics only: same arguments and the same episodes as ``rollout``.

    Returns:
        ``EpisodeStatistics``, each field of shape (environments,). Score them with ``grader.score_aggregates``.
    """
    sums, peak, _ = fold(
        env, params, policy, seeds, accumulate, no_sums(), length=length, carry=carry, carry_axis=carry_axis
    )
    return summarise(sums, peak)

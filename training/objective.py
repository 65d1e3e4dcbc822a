"""What training maximises: the environment's reward and, where a config asks for it, what the grader scores besides.

``signal = (1 - score_share) reward + score_share (score rate - stability_weight unrest) - late_weight missed share
- memory_weight planned excess - crash_weight can run out``, with the grader's ``score_rate``. What no second has alone:
the cost component of an open-loop score is capped where an episode has too few requests on time; ``late_weight`` is the
price of that. The reward says nothing of a task's memory limit or of
unrest, which graders ask for, so a policy trained on return alone may score less than a static action
(``docs/training.md`` has the figures); and on task 3 running out of memory pays. The environment's reward is never
changed: every return reported is the environment's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax import EnvParams, MetricsSnapshot, RequestOutcome, ServeAction
from inferencegym_jax.environment import effective_action
from inferencegym_jax.scoring.grader import score_rate, unrest
from inferencegym_jax.tasks import get_task
from training.config import Hyperparameters, TrainConfig


def planned_excess(env: Any, params: EnvParams, action: ServeAction) -> jax.Array:
    """``log(1 + x)``, x the GPU memory above the task's limit, in the grader's unit of 10 GB, if the task's longest
    prompts came now.

    A function of the action alone: the same constraint as the peak over an episode, without waiting for the rare
    prompt that shows it.
    """
    return jnp.log1p(jnp.maximum(planned_memory(env, params, action) - params.memory_limit_gb, 0.0) / 10.0)


def planned_memory(env: Any, params: EnvParams, action: ServeAction) -> jax.Array:
    """GB that an action takes if the task's longest prompts come; float32[...]. A closed-loop task's."""
    longest = jnp.maximum(params.short_high, params.long_high)
    action = effective_action(env.table, action, params)
    return env.grid.lookup(action, jnp.broadcast_to(longest, jnp.shape(action.kv_budget)))["gpu_mem_gb"]


def training_signal(
    env: Any,
    params: EnvParams,
    config: TrainConfig,
    hyper: Hyperparameters,
    reward: jax.Array,
    metrics: MetricsSnapshot,
    outcome: RequestOutcome,
    action: ServeAction,
    before: ServeAction,
    is_first: jax.Array,
) -> jax.Array:
    """The number that PPO maximises for one step of every environment; float32[environments].

    Args:
        env, params, config: the task; a term whose weight in ``config.hyper`` is 0 is not computed.
        hyper: weights, may be traced.
        reward: the environment's.
        metrics: of the step.
        outcome: of its requests.
        action, before: of this step and of the one before it.
        is_first: bool, an episode's first step, which has none before it.
    """
    signal = reward
    if config.uses("score_share"):
        spec = get_task(config.task)
        rate = score_rate(spec, params, metrics, outcome)
        if config.uses("stability_weight"):
            rate = rate - hyper.stability_weight * jnp.where(is_first, 0.0, unrest(spec, action, before))
        signal = (1.0 - hyper.score_share) * reward + hyper.score_share * rate
    if config.uses("late_weight"):
        missed = (outcome.late + outcome.rejected + outcome.failed).sum(axis=-1)
        signal = signal - hyper.late_weight * missed / params.engine.demand_rps
    if config.uses("memory_weight"):
        signal = signal - hyper.memory_weight * planned_excess(env, params, action)
    if config.uses("crash_weight"):
        signal = signal - hyper.crash_weight * (planned_memory(env, params, action) > params.oom_limit_gb)
    return signal

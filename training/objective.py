"""What training maximises: the environment's reward and, where a config asks for it, what the grader scores besides.

``signal = (1 - score_share) reward + score_share (score rate - stability_weight unrest) - memory_weight planned
excess``. The reward says nothing of a task's memory limit or of unrest, which graders ask for, so a policy trained on
return alone may score less than a static action (``docs/training.md`` has the figures). The environment's reward is
never changed: every return reported is the environment's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax import Environment, EnvParams, MetricsSnapshot, ServeAction, TaskSpec
from inferencegym_jax.environment import effective_action
from inferencegym_jax.models import EPISODE_LENGTH, KNOBS
from inferencegym_jax.scoring.grader import LAST_OWN
from inferencegym_jax.tasks import get_task
from training.config import Hyperparameters, TrainConfig


def score_rate(spec: TaskSpec, params: EnvParams, metrics: MetricsSnapshot) -> jax.Array:
    """One second's share in the grader's score (ENVIRONMENT.md 7), float32[...], clipped to [-1, 1].

    Its mean over an episode is the score as long as no component of the grader is clipped, less the two parts that
    are no sum over
    seconds: task 2's peak memory counts as kept (``planned_excess`` is its part of the signal), task 3's stability as
        0 (``unrest``).
    """
    if spec.id == 1:
        value = metrics.tokens_per_sec / params.optimal_tps
    elif spec.id == 2:
        value = 1.0 - 0.5 * metrics.ttft_p50_ms / params.slo_ms[0]
    elif spec.id > LAST_OWN:
        slo, quick = params.slo_ms[0], metrics.tpot_ms <= params.engine.slo_tpot_ms
        good = jnp.where(quick & (metrics.ttft_p50_ms <= slo), metrics.tokens_per_sec, 0.0)
        value = (
            0.40 * good / params.optimal_tps
            + 0.30 * (quick & (metrics.ttft_p99_ms <= slo))
            + 0.20 * (1.0 - metrics.cost_per_1k / (2.0 * params.cost_normaliser))
        )
    else:
        value = (
            0.40 * metrics.tokens_per_sec / params.optimal_tps
            + 0.30 * (1.0 - metrics.slo_violations / 100.0)
            + 0.20 * (1.0 - metrics.cost_per_1k * EPISODE_LENGTH / (spec.cost_budget or 5.0))
        )
    return jnp.clip(value, -1.0, 1.0)


def unrest(action: ServeAction, before: ServeAction) -> jax.Array:
    """What a change of knobs costs in task 3's stability, as a mean of absolute changes instead of their standard
    deviation."""
    low, high = KNOBS["batch_size"].low, KNOBS["batch_size"].high
    batch = jnp.abs(action.batch_size - before.batch_size) / (high - low + 1)
    return 0.10 * (batch + jnp.abs(action.kv_budget - before.kv_budget)) / 0.5


def planned_excess(env: Environment, params: EnvParams, action: ServeAction) -> jax.Array:
    """``log(1 + x)``, x the GPU memory above the task's limit, in the grader's unit of 10 GB, if the task's longest
    prompts came now.

    A function of the action alone: the same constraint as the peak over an episode, without waiting for the rare
        prompt that shows it.
    """
    longest = jnp.maximum(params.short_high, params.long_high)
    action = effective_action(env.table, action, params)
    found = env.grid.lookup(action, jnp.broadcast_to(longest, jnp.shape(action.kv_budget)))
    return jnp.log1p(jnp.maximum(found["gpu_mem_gb"] - params.memory_limit_gb, 0.0) / 10.0)


def training_signal(
    env: Environment,
    params: EnvParams,
    config: TrainConfig,
    hyper: Hyperparameters,
    reward: jax.Array,
    metrics: MetricsSnapshot,
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
        action, before: of this step and of the one before it.
        is_first: bool, an episode's first step, which has none before it.
    """
    signal = reward
    if config.uses("score_share"):
        rate = score_rate(get_task(config.task), params, metrics)
        if config.uses("stability_weight"):
            rate = rate - hyper.stability_weight * jnp.where(is_first, 0.0, unrest(action, before))
        signal = (1.0 - hyper.score_share) * reward + hyper.score_share * rate
    if config.uses("memory_weight"):
        signal = signal - hyper.memory_weight * planned_excess(env, params, action)
    return signal

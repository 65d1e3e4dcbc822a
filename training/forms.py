"""What a network reads and sets: the observation or its relative form; the knobs, or corrections of a controller.

``config, problem -> view -> environment``; ``outputs -> sample -> raw -> what the view takes``. The rest of training
knows no difference between the forms.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax import Problem, ServeAction
from inferencegym_jax.adapters.relative_views import CorrectedControl, RelativeObservation
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import KNOBS
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.policies import network as knobs
from inferencegym_jax.policies.corrected import CORRECTIONS, mean_positions, positions_policy
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.network import PolicyNetwork, network_policy
from inferencegym_jax.tasks import get_task
from training import distribution
from training.config import TrainConfig
from training.headroom import plain, published, tuned_plan

CORRECTED_BY: dict[str, str] = {
    "lease": "prefill_disagg",
    "release": "prefill_disagg",
    "drafts": "spec_length",
}
"""Correction -> the knob that it moves; where a task locks the knob the correction enters no gradient."""


def view(config: TrainConfig, problem: Problem) -> Any:
    """The environment as the networks of a config see it."""
    if config.acts == "correction":
        return CorrectedControl(problem.env, base_plan(config), problem.params)
    return RelativeObservation(problem.env, problem.params) if config.reads == "relative" else problem.env


def base_plan(config: TrainConfig) -> LoadPlan:
    """The settings that a config corrects: those that the search of its task, or of ``plan_of``, found.

    Raises:
        ValueError: no search of that task is in docs/headroom.
    """
    task = get_task(config.task if config.plan_of is None else config.plan_of)
    try:
        return tuned_plan(published(task.id))
    except FileNotFoundError as error:
        raise ValueError(f"acts = 'correction': {error}; python -m training headroom --task {task.id}") from None


def idle(config: TrainConfig) -> Any:
    """What one environment does before anything is learned: the baseline's action, or no correction."""
    return jnp.zeros(len(CORRECTIONS)) if config.acts == "correction" else ServeAction().as_arrays()


def metadata(config: TrainConfig) -> dict[str, Any]:
    """What a policy's file says of its form: how to play it."""
    form: dict[str, Any] = {} if config.reads == "observation" else {"reads": config.reads}
    if config.acts == "correction":
        form |= {"acts": config.acts, "plan": plain(base_plan(config))}
    return form


def sample(config: TrainConfig, outputs: jax.Array, log_std: jax.Array, key: jax.Array) -> jax.Array:
    """A raw action drawn from the actor's distribution, float32[..., numbers]; see ``network.sample``."""
    if config.acts == "knobs":
        return knobs.sample(outputs, log_std, key)
    data = jax.random.key_data(key)
    words = counters.words(data[..., 0], data[..., 1], counters.POLICY, len(CORRECTIONS))
    normals = jnp.stack([counters.normal(word) for word in words], axis=-1)
    return mean_positions(outputs) + jnp.exp(log_std) * normals


def taken(config: TrainConfig, raw: jax.Array) -> Any:
    """What the view's step is given for a raw action."""
    return knobs.decode(raw) if config.acts == "knobs" else jnp.clip(raw, -1.0, 1.0)


def log_prob_and_entropy(
    config: TrainConfig, outputs: jax.Array, log_std: jax.Array, raw: jax.Array, active: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See ``distribution.log_prob_and_entropy``; of corrections a Gaussian each."""
    if config.acts == "knobs":
        return distribution.log_prob_and_entropy(outputs, log_std, raw, active)
    free = jnp.stack([active[list(KNOBS).index(CORRECTED_BY[name])] for name in CORRECTIONS]).astype(jnp.float32)
    z = (raw - mean_positions(outputs)) * jnp.exp(-log_std)
    half = distribution.HALF_LOG_TWO_PI
    log_prob = ((-0.5 * z * z - log_std - half) * free).sum(axis=-1)
    return log_prob, jnp.broadcast_to(((log_std + 0.5 + half) * free).sum(), log_prob.shape)


def policy(config: TrainConfig, network: PolicyNetwork) -> Policy:
    """The most likely actions of a network, as a policy of the view."""
    return network_policy(network) if config.acts == "knobs" else positions_policy(network)

"""What a network reads and sets: the observation or its relative form; the knobs, or corrections of a controller.

``config, problem -> view -> environment``; ``outputs -> sample -> raw -> what the view takes``. The rest of training
knows no difference between the forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

import inferencegym_jax as ig
from inferencegym_jax import Problem, ServeAction
from inferencegym_jax.adapters.queue_view import CorrectedQueue
from inferencegym_jax.adapters.relative_views import CorrectedControl, RelativeObservation
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction
from inferencegym_jax.fleet.rules import RulePlan
from inferencegym_jax.models import KNOBS, Knob
from inferencegym_jax.policies import network as knobs
from inferencegym_jax.policies.corrected import CORRECTIONS, mean_positions, positions_policy, sampled_positions
from inferencegym_jax.policies.corrected_queue import QUEUE_CORRECTIONS
from inferencegym_jax.policies.fleet_control import FLEET_CORRECTIONS, view_policy
from inferencegym_jax.policies.fleet_control import knobs_of as fleet_knobs_of
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.network import PolicyNetwork, network_policy
from inferencegym_jax.policies.policy_file import corrects, load_network, reads_relative
from inferencegym_jax.tasks import get_task
from inferencegym_jax.traffic.days import SEED_STRIDE
from training import distribution, fleet_forms
from training.config import Hyperparameters, TrainConfig
from training.headroom import plain, published, tuned_plan
from training.objective import training_signal

CORRECTED_BY: dict[str, str] = {
    "lease": "prefill_disagg",
    "release": "prefill_disagg",
    "drafts": "spec_length",
    "slots": "batch_size",
    "second_gpu": "prefill_disagg",
    "memory": "kv_budget",
}
"""Correction -> the knob that it moves; where a task locks the knob the correction enters no gradient."""


def view(config: TrainConfig, problem: Problem) -> Any:
    """The environment as the networks of a config see it."""
    if config.is_fleet:
        return fleet_forms.view(cast(Any, problem.env), fleet_plan(config))
    if config.corrects_queue:
        return CorrectedQueue(problem.env, problem.params)
    if config.acts == "correction":
        return CorrectedControl(problem.env, base_plan(config), problem.params)
    return RelativeObservation(problem.env, problem.params) if config.reads == "relative" else problem.env


def fleet_plan(config: TrainConfig) -> RulePlan | None:
    """The rule that a fleet's config corrects; None where it sets the knobs itself."""
    task = config.task if config.plan_of is None else config.plan_of
    return fleet_forms.plan_of(task, config.base_rule) if config.acts == "correction" else None


def load_correction(name: str, path: str | Path) -> tuple[PolicyNetwork, dict[str, Any]]:
    """A policy file's network of corrections of the load-following controller, and its metadata.

    Args:
        name: of the field or option that says the file.
        path: of the file.

    Raises:
        FileNotFoundError, ValueError: no policy file, or one of another kind.
    """
    network, about = load_network(path)
    if not (corrects(about) and reads_relative(about)):
        raise ValueError(f"{name} = {str(path)!r}: must correct the load-following controller (acts: correction)")
    return network, about


def base_plan(config: TrainConfig) -> LoadPlan:
    """The settings that a config corrects: those that the search of its task, or of ``plan_of``, found, or those of a
    policy file.

    Raises:
        ValueError: no search of that task is in docs/headroom, or a file of another kind.
        FileNotFoundError: no such file.
    """
    if config.plan_file is not None:
        return LoadPlan(**load_correction("plan_of", config.plan_file)[1]["plan"])
    task = get_task(config.task if config.plan_of is None else config.plan_of)
    try:
        return tuned_plan(published(task.id))
    except FileNotFoundError as error:
        raise ValueError(f"acts = 'correction': {error}; python -m training headroom --task {task.id}") from None


def idle(config: TrainConfig) -> Any:
    """What one environment does before anything is learned: the baseline's action, or no correction."""
    if config.is_fleet:
        return fleet_forms.idle(fleet_plan(config), len(FLEET_CORRECTIONS))
    return jnp.zeros(len(corrections(config))) if config.acts == "correction" else ServeAction().as_arrays()


def metadata(config: TrainConfig) -> dict[str, Any]:
    """What a policy's file says of its form: how to play it."""
    if config.is_fleet:
        plan = fleet_plan(config)
        own = {} if plan is None else {"acts": config.acts, "plan": plain(plan)}
        return {"reads": "fleet", **own}
    form: dict[str, Any] = {} if config.reads == "observation" else {"reads": config.reads}
    if config.corrects_queue:
        return form | {"acts": config.acts}  # the controller is planned anew for the table and task where it acts
    if config.acts == "correction":
        form |= {"acts": config.acts, "plan": plain(base_plan(config))}
    return form


def sample(config: TrainConfig, outputs: jax.Array, log_std: jax.Array, key: jax.Array) -> jax.Array:
    """A raw action drawn from the actor's distribution, float32[..., numbers]; see ``network.sample``."""
    if config.acts == "knobs":
        return knobs.sample(outputs, log_std, key, knobs_of(config))
    return sampled_positions(outputs, log_std, key)


def taken(config: TrainConfig, raw: jax.Array) -> Any:
    """What the view's step is given for a raw action."""
    if config.acts == "correction":
        return jnp.clip(raw, -1.0, 1.0)
    return fleet_knobs_of(raw) if config.is_fleet else knobs.decode(raw)


def log_prob_and_entropy(
    config: TrainConfig, outputs: jax.Array, log_std: jax.Array, raw: jax.Array, active: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See ``distribution.log_prob_and_entropy``; of corrections a Gaussian each."""
    if config.acts == "knobs":
        return distribution.log_prob_and_entropy(outputs, log_std, raw, active, knobs_of(config))
    free = jnp.ones(len(FLEET_CORRECTIONS))
    if not config.is_fleet:
        corrected_knobs = [CORRECTED_BY[name] for name in corrections(config)]
        free = jnp.stack([active[list(KNOBS).index(knob)] for knob in corrected_knobs]).astype(jnp.float32)
    z = (raw - mean_positions(outputs)) * jnp.exp(-log_std)
    half = distribution.HALF_LOG_TWO_PI
    log_prob = ((-0.5 * z * z - log_std - half) * free).sum(axis=-1)
    return log_prob, jnp.broadcast_to(((log_std + 0.5 + half) * free).sum(), log_prob.shape)


def policy(config: TrainConfig, network: PolicyNetwork) -> Policy:
    """The most likely actions of a network, as a policy of the view."""
    if config.is_fleet:
        return view_policy(network, corrects=config.acts == "correction")
    return network_policy(network) if config.acts == "knobs" else positions_policy(network)


def knobs_of(config: TrainConfig) -> Mapping[str, Knob]:
    """The table of the knobs that a config's task has."""
    return FLEET_KNOBS if config.is_fleet else KNOBS


def corrections(config: TrainConfig) -> tuple[str, ...]:
    """The corrections that a config's network gives."""
    if config.is_fleet:
        return FLEET_CORRECTIONS
    return QUEUE_CORRECTIONS if config.corrects_queue else CORRECTIONS


def first_action(config: TrainConfig) -> Any:
    """The action that stands for the one before an episode's first."""
    return FleetAction().as_arrays() if config.is_fleet else ServeAction().as_arrays()


def free_knobs(config: TrainConfig, params: Any) -> jax.Array:
    """bool[knobs]: those that the task leaves to the agent."""
    return fleet_forms.free_knobs(params) if config.is_fleet else jnp.asarray(params.active)


def signal(
    env: Any,
    params: Any,
    config: TrainConfig,
    hyper: Hyperparameters,
    episode: Any,
    reward: jax.Array,
    info: Any,
    before: Any,
    is_first: jax.Array,
) -> jax.Array:
    """What PPO maximises in one step of every environment, float32[environments]; see ``objective.training_signal`` and
    ``fleet_forms.signal``."""
    if config.is_fleet:
        return fleet_forms.signal(params, hyper, reward, info, config.uses("late_limit"))
    return training_signal(
        env,
        env.episode_params(episode, params),
        config,
        hyper,
        reward,
        info["metrics"],
        info["outcome"],
        info["action"],
        before,
        is_first,
    )


def evaluate(config: TrainConfig, env: Any, params: Any, network: PolicyNetwork, first: Any, count: int) -> Any:
    """Episodes of seeds from ``first`` on, days apart, under a network's most likely actions: ``EpisodeStatistics``, of
    a fleet ``FleetRun``."""
    own = policy(config, network)
    if config.is_fleet:
        # the validation's params: of fleet-anywhere conditions that are not trained on
        validation = cast(Any, config.problem()).validation
        return fleet_forms.evaluate(env, validation, own, first, count)
    return ig.evaluate(env, params, own, first + SEED_STRIDE * jnp.arange(count))


def score(config: TrainConfig, found: Any) -> Any:
    """float64[episodes]: the grader's score of a training evaluation; of a fleet see ``FleetRun``."""
    return cast(Any, config.problem()).score(found)

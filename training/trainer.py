"""The train loop: ``make_train(config)`` gives one function of a seed that trains a policy in a single compiled call.

``TrainState -> update (rollout, advantages, epochs of minibatches) -> chunk (updates, evaluation) -> train (all
chunks)``. All of them are pure, so seeds and hyperparameters are vmap axes; ``axis`` names the mesh axis over which
environments are split, if they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inferencegym_jax import EnvParams, EpisodeStatistics
from inferencegym_jax.episodes.policy import spread
from inferencegym_jax.episodes.wrapped import episode_of, with_seed
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.numerics.select import select
from inferencegym_jax.policies.layout import continuous, head_sizes
from inferencegym_jax.policies.memory import NetworkCarry
from inferencegym_jax.policies.network import ObservationStatistics, first_carry, standardise
from inferencegym_jax.traffic.days import SEED_STRIDE
from training import forms
from training.config import Hyperparameters, TrainConfig
from training.losses import advantages_and_targets, clipped_objective, value_loss
from training.memory import Batch, forget, mean_by_unit, pick, remember, with_hidden
from training.networks import ActorCritic, starting_bias, to_policy
from training.statistics import initial_statistics, mean_over, merge

TRAINING_BIT = 1 << 31  # every training episode's seed has it; no evaluation seed has it
VALIDATION_SEED = 1 << 30  # first seed of the evaluations during training; held-out seeds count up from 0
ENVIRONMENTS = 64  # purpose of the counters that draw environment seeds; the environment's own purposes are below it
EPSILON = 1e-5  # of Adam, after Huang et al., "The 37 Implementation Details of PPO", 2022


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training carries from one update to the next; a checkpoint holds this."""

    variables: Any  # of ActorCritic
    optimiser: Any  # optax
    statistics: ObservationStatistics
    env_state: Any  # of the environment or the view on it, batched over environments
    observation: Any  # batched over environments
    action: Any  # the last one, batched over environments
    update: jax.Array  # int32, updates done
    seed: jax.Array  # uint32, of the run
    carry: NetworkCarry | None = None  # what the networks remember, batched over environments; None: nothing


Metrics = dict[str, jax.Array]
Chunk = Callable[[TrainState, Hyperparameters], tuple[TrainState, Metrics, EpisodeStatistics]]


def network_of(config: TrainConfig) -> ActorCritic:
    """The networks of a config; ``start: best_static`` is the best static action on its own table and log."""
    size = config.features, config.hidden_size
    if config.acts == "correction":
        many = len(forms.corrections(config))
        return ActorCritic(config.hidden, config.initial_std, None, *size, many, many)
    knobs = forms.knobs_of(config)
    start = None
    if config.start != "middle":
        best = config.start == "best_static"
        with jax.ensure_compile_time_eval():  # a constant also where all of this is traced
            start = starting_bias(config.problem().best_static if best else forms.first_action(config), knobs)
    size += sum(head_sizes(knobs).values()), len(continuous(knobs))
    return ActorCritic(config.hidden, config.initial_std, start, *size)


def apply(config: TrainConfig, variables: Any, x: jax.Array, method: str = "__call__") -> Any:
    """Outputs of the networks or of one of them (``method`` "actor" or "critic")."""
    return network_of(config).apply(variables, x, method=method)


def optimiser_of(config: TrainConfig, hyper: Hyperparameters) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then Adam with a linearly falling learning rate."""
    steps = config.updates * config.epochs * config.minibatches
    schedule = optax.linear_schedule(hyper.learning_rate, hyper.final_learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(hyper.max_gradient_norm), optax.adam(schedule, eps=EPSILON))


def training_seeds(seed: jax.Array, count: int) -> jax.Array:
    """uint32[count] episode seeds of a run, all with the training bit."""
    return counters.hash4(seed, jnp.arange(count), ENVIRONMENTS)[0] | jnp.uint32(TRAINING_BIT)


def task_axis(params: Any) -> int | None:
    """0 where every environment has a task of its own, None where all have one."""
    return 0 if jnp.ndim(params.task_id) else None


def step_all(env: Any, params: EnvParams, state: Any, action: Any) -> Any:
    """One step of every environment with auto-reset, whose fresh seeds get the training bit too."""
    transition = jax.vmap(env.step, in_axes=(None, 0, 0, task_axis(params)))(None, state, action, params)
    return transition[0], with_seed(transition[1], lambda seed: seed | jnp.uint32(TRAINING_BIT)), *transition[2:]


def warm_up_steps(config: TrainConfig) -> int:
    """Environment steps that staggering takes before the first update."""
    return int(starting_offsets(config).sum()) if config.stagger else 0


def starting_offsets(config: TrainConfig) -> np.ndarray:
    """int64[environments]: steps into an episode at which staggered environments start."""
    phases = config.phases or config.environments
    phase = np.arange(config.environments) * phases // config.environments
    return phase * config.episode_length // phases


def initial_state(env: Any, params: EnvParams, config: TrainConfig, seed: Any, hyper: Hyperparameters) -> TrainState:
    """The state before the first update.

    With ``stagger`` environment i starts ``i / environments`` of an episode in, reached under the baseline's action:
    otherwise all of a rollout's environments stand in the same phase of the burst calendar.
    """
    seed = jnp.asarray(seed, jnp.uint32)
    seeds = training_seeds(seed, config.environments)
    observation, env_state = jax.vmap(env.reset_seed, in_axes=(0, task_axis(params)))(seeds, params)
    action, idle = (spread(x, config.environments) for x in (forms.first_action(config), forms.idle(config)))
    network = network_of(config)

    @jax.custom_batching.sequential_vmap  # two batched QRs (of the orthogonal kernels) wait for each other's threads
    def fresh(seed: jax.Array) -> Any:
        return network.init(jax.random.key(seed), jnp.zeros((1, config.features + config.hidden_size)))

    variables = fresh(seed)
    statistics = initial_statistics(config.features)
    carry = first_carry(config.observed, config.hidden_size, (config.environments,), config.numbers)
    if config.stagger:
        length = config.episode_length
        offsets = jnp.asarray(starting_offsets(config), jnp.int32)

        def advance(before: Any, step: jax.Array) -> tuple[Any, None]:
            observation, state, carry = before
            carry = remember(config, variables, statistics, observation, carry)[2]
            observation, state, *_ = step_all(env, params, state, idle)
            return select(step < offsets, (observation, state, carry), before), None

        start = (observation, env_state, carry)
        (observation, env_state, carry), _ = jax.lax.scan(advance, start, jnp.arange(length))
    return TrainState(
        variables=variables,
        optimiser=optimiser_of(config, hyper).init(variables),
        statistics=statistics,
        env_state=env_state,
        observation=observation,
        action=action,
        update=jnp.int32(0),
        seed=seed,
        carry=carry,
    )


def collect(
    env: Any, params: EnvParams, config: TrainConfig, state: TrainState, hyper: Hyperparameters
) -> tuple[TrainState, Batch, jax.Array, jax.Array]:
    """One rollout of all environments with the current policy.

    Returns:
        (state with the environments moved on, batch, features before they are standardised
        float32[steps, environments, features], rewards).
    """
    variables, statistics = state.variables, state.statistics
    log_std: jax.Array = variables["params"]["log_std"]
    active = forms.free_knobs(config, params)

    def step(loop: Any, _: Any) -> tuple[Any, Any]:
        env_state, observation, final, before, carry = loop
        episode = episode_of(env_state)
        is_first = episode.time == 0
        features, inputs, carry = remember(config, variables, statistics, observation, forget(config, carry, is_first))
        outputs = apply(config, variables, inputs, "actor")
        raw_action = forms.sample(config, outputs, log_std, counters.policy_key(episode.seed, episode.time))
        log_prob = forms.log_prob_and_entropy(config, outputs, log_std, raw_action, active)[0]
        transition = step_all(env, params, env_state, forms.taken(config, raw_action))
        observation, env_state, reward, terminated, truncated, info = transition
        action = info["action"]
        final = select(truncated, (info["final_observation"], carry), final)
        signal = forms.signal(env, params, config, hyper, episode, reward, info, before, is_first)
        hidden = inputs[..., config.features :]
        row = (features, hidden, raw_action, log_prob, reward, signal, terminated, truncated, is_first)
        return (env_state, observation, final, action, carry), row

    start = (state.env_state, state.observation, (state.observation, state.carry), state.action, state.carry)
    (env_state, observation, final, action, carry), rows = jax.lax.scan(step, start, None, config.rollout_length)
    features, hidden, raw_action, log_prob, reward, signal, terminated, truncated, is_first = rows

    standardised = standardise(features, statistics)
    # at most one truncation an environment a rollout (rollout_length is at most an episode): one final observation each
    next_inputs = [remember(config, variables, statistics, *pair)[1] for pair in ((observation, carry), final)]
    value = apply(config, variables, jnp.concatenate([standardised, hidden], axis=-1), "critic")
    after, at_end = apply(config, variables, jnp.stack(next_inputs), "critic")
    next_value = jnp.where(truncated, at_end, jnp.concatenate([value[1:], after[None]]))
    advantage, target = advantages_and_targets(
        signal, value, next_value, terminated, truncated, hyper.discount, hyper.gae_lambda
    )
    next_state = dataclasses.replace(state, env_state=env_state, observation=observation, action=action, carry=carry)
    batch = Batch(standardised, raw_action, log_prob, advantage, target)
    if config.has_gru and state.carry is not None:
        batch = batch._replace(is_first=is_first, hidden=state.carry.hidden)
    return next_state, batch, features, reward


def minibatch_loss(
    variables: Any, config: TrainConfig, active: jax.Array, batch: Batch, hyper: Hyperparameters
) -> tuple[jax.Array, Metrics]:
    """Clipped objective + value loss - entropy bonus of a minibatch, mean over its samples (on this device).

    Args:
        variables: of the networks.
        config: of the run.
        active: bool[knobs], those that the task leaves free.
        batch: samples; with a recurrent layer sequences (steps, environments), from ``hidden`` on.
        hyper: weights.
    """
    outputs, log_std, value = apply(config, variables, with_hidden(variables, batch))
    batch = (
        jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch._replace(hidden=None)) if config.has_gru else batch
    )
    log_prob, entropy = forms.log_prob_and_entropy(config, outputs, log_std, batch.raw, active)
    policy = clipped_objective(log_prob, batch.log_prob, batch.advantage, hyper.clip).mean()
    critic = value_loss(value, batch.target).mean()
    bonus = entropy.mean()
    log_ratio = log_prob - batch.log_prob
    metrics = {
        "policy_loss": policy,
        "value_loss": critic,
        "entropy": bonus,
        "kl": (jnp.expm1(log_ratio) - log_ratio).mean(),
        "clipped": (jnp.abs(jnp.expm1(log_ratio)) > hyper.clip).mean(),
    }
    return policy + hyper.value_weight * critic - hyper.entropy * bonus, metrics


def own_tasks(params: Any, config: TrainConfig, axis: str | None) -> Any:
    """The tasks of this device's environments, where each has its own."""
    if axis is None or task_axis(params) is None:
        return params
    count = config.environments // jax.lax.axis_size(axis)
    start = jax.lax.axis_index(axis) * count
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, count), params)


def make_update(
    env: Any, params: EnvParams, config: TrainConfig, axis: str | None = None
) -> Callable[[TrainState, Hyperparameters], tuple[TrainState, Metrics]]:
    """One PPO update: a rollout, then ``epochs`` passes over it in minibatches.

    A minibatch is a random set of the rollout's steps with every environment in each: its composition does not depend
    on how many devices share the environments, and picking it copies contiguous rows. With a recurrent layer it is a
    random set of environments with every step in each, the same set of each block (``TrainConfig.column_block``).
    """
    active = forms.free_knobs(config, params)

    def update(state: TrainState, hyper: Hyperparameters) -> tuple[TrainState, Metrics]:
        state, batch, features, reward = collect(env, own_tasks(params, config, axis), config, state, hyper)
        optimiser = optimiser_of(config, hyper)
        key = jax.random.fold_in(jax.random.key(state.seed), state.update)
        units = config.column_block if config.has_gru else config.rollout_length
        order = jax.vmap(lambda k: jax.random.permutation(k, units))(jax.random.split(key, config.epochs))
        order = order.reshape(config.epochs * config.minibatches, -1)
        moments = [mean_by_unit(config, x) for x in (batch.advantage, jnp.square(batch.advantage))]
        moments_of_units = mean_over(axis, tuple(moments))

        def descend(carry: Any, index: jax.Array) -> tuple[Any, Metrics]:
            variables, moments = carry
            part = pick(config, batch, index)
            mean, square = (x[index].mean() for x in moments_of_units)
            deviation = jnp.sqrt(jnp.maximum(square - mean * mean, 0.0))
            part = part._replace(advantage=(part.advantage - mean) / (deviation + 1e-8))
            gradient, metrics = jax.grad(minibatch_loss, has_aux=True)(variables, config, active, part, hyper)
            gradient = mean_over(axis, gradient)
            change, moments = optimiser.update(gradient, moments, variables)
            return (optax.apply_updates(variables, change), moments), metrics

        (variables, moments), metrics = jax.lax.scan(descend, (state.variables, state.optimiser), order)
        metrics = mean_over(axis, jax.tree.map(jnp.mean, metrics) | {"reward": reward.mean()})
        state = dataclasses.replace(
            state,
            variables=variables,
            optimiser=moments,
            statistics=merge(state.statistics, features, axis),
            update=state.update + 1,
        )
        return state, metrics

    return update


def make_chunk(env: Any, params: EnvParams, config: TrainConfig, axis: str | None = None, devices: int = 1) -> Chunk:
    """``evaluate_every`` updates and an evaluation of the most likely actions on validation seeds.

    The function returns (state, metrics of each update, ``EpisodeStatistics`` of the evaluation).
    """
    update = make_update(env, params, config, axis)
    # validation conditions of a fleet that is drawn stand in the order of the episodes, and are played on every device
    split = axis is not None and config.evaluation_episodes % devices == 0 and not config.is_fleet
    count = config.evaluation_episodes // devices if split else config.evaluation_episodes

    def chunk(state: TrainState, hyper: Hyperparameters) -> tuple[TrainState, Metrics, EpisodeStatistics]:
        state, metrics = jax.lax.scan(lambda s, _: update(s, hyper), state, None, config.evaluate_every)
        network = to_policy(state.variables, state.statistics, config.observed)
        first = jax.lax.axis_index(axis) * count if split else 0
        evaluation = forms.evaluate(config, env, params, network, VALIDATION_SEED + SEED_STRIDE * first, count)
        if split:
            evaluation = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), evaluation)
        return state, metrics, evaluation

    return chunk


Train = Callable[..., tuple[TrainState, Metrics, EpisodeStatistics]]


def make_train(config: TrainConfig) -> Train:
    """The whole run on the config's task as one pure function, ready for ``jax.jit`` and ``jax.vmap``; see
    ``make_train_on``."""
    problem = config.problem()
    return make_train_on(forms.view(config, problem), problem.params, config)


def make_train_on(env: Any, params: EnvParams, config: TrainConfig) -> Train:
    """``make_train`` on an environment, or the view on one that the config asks for, and params that no config names.

    ``start: best_static`` is still the best static action of the task, table and log that the config names.

    Returns:
        ``train(seed, hyper=config.hyper)``, which returns the final state, metrics of shape (chunks, updates a chunk)
        and evaluation statistics of shape (chunks, episodes).
    """
    chunk = make_chunk(env, params, config)

    def train(seed: Any, hyper: Hyperparameters = config.hyper) -> tuple[TrainState, Metrics, EpisodeStatistics]:
        def body(state: TrainState, _: None) -> tuple[TrainState, Any]:
            state, metrics, evaluation = chunk(state, hyper)
            return state, (metrics, evaluation)

        state = initial_state(env, params, config, seed, hyper)
        state, (metrics, evaluation) = jax.lax.scan(body, state, None, config.chunks)
        return state, metrics, evaluation

    return train

"""One compiled program for every rival that needs no network: a sequence of actions, or the load-following controller.

``lanes (episodes with what they are played by) -> padded to one shape -> scores or whole episodes``. Compiling an
open-loop step takes longer than playing thousands of its episodes, so rivals, their search and the oracle share it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem, ServeAction
from inferencegym_jax.episodes.policy import spread
from inferencegym_jax.models import KNOBS, EnvParams
from inferencegym_jax.numerics import draws
from inferencegym_jax.physics.observation import initial_observation
from inferencegym_jax.policies.engine_units import Engine, drawn_engine, engine_of
from inferencegym_jax.policies.load_following import LoadPlan, Memory, act
from inferencegym_jax.tasks.draws import Draws

WIDTH = 1024  # episodes of a call that scores; fewer are padded

Sequences = dict[str, np.ndarray]
"""Knob -> array (episodes, steps)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lanes:
    """What episodes are played by; a leading axis of episodes.

    Attributes:
        replays: bool, the actions; otherwise the controller.
        actions: fields of shape (episodes, steps).
        plan: of the controller.
        forecast: float32[episodes, steps], the load to come; NaN where the controller is not told.
    """

    replays: Any
    actions: ServeAction
    plan: LoadPlan
    forecast: Any

    def __len__(self) -> int:
        """Episodes."""
        return len(self.replays)


def of_sequences(sequences: Sequences) -> Lanes:
    """Episodes that replay actions."""
    episodes, steps = next(iter(sequences.values())).shape
    columns = {name: np.asarray(sequences[name], knob.dtype) for name, knob in KNOBS.items()}
    plan = jax.tree.map(lambda x: np.broadcast_to(x, episodes), LoadPlan().as_arrays())
    return Lanes(np.ones(episodes, bool), ServeAction(**columns), plan, np.full((episodes, steps), np.nan, np.float32))


def of_plans(plans: Sequence[LoadPlan], steps: int, forecast: np.ndarray | None = None) -> Lanes:
    """Episodes under the controller, a plan each; ``forecast`` as in ``Lanes``."""
    columns: Any = jax.tree.map(lambda *xs: np.stack(xs), *(plan.as_arrays() for plan in plans))
    nothing = held(ServeAction(), len(plans), steps)
    told = np.full((len(plans), steps), np.nan, np.float32) if forecast is None else forecast
    actions = ServeAction(**{name: np.asarray(nothing[name], knob.dtype) for name, knob in KNOBS.items()})
    return Lanes(np.zeros(len(plans), bool), actions, columns, told)


def held(action: ServeAction, episodes: int, steps: int) -> Sequences:
    """One action in every second of every episode."""
    return {name: np.full((episodes, steps), getattr(action, name)) for name in KNOBS}


def play_lane(key: jax.Array, observation: Any, carry: tuple[Lanes, Engine, Memory]) -> Any:
    """The policy of one episode of ``Lanes``."""
    del key
    lane, engine, memory = carry
    controlled, after = act(engine, lane.plan, lane.forecast, observation, memory)
    step = jnp.minimum(memory.step, lane.forecast.shape[0] - 1)
    replayed = jax.tree.map(lambda x: x[step], lane.actions)
    action = jax.tree.map(lambda a, b: jnp.where(lane.replays, a, b), replayed, controlled.as_arrays())
    return action, (lane, engine, after)


def _carry(problem: Problem, lanes: Lanes, index: np.ndarray, seeds: np.ndarray) -> Any:
    # a closed-loop task replays only, and its table need not describe an engine
    open_loop = problem.dynamics == "open_loop"
    draws = problem.env.draws
    if draws is not None:
        engine = jax.tree.map(np.asarray, _drawn(draws, problem.params, jnp.asarray(seeds)))
    else:
        engine = spread(engine_of(problem.table, problem.params) if open_loop else Engine.unknown(), len(index))
    return jax.tree.map(lambda x: np.asarray(x)[index], lanes), engine, spread(Memory.start(), len(index))


@functools.partial(jax.jit, static_argnums=0)
def _drawn(draws: Draws, params: EnvParams, seeds: jax.Array) -> Engine:
    return jax.vmap(functools.partial(drawn_engine, draws, params))(seeds)


def scores_of(problem: Problem, lanes: Lanes, seeds: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """float64[episodes]: the score of each; ``width`` episodes a call."""
    return problem.score(statistics_of(problem, lanes, seeds, width))


def statistics_of(problem: Problem, lanes: Lanes, seeds: np.ndarray, width: int = WIDTH) -> ig.EpisodeStatistics:
    """The statistics of each episode, fields [episodes]; ``width`` episodes a call."""
    batches = []
    for start in range(0, len(lanes), width):
        index = np.minimum(np.arange(start, start + width), len(lanes) - 1)
        carry = _carry(problem, lanes, index, seeds[index])
        statistics = ig.evaluate(problem.env, problem.params, play_lane, seeds[index], carry=carry, carry_axis=0)
        batches.append(jax.tree.map(np.asarray, statistics))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(lanes)], *batches)


def episodes_of(problem: Problem, lanes: Lanes, seeds: np.ndarray) -> ig.Trajectory:
    """Whole episodes, leading axes (steps, episodes)."""
    carry = _carry(problem, lanes, np.arange(len(lanes)), seeds)
    return ig.rollout(problem.env, problem.params, play_lane, seeds, carry=carry, carry_axis=0)


def random_sequences(seeds: np.ndarray, steps: int) -> Sequences:
    """What the random policy does in each episode."""

    def one(seed: jax.Array, step: jax.Array) -> ServeAction:
        return ig.policies.random(draws.policy_key(seed, step), initial_observation(), None)

    drawn = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.asarray(seeds), jnp.arange(steps))
    return {name: np.asarray(getattr(drawn, name)) for name in KNOBS}


def sequences_of(action: Mapping[str, Any] | ServeAction) -> Sequences:
    """The actions of whole episodes, (steps, episodes), as sequences."""
    return {name: np.asarray(getattr(action, name)).T.copy() for name in KNOBS}

"""What Gymnasium's single and vector environments share: the environment with its views, spaces, actions, numbers.

``task, table, trace, ... -> Played``; ``to_action`` reads what a step is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from inferencegym_jax.adapters.wrappers import FlatObservation
from inferencegym_jax.encoding import action_from_box, normalise
from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.wrapped import check_played_by_step_env
from inferencegym_jax.models import KNOBS, SEEDS, EnvParams, ServeAction, ServeObservation, check_action, shown
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.registry import make
from inferencegym_jax.scoring.reward import Reward
from inferencegym_jax.spaces import ActionSpace, Box, Discrete, ObservationSpace
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import TaskSpec, get_task
from inferencegym_jax.traffic.request_log import RequestLog

View: TypeAlias = Callable[[Any], Any]
"""A wrapper's class, or another function that wraps an environment: ``ig.wrappers.DiscreteAction``."""


def action_space() -> spaces.Box:
    """float32[5] in [-1, 1], one number a knob; see ``wrappers.action_from_box``."""
    return spaces.Box(-1.0, 1.0, (len(KNOBS),), np.float32)


def observation_space(normalised: bool = True) -> spaces.Box:
    """float32[14]: normalised (see ``wrappers.normalise``) or in natural units."""
    return _box(FlatObservation(None, normalised).observation_space())


def _box(box: Box) -> spaces.Box:
    low, high = (np.broadcast_to(np.asarray(end, box.dtype), box.shape) for end in (box.low, box.high))
    return spaces.Box(low, high, box.shape, np.dtype(box.dtype).type)


def _space(space: Any, what: str) -> spaces.Space[Any]:
    if isinstance(space, Discrete):
        return spaces.Discrete(space.n)
    if isinstance(space, Box):
        return _box(space)
    raise TypeError(f"views: {what} {shown(space)}; Gymnasium gets a Box, a Discrete space, or the environment's own")


@dataclass(frozen=True)
class Played:
    """An environment as Gymnasium plays it.

    Attributes:
        env: with its views.
        params: the task.
        spec: the task.
        action_space: of one environment.
        observation_space: the same.
        takes_knobs: actions are the knobs, of which Gymnasium's space is [-1, 1].
        gives_fields: observations are ``ServeObservation``, to be flattened.
        normalised: how.
    """

    env: Any
    params: EnvParams
    spec: TaskSpec
    action_space: spaces.Space[Any]
    observation_space: spaces.Space[Any]
    takes_knobs: bool
    gives_fields: bool
    normalised: bool

    @property
    def inner(self) -> Environment:
        """The environment without its views."""
        env = self.env
        while not isinstance(env, Environment):
            env = env._env
        return env

    def knobs(self, action: Mapping[str, Any]) -> ServeAction:
        """The action of a mapping; see ``Environment.action_of``."""
        return self.inner.action_of(action)

    def to_action(self, action: Any, batch: tuple[int, ...] = ()) -> Any:
        """What the environment takes, from what a step may be given: an element of the action space; of the knobs
        besides a ``ServeAction`` or a mapping.

        Raises:
            TypeError, ValueError: see ``to_action``; an action outside the space of a view.
        """
        if self.takes_knobs:
            return to_action(self.knobs(action) if isinstance(action, Mapping) else action, batch)
        value = np.asarray(action)
        shape = (*batch, *(self.action_space.shape or ()))
        inside = value.shape == shape and value.dtype.kind in "iuf" and bool(np.isfinite(value).all())
        if inside and isinstance(self.action_space, spaces.Discrete):
            inside = value.dtype.kind in "iu" and bool(((value >= 0) & (value < self.action_space.n)).all())
        if not inside:
            raise ValueError(f"action = {shown(action)}: must be of shape {shape}, in {self.action_space}")
        return value.astype(self.action_space.dtype if isinstance(self.action_space, spaces.Box) else np.int32)

    def flatten(self, observation: Any) -> np.ndarray:
        """The numbers of a concrete observation; a mapping of fields, a ``ServeObservation`` or an array."""
        if not self.gives_fields:
            return np.asarray(observation)
        fields = ServeObservation(**observation) if isinstance(observation, Mapping) else observation
        return flatten(fields, self.normalised)


def to_numbers(gives_fields: bool, normalised: bool, observation: Any) -> jax.Array:
    """What ``Played.flatten`` gives, of a traced observation."""
    if not gives_fields:
        return observation
    return normalise(observation) if normalised else observation.to_array()


def played(
    task_id: int | str | TaskSpec,
    *,
    normalised: bool = True,
    table: str | Path | LatencyTable | None = None,
    trace: str | Path | RequestLog | None = None,
    dynamics: str | None = None,
    config: Mapping[str, Any] | None = None,
    reward: Reward | None = None,
    views: Sequence[View] | View = (),
) -> Played:
    """An environment with its views; arguments as those of ``InferenceGymEnv``.

    Raises:
        TypeError, ValueError, FileNotFoundError: see ``make``; a view whose spaces Gymnasium has no name for, or that
            is not played by ``step_env``; ``normalised=False`` with views that give numbers of their own.
    """
    if not isinstance(normalised, bool):
        raise TypeError(f"normalised = {shown(normalised)}: must be True or False")
    env, params = make(task_id, table=table, trace=trace, dynamics=dynamics, config=config, reward=reward)
    viewed: Any = env
    for view in _as_views(views):
        viewed = view(viewed)
    check_played_by_step_env(viewed)
    seen, done = viewed.observation_space(params), viewed.action_space(params)
    fields, knobs = isinstance(seen, ObservationSpace), isinstance(done, ActionSpace)
    if not (fields or normalised):
        raise ValueError("normalised = False: these views give numbers of their own; leave it out")
    return Played(
        env=viewed,
        params=params,
        spec=get_task(task_id),
        action_space=action_space() if knobs else _space(done, "the action space is"),
        observation_space=observation_space(normalised) if fields else _space(seen, "the observation space is"),
        takes_knobs=knobs,
        gives_fields=fields,
        normalised=normalised,
    )


def _as_views(views: Any) -> Sequence[View]:
    asked = [views] if callable(views) else views
    if isinstance(asked, str) or not isinstance(asked, Sequence) or not all(callable(view) for view in asked):
        raise TypeError(
            f"views = {shown(views)}: must be a wrapper of the environment, as ig.wrappers has, or a list of such"
        )
    return asked


def to_action(action: Any, batch: tuple[int, ...] = ()) -> ServeAction:
    """A ``ServeAction`` from what a step may be given: one, a mapping of knobs, or an array of [-1, 1].

    Raises:
        TypeError, ValueError: an array of another shape or with NaN or inf; an unknown knob; see ``check_action``.
    """
    if isinstance(action, ServeAction):
        check_action(action)
        return action
    if isinstance(action, Mapping):
        unknown = sorted(set(action) - set(KNOBS))
        if unknown:
            raise ValueError(f"action: knob {unknown[0]!r} is unknown; there are {', '.join(KNOBS)}")
        return to_action(ServeAction(**action))
    array = np.asarray(action, np.float32)
    if array.shape != (*batch, len(KNOBS)):
        raise ValueError(f"action: shape {array.shape}; must be {(*batch, len(KNOBS))}, one number a knob")
    if not np.isfinite(array).all():
        raise ValueError(f"action = {array.tolist()}: must be finite numbers from -1 to 1")
    return jax.tree.map(np.asarray, _action_from_box(array))


_action_from_box = jax.jit(action_from_box)
_normalise = jax.jit(normalise)
_to_array = jax.jit(ServeObservation.to_array)


def flatten(observation: ServeObservation, normalised: bool) -> np.ndarray:
    """float32[..., 14] of a concrete observation."""
    return np.asarray((_normalise if normalised else _to_array)(observation))


def next_episode(new_seed: int | None, seed: int | None, episode: int, rng: np.random.Generator) -> tuple[int, int]:
    """(seed, episode number) that a Gymnasium reset starts: the given seed, else a first one drawn, else the one that
    auto-reset would choose after ``seed``."""
    if new_seed is not None:
        return int(new_seed), 0
    if seed is None:
        return int(rng.integers(SEEDS)), 0
    return int(counters.episode_seed(jnp.uint32(seed), jnp.int32(episode + 1))), episode + 1


def check_options(options: Mapping[str, Any] | None, known: tuple[str, ...] = ()) -> None:
    """Refuse options of a reset that nobody reads.

    Raises:
        ValueError: there is such a one.
        TypeError: no mapping.
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options = {shown(options)}: must be a mapping of names to values, or None")
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        there = f"there is {', '.join(known)}" if known else "there are none"
        raise ValueError(f"options: {unknown[0]!r} is unknown; {there}")

"""Views of the environment for learners: flat and discrete actions, a normalised flat observation, its history, the
grader's score as the reward, the five-value step.

Each wrapper changes one side of the interface and passes the rest through, so they stack:
``FiveValueStep(FlatAction(FlatObservation(env)))`` is what trainers written for older gymnax (rejax, purejaxrl) expect.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.adapters.wrapped_state import HistoryState, ScoredState
from inferencegym_jax.encoding import History, action_from_box, normalise
from inferencegym_jax.episodes.wrapped import episode_of, suited
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS, OBSERVATION, EnvParams, ServeAction, ServeObservation
from inferencegym_jax.numerics.draws import seed_of_key
from inferencegym_jax.numerics.select import select
from inferencegym_jax.scoring.grader import second_score
from inferencegym_jax.scoring.running_score import NORMALISERS, Counted, count
from inferencegym_jax.spaces import Box, Discrete
from inferencegym_jax.tasks import TaskSpec, calibration_of, get_task


class Wrapper:
    """An environment seen differently. What a wrapper does not define is the wrapped environment's.

    ``rollout``, ``fold`` and ``evaluate`` play a wrapper through ``reset_seed`` and ``step``; Gymnasium and
    ``SingleStep`` through ``reset_seed`` and ``step_env``. One of your own overrides both steps where it changes them,
    and ``reset_seed`` alone of the resets, as the others come to it. Two wrappers of one type are equal, and share
    compiled programs, where all their attributes are equal (by ``==`` if they can be hashed, else by identity).
    """

    def __init__(self, env: Any):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        """Whatever the wrapper does not define is the environment's."""
        if name.startswith("__") or name == "_env":
            raise AttributeError(name)
        return getattr(self._env, name)

    def __hash__(self) -> int:
        """Hash of the wrapper's type and attributes."""
        return hash((type(self), self._attributes()))

    def __eq__(self, other: object) -> bool:
        """Same type of wrapper with equal attributes, the environment among them."""
        return type(self) is type(other) and self._attributes() == other._attributes()  # type: ignore[attr-defined]

    def _attributes(self) -> tuple[Any, ...]:
        return tuple((name, _hashable(value)) for name, value in sorted(vars(self).items()))

    def suited_to(self, params: EnvParams) -> Any:
        """This wrapper over ``Environment.suited_to``'s environment."""
        inner = suited(self._env, params)
        if inner is self._env:
            return self
        twin = copy.copy(self)
        twin._env = inner
        return twin

    def reset(self, key: jax.Array, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset``: ``reset_seed`` of the seed that the key gives."""
        return self.reset_seed(seed_of_key(key), params)

    def reset_env(self, key: jax.Array, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset_env``."""
        return self.reset(key, params)

    def reset_seed(self, seed: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset_seed``."""
        return self._env.reset_seed(seed, params)

    def step(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``."""
        return self._env.step(key, state, action, params)

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """One step without auto-reset, through the same views."""
        return self._env.step_env(key, state, action, params)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


class FlatObservation(Wrapper):
    """Observations as float32[FLAT_OBSERVATION_SIZE]: normalised (default) or in natural units."""

    def __init__(self, env: Any, normalised: bool = True):
        super().__init__(env)
        self._flatten = normalise if normalised else ServeObservation.to_array
        self._normalised = normalised

    def reset_seed(self, seed: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset_seed``."""
        observation, state = self._env.reset_seed(seed, params)
        return self._flatten(observation), state

    def step(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``; ``info["final_observation"]`` is flat too."""
        observation, state, *rest, info = self._env.step(key, state, action, params)
        info = {**info, "final_observation": self._flatten(info["final_observation"])}
        return self._flatten(observation), state, *rest, info

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``."""
        observation, *rest = self._env.step_env(key, state, action, params)
        return self._flatten(observation), *rest

    def observation_space(self, params: EnvParams | None = None) -> Box:
        """Box of ``FLAT_OBSERVATION_SIZE`` numbers."""
        del params
        rows = [(field.low, field.high) for field in OBSERVATION.values() for _ in range(field.size)]
        low, high = (np.asarray(side, np.float32) for side in zip(*rows, strict=True))
        if self._normalised:
            low, high = np.zeros_like(low), np.ones_like(high)
        return Box(low, high, (FLAT_OBSERVATION_SIZE,))


class ObservationHistory(FlatObservation):
    """Observations as float32[copies x FLAT_OBSERVATION_SIZE]: the normalised one, its averages and the last ones.

    Memory for learners without a recurrent network. An episode starts with none, also after auto-reset. Pure, so it
    runs under ``vmap`` and ``scan``; the state is a ``HistoryState`` around the environment's.

    Args:
        env: the environment, without a view on its observations.
        averages_s: time constants of the averages in seconds; see ``encoding.History``.
        last: how many earlier observations to show as they were.
    """

    def __init__(self, env: Any, averages_s: Sequence[float] = (15.0, 120.0), last: int = 0):
        super().__init__(env)
        self._history = History(tuple(averages_s), last)

    def reset_seed(self, seed: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset_seed``."""
        return self._begin(self._env.reset_seed(seed, params))

    def _begin(self, started: tuple[ServeObservation, Any]) -> Any:
        flat = normalise(started[0])
        features, history = self._history.extend(self._history.start(batch=flat.shape[:-1]), flat)
        return features, HistoryState(started[1], history)

    def step(self, key: Any, state: HistoryState, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``; ``info["final_observation"]`` has the finished episode's history."""
        observation, after, reward, terminated, truncated, info = self._env.step(key, state.inner, action, params)
        final, history = self._history.extend(state.history, normalise(info["final_observation"]))
        first, fresh = self._begin((observation, after))
        done = terminated | truncated
        features, seen = select(done, (first, fresh.history), (final, history))
        info = {**info, "final_observation": final}
        return features, HistoryState(after, seen), reward, terminated, truncated, info

    def step_env(self, key: Any, state: HistoryState, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``."""
        observation, after, *rest = self._env.step_env(key, state.inner, action, params)
        features, history = self._history.extend(state.history, normalise(observation))
        return features, HistoryState(after, history), *rest

    def observation_space(self, params: EnvParams | None = None) -> Box:
        """Box of the observation's bounds, once for each copy."""
        one = super().observation_space(params)
        low, high = (np.tile(np.asarray(side), self._history.copies) for side in (one.low, one.high))
        return Box(low, high, low.shape)


class FlatAction(Wrapper):
    """Actions as float32[knobs] in [-1, 1]; see ``action_from_box``."""

    def step(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``."""
        return self._env.step(key, state, action_from_box(action), params)

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``."""
        return self._env.step_env(key, state, action_from_box(action), params)

    def action_space(self, params: EnvParams | None = None) -> Box:
        """Box(-1, 1) of one number a knob."""
        del params
        return Box(-1.0, 1.0, (len(KNOBS),))


class DiscreteAction(Wrapper):
    """Actions as one number: the index into a grid over the knobs that the task leaves free.

    Args:
        env: the environment.
        params: the task (concrete), which says the free knobs; default: the environment's.
        batch_sizes: its values on the grid; default: ``Knob.grid``.
        kv_budgets: the same.
        values: name of a knob -> its values on the grid, for any knob.
    """

    def __init__(
        self,
        env: Any,
        params: EnvParams | None = None,
        batch_sizes: tuple[int, ...] | None = None,
        kv_budgets: tuple[float, ...] | None = None,
        values: Mapping[str, Sequence[Any]] | None = None,
    ):
        super().__init__(env)
        active = np.asarray((env.default_params if params is None else params).active)
        asked = {"batch_size": batch_sizes, "kv_budget": kv_budgets, **(values or {})}
        unknown = [name for name in asked if name not in KNOBS]
        if unknown:
            raise ValueError(f"values: unknown knob {unknown[0]!r}; there are {', '.join(KNOBS)}")
        grid: list[tuple[Any, ...]] = []
        for on, (name, knob) in zip(active, KNOBS.items(), strict=True):
            options = tuple(asked.get(name) or knob.options)
            grid.append(options if on else (knob.default,))
        self._values = tuple(grid)
        self._shape = tuple(len(options) for options in grid)

    @property
    def num_actions(self) -> int:
        """Points of the grid."""
        return math.prod(self._shape)

    def decode(self, index: jax.Array | int) -> ServeAction:
        """The ``ServeAction`` of a grid index (int, any batch shape; beyond the grid is clamped)."""
        index = jnp.clip(jnp.asarray(index, jnp.int32), 0, self.num_actions - 1)
        places = jnp.unravel_index(index, self._shape)
        columns = zip(KNOBS, self._values, places, strict=True)
        return ServeAction(**{name: jnp.asarray(options)[place] for name, options, place in columns})

    def step(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``."""
        return self._env.step(key, state, self.decode(action), params)

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``."""
        return self._env.step_env(key, state, self.decode(action), params)

    def action_space(self, params: EnvParams | None = None) -> Discrete:
        """Discrete space of the grid's points."""
        del params
        return Discrete(self.num_actions)


class ScoreReward(Wrapper):
    """The reward is what the grader gives the second (``grader.second_score``); the environment's own stays in
    ``info["environment_reward"]``.

    What a learner maximises is then what it is graded on: the mean of an episode's rewards is about its score. Pure, so
    it runs under ``vmap``, ``scan`` and ``ig.rollout``; the state is a ``ScoredState`` around the environment's.

    Args:
        env: the environment, its actions as ``ServeAction`` (views on actions go around this one).
        task: whose grader: id, name or spec.
    """

    def __init__(self, env: Any, task: int | str | TaskSpec):
        super().__init__(env)
        self._spec = get_task(task)

    def reset_seed(self, seed: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset_seed``."""
        return self._begin(self._env.reset_seed(seed, params))

    def _begin(self, started: tuple[Any, Any]) -> Any:
        observation, state = started
        batch = episode_of(state).time.shape
        action = jax.tree.map(lambda x: jnp.broadcast_to(x, batch), ServeAction().as_arrays())
        return observation, ScoredState(state, action, self._nothing(batch))

    def _nothing(self, batch: tuple[int, ...]) -> Counted | None:
        del batch
        return None

    def step(self, key: Any, state: ScoredState, action: ServeAction, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``."""
        stepped = self._env.step(key, state.inner, action, params)
        observation, after, reward, terminated, truncated, info = stepped
        score, counted = self._score(state, action, info, params)
        info = {**info, "environment_reward": reward}
        return observation, ScoredState(after, action.as_arrays(), counted), score, terminated, truncated, info

    def step_env(self, key: Any, state: ScoredState, action: ServeAction, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``."""
        observation, after, reward, terminated, info = self._env.step_env(key, state.inner, action, params)
        score, counted = self._score(state, action, info, params)
        info = {**info, "environment_reward": reward}
        over = episode_of(after).time == episode_of(state).time  # past the episode's end
        state = ScoredState(after, action.as_arrays(), counted)
        return observation, state, jnp.where(over, 0.0, score), terminated, info

    def _second(self, state: ScoredState, action: ServeAction, info: Any, params: EnvParams | None) -> tuple[Any, ...]:
        """(params of the episode, metrics, outcome, action, that before, whether it is the first second)."""
        own = episode_of(state)
        task = self.episode_params(own, self.default_params if params is None else params)
        return task, info["metrics"], info["outcome"], action.as_arrays(), state.action, own.time == 0

    def _score(self, state: ScoredState, action: ServeAction, info: Any, params: EnvParams | None) -> Any:
        return second_score(self._spec, *self._second(state, action, info, params)), None


class WholeScoreReward(ScoreReward):
    """As ``ScoreReward``, but the reward is what the second adds to the score of the episode so far, so that an
    episode's rewards add up to its steps times its score: the cap on saved GPUs and stability are in them.

    Args:
        env: see ``ScoreReward``.
        task: see ``ScoreReward``.
        normalisers: what the grader divides by, ``ig.problem(...).normalisers``; default: the shipped task's.
    """

    def __init__(self, env: Any, task: int | str | TaskSpec, normalisers: Mapping[str, float] | None = None):
        super().__init__(env, task)
        norms: Mapping[str, Any] = calibration_of(self._spec) if normalisers is None else normalisers
        self._norms = tuple((name, float(norms[name])) for name in NORMALISERS if name in norms)

    def _nothing(self, batch: tuple[int, ...]) -> Counted:
        return Counted.start(batch)

    def _score(self, state: ScoredState, action: ServeAction, info: Any, params: EnvParams | None) -> Any:
        task, metrics, outcome, now, before, is_first = self._second(state, action, info, params)
        counted: Counted = state.counted if state.counted is not None else self._nothing(jnp.shape(is_first))
        after = count(self._spec, dict(self._norms), task, metrics, outcome, now, before, is_first, counted)
        return after.total - jnp.where(is_first, 0.0, counted.total), after


class FiveValueStep(Wrapper):
    """``step`` returns (observation, state, reward, done, info), as gymnax before 1.0 did."""

    def step(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``; done = terminated or truncated, ``info["discount"]`` is 0 where terminated."""
        observation, state, reward, terminated, truncated, info = self._env.step(key, state, action, params)
        info = {**info, "discount": jnp.where(terminated, 0.0, 1.0)}
        return observation, state, reward, terminated | truncated, info

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``, which has five values already."""
        return self._env.step_env(key, state, action, params)

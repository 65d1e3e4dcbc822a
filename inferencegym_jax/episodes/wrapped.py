"""How a wrapper is played by everything that plays environments: nothing in here looks through it.

``rollout``, ``fold`` and ``evaluate`` call ``reset_seed`` and ``step`` of what they are given; ``SingleStep`` and
Gymnasium's environments ``reset_seed`` and ``step_env``. Wrappers of this library are in ``adapters.wrappers``; those
of others (gymnax's) work where they pass ``info`` on and keep the environment's state within theirs.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import jax

from inferencegym_jax.models import EnvParams, EpisodeState


def suited(env: Any, params: EnvParams) -> Any:
    """An environment or a wrapper, compiled for the dynamics of ``params`` (``Environment.suited_to``).

    Of a wrapper that is not this library's, a copy over the suited environment: asked itself, it would pass the
    question on and be stripped off.
    """
    if hasattr(type(env), "suited_to"):
        return env.suited_to(params)
    inner = vars(env).get("_env")
    better = None if inner is None else suited(inner, params)
    if better is inner:
        return env
    twins = _twins.setdefault(env, {})  # the same copy each time, as programs are kept by it
    if better not in twins:
        twins[better] = object.__new__(
            type(env)
        )  # copy.copy would ask the empty copy's __getattr__, which knows no _env
        vars(twins[better]).update(vars(env), _env=better)
    return twins[better]


_twins: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def reset_seed(env: Any, seed: jax.Array, params: EnvParams) -> Any:
    """(observation, state) of a seed's episode. A wrapper whose class has a ``reset`` of its own and no ``reset_seed``
    (gymnax's) is reset by a key, and its episode is then the seed's: a first observation is the same for all seeds."""
    if hasattr(type(env), "reset_seed") or not hasattr(type(env), "reset"):
        return env.reset_seed(seed, params)
    observation, state = env.reset(jax.random.key(0), params)
    _, start = env.reset_seed(seed, params)
    return observation, _replaced(state, lambda _: start)


def with_episode(state: Any, episode: Any) -> Any:
    """The state with ``episode`` finished episodes before its own."""
    return _replaced(state, lambda own: dataclasses.replace(own, episode=episode))


def with_seed(state: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    """The state with the episode's seed changed."""
    return _replaced(state, lambda own: dataclasses.replace(own, seed=change(own.seed)))


def _replaced(state: Any, change: Callable[[Any], Any]) -> Any:
    return jax.tree.map(lambda x: change(x) if _is_episode(x) else x, state, is_leaf=_is_episode)


def _is_episode(x: Any) -> bool:
    return isinstance(x, EpisodeState)


def episode_of(state: Any) -> EpisodeState:
    """The environment's own state within that of a wrapper.

    Raises:
        TypeError: there is none.
    """
    episodes = [x for x in jax.tree.leaves(state, is_leaf=_is_episode) if _is_episode(x)]
    if len(episodes) != 1:
        raise TypeError(
            f"state: {type(state).__name__} holds {len(episodes)} episodes' states; a wrapper's must hold one"
        )
    return episodes[0]


def check_played_by_step_env(env: Any) -> None:
    """Refuse a wrapper that would be passed over where environments are played through ``step_env``.

    Raises:
        TypeError: a class changes ``step`` and leaves ``step_env`` as it was.
    """
    while env is not None:
        step, step_env = (_definer(type(env), name) for name in ("step", "step_env"))
        if step is not step_env and step is not None and (step_env is None or issubclass(step, step_env)):
            raise TypeError(
                f"{type(env).__name__} defines step and not step_env, through which Gymnasium and SingleStep play; "
                "define both (step_env is the step without auto-reset)"
            )
        env = vars(env).get("_env")


def _definer(cls: type, name: str) -> type | None:
    return next((one for one in cls.__mro__ if name in vars(one)), None)

"""The environment as Gymnasium sees it: ``InferenceGymEnv``, a vector env that steps in one compiled call, registered
ids.

    import gymnasium
    import inferencegym_jax.adapters.gymnasium_env
    env = gymnasium.make("inferencegym_jax/BurstyShareGPT-v0")
    envs = gymnasium.make_vec("inferencegym_jax/BurstyShareGPT-v0", num_envs=64)

Needs the extra ``gym``. The same seed and actions give the same trajectory as every other path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from inferencegym_jax.adapters.wrappers import FlatObservation
from inferencegym_jax.encoding import action_from_box, normalise
from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.single_step import SingleStep
from inferencegym_jax.models import KNOBS, SEEDS, EnvParams, ServeAction, ServeObservation, check_action, check_seed
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.registry import make
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import TaskSpec, get_task, on_register, short_title, task_specs

IDS: dict[str, int] = {}
"""Gymnasium's id of every task -> its number. A task that is registered later (``ig.register``) gets its id then."""


def action_space() -> spaces.Box:
    """float32[5] in [-1, 1], one number a knob; see ``wrappers.action_from_box``."""
    return spaces.Box(-1.0, 1.0, (len(KNOBS),), np.float32)


def observation_space(normalised: bool = True) -> spaces.Box:
    """float32[14]: normalised (see ``wrappers.normalise``) or in natural units."""
    box = FlatObservation(None, normalised).observation_space()
    return spaces.Box(np.asarray(box.low, np.float32), np.asarray(box.high, np.float32), box.shape, np.float32)


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


class InferenceGymEnv(gymnasium.Env[np.ndarray, Any]):
    """One environment.

    ``reset(seed=s)`` starts the episode of seed s; a reset without one starts the next episode as auto-reset would,
    with a seed derived from (s, episode number). Episodes end by truncation at 200 steps. ``step`` takes float32[5]
    in [-1, 1], a ``ServeAction``, or a mapping of knobs in natural units. ``info`` holds timestep, metrics, workload
    and oom as plain numbers.

    Args:
        task_id: id, name or ``TaskSpec``.
        normalised: observations about [0, 1] (default) or in natural units.
        table: a latency table of your own.
        config: overrides, see ``make``.
        render_mode: None or "ansi" (one line a step).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}

    def __init__(
        self,
        task_id: int | str | TaskSpec = 1,
        *,
        normalised: bool = True,
        table: str | Path | LatencyTable | None = None,
        config: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode = {render_mode!r}: must be None or 'ansi'")
        self.inference_env: Environment
        self.params: EnvParams
        self.inference_env, self.params = make(task_id, table=table, config=config)
        self.task_id: int = get_task(task_id).id
        self.normalised: bool = normalised
        self.render_mode: str | None = render_mode
        self.action_space: spaces.Space[Any] = action_space()
        self.observation_space: spaces.Space[Any] = observation_space(normalised)
        self._single = SingleStep(self.inference_env, self.params)
        self._state: bytes | None = None  # of an episode that is under way
        self._seed: int | None = None
        self._episode = 0
        self._line = "no step yet"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; ``info["seed"]`` is its seed."""
        super().reset(seed=None if seed is None else check_seed(seed))
        self._seed, self._episode = next_episode(seed, self._seed, self._episode, self.np_random)
        outcome = self._single.reset(self._seed)
        self._state = outcome.state
        self._line = "no step yet"
        return flatten(ServeObservation(**outcome.observation), self.normalised), {"seed": self._seed}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One second of serving."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step before reset, or after the episode's end: call reset()")
        outcome = self._single.step(self._state, self._single.pack_action(to_action(action).to_dict()))
        self._state = None if outcome.done else outcome.state
        metrics, workload = outcome.info["metrics"], outcome.info["workload"]
        self._line = (
            f"t {outcome.info['timestep']:3d}  queue {workload['queue_depth']:3d}  "
            f"TTFT {metrics['ttft_p50_ms']:.0f} ms  "
            f"{metrics['tokens_per_sec']:.0f} tokens/s  {metrics['gpu_memory_gb']:.1f} GB  reward {outcome.reward:+.3f}"
        )
        flat = flatten(ServeObservation(**outcome.observation), self.normalised)
        return flat, outcome.reward, False, outcome.done, outcome.info

    def render(self) -> str | None:  # type: ignore[override]
        """The last step as one line, in render mode "ansi"."""
        return self._line if self.render_mode == "ansi" else None


class InferenceGymVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, Any, Any]):
    """Many environments in one compiled call; same-step auto-reset, ``infos["final_obs"]`` holds the finished
    episodes' last observations.

    ``reset(seed=s)`` gives environment i the seed s + i (modulo 2^32); a list gives each its own. Sub-environment i
    has the same trajectory as ``InferenceGymEnv`` with its seed.

    Args:
        num_envs: how many.
        task_id: see ``InferenceGymEnv``, also for the rest.
        normalised: the same.
        table: the same.
        config: the same.
    """

    metadata: dict[str, Any] = {
        "render_modes": [],
        "autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        task_id: int | str | TaskSpec = 1,
        *,
        normalised: bool = True,
        table: str | Path | LatencyTable | None = None,
        config: Mapping[str, Any] | None = None,
        **_: Any,
    ):
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs = {num_envs!r}: must be a whole number of at least 1")
        self.inference_env: Environment
        self.params: EnvParams
        self.inference_env, self.params = make(task_id, table=table, config=config)
        self.task_id: int = get_task(task_id).id
        self.num_envs: int = num_envs
        self.normalised: bool = normalised
        self.single_action_space: spaces.Space[Any] = action_space()
        self.single_observation_space: spaces.Space[Any] = observation_space(normalised)
        self.action_space: spaces.Space[Any] = batch_space(self.single_action_space, num_envs)
        self.observation_space: spaces.Space[Any] = batch_space(self.single_observation_space, num_envs)
        self._state: Any = None

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode everywhere; ``infos["seed"]`` are their seeds."""
        if seed is None:
            seeds = self.np_random.integers(SEEDS, size=self.num_envs)
        elif isinstance(seed, int | np.integer):
            super().reset(seed=check_seed(seed))
            seeds = (int(seed) + np.arange(self.num_envs)) % SEEDS
        else:
            seeds = np.asarray([check_seed(one) for one in seed])
            if len(seeds) != self.num_envs:
                raise ValueError(f"seed: {len(seeds)} given; must be one for each of {self.num_envs} environments")
        seeds = seeds.astype(np.uint32)
        observation, self._state = jax.vmap(self.inference_env.reset_seed, in_axes=(0, None))(
            jnp.asarray(seeds), self.params
        )
        return flatten(observation, self.normalised), {"seed": seeds}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One second of serving everywhere; actions float32[num_envs, 5] or a batched ``ServeAction``."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step before reset: call reset()")
        action = to_action(actions, (self.num_envs,))
        observation, self._state, reward, terminated, truncated, info = self.inference_env.step(
            None, self._state, action, self.params
        )
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        infos: dict[str, Any] = {
            "timestep": np.asarray(info["timestep"]),
            "metrics": jax.tree.map(np.asarray, vars(info["metrics"])),
            "workload": jax.tree.map(np.asarray, vars(info["workload"])),
            "oom": np.asarray(info["oom"]),
        }
        if int(self.params.engine.open_loop):
            infos["outcome"] = jax.tree.map(np.asarray, vars(info["outcome"]))
        done = terminated | truncated
        if done.any():
            infos |= {"final_obs": flatten(info["final_observation"], self.normalised), "_final_obs": done}
        rewards = np.asarray(reward, np.float64)
        return flatten(observation, self.normalised), rewards, terminated, truncated, infos


def register_id(spec: TaskSpec) -> None:
    """Register a task's id with Gymnasium: its title without what is no letter or digit."""
    name = f"inferencegym_jax/{short_title(spec)}-v0"
    IDS[name] = spec.id
    if name in gymnasium.registry:  # of a task that was registered, forgotten and made anew
        del gymnasium.registry[name]
    gymnasium.register(
        name,
        entry_point="inferencegym_jax.adapters.gymnasium_env:InferenceGymEnv",
        vector_entry_point="inferencegym_jax.adapters.gymnasium_env:InferenceGymVectorEnv",
        kwargs={"task_id": spec.id},
    )


for _spec in task_specs().values():
    register_id(_spec)
on_register(register_id)

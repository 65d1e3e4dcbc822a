"""Many environments of Gymnasium in one compiled call: ``InferenceGymVectorEnv``, in each auto-reset mode."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from inferencegym_jax.adapters.gymnasium_spaces import View, check_options, played, to_numbers
from inferencegym_jax.adapters.rendering import RENDER_FPS, Renderer, check_render_mode
from inferencegym_jax.episodes.forks import check_not_forked
from inferencegym_jax.episodes.parallel import compiler_options
from inferencegym_jax.episodes.wrapped import episode_of, reset_seed, suited, with_episode
from inferencegym_jax.models import SEEDS, EnvParams, ServeAction, check_seed, check_whole, shown
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.numerics.select import select
from inferencegym_jax.scoring.reward import Reward
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import TaskSpec
from inferencegym_jax.traffic.request_log import RequestLog

VECTOR_RENDER_MODES = ("ansi", "rgb_array")
RESET_MASK = "reset_mask"


class InferenceGymVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, Any, Any]):
    """Many environments in one compiled call. Number i has the trajectory of ``InferenceGymEnv`` with its seed.

    ``reset(seed=s)`` gives environment i the seed s + i (modulo 2^32); a list gives each its own; a reset without one
    goes on to everybody's next episode, as auto-reset would. ``options={"reset_mask": bool[num_envs]}`` resets only
    those. Can be pickled and copied, in the middle of episodes too.

    Args:
        num_envs: how many.
        task_id: see ``InferenceGymEnv``, also for the rest.
        normalised: the same.
        table: the same.
        trace: the same.
        dynamics: the same.
        config: the same.
        reward: the same.
        views: the same.
        autoreset_mode: SAME_STEP (default): ``infos["final_obs"]`` and ``infos["final_info"]`` are the finished
            episodes'; NEXT_STEP: the step after an episode's end resets it; DISABLED: a reset with a mask does.
        max_episode_steps: after how many seconds an episode is truncated; default, and at most: the task's own.
        render_mode: None, "ansi" or "rgb_array", of each environment.

    Raises:
        ValueError, TypeError: an argument out of its range, which the message names; see ``make``.
    """

    metadata: dict[str, Any] = {
        "render_modes": list(VECTOR_RENDER_MODES),
        "render_fps": RENDER_FPS,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        task_id: int | str | TaskSpec = 1,
        *,
        normalised: bool = True,
        table: str | Path | LatencyTable | None = None,
        trace: str | Path | RequestLog | None = None,
        dynamics: str | None = None,
        config: Mapping[str, Any] | None = None,
        reward: Reward | None = None,
        views: Sequence[View] | View = (),
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ):
        check_whole("num_envs", num_envs)
        check_render_mode(render_mode, VECTOR_RENDER_MODES)
        self.metadata: dict[str, Any] = {**self.metadata, "autoreset_mode": _mode(autoreset_mode)}
        self._played = played(
            task_id,
            normalised=normalised,
            table=table,
            trace=trace,
            dynamics=dynamics,
            config=config,
            reward=reward,
            views=views,
        )
        self.inference_env: Any = self._played.env
        self.params: EnvParams = self._played.params
        self._most = _limit(max_episode_steps, int(self.params.episode_length))
        self.task_id: int = self._played.spec.id
        self.num_envs: int = num_envs
        self.normalised: bool = normalised
        self.render_mode: str | None = render_mode
        self.single_action_space: spaces.Space[Any] = self._played.action_space
        self.single_observation_space: spaces.Space[Any] = self._played.observation_space
        self.action_space: spaces.Space[Any] = batch_space(self.single_action_space, num_envs)
        self.observation_space: spaces.Space[Any] = batch_space(self.single_observation_space, num_envs)
        self._renderers = [
            Renderer(self._played.spec, self.params, render_mode) for _ in range(num_envs if render_mode else 0)
        ]
        self._spec: EnvSpec | None = None
        self._state: Any = None
        self._observation: np.ndarray = np.zeros(0)
        self._over = np.zeros(num_envs, bool)  # finished and not reset

    @functools.cached_property
    def _program(self) -> _Program:
        return _program(suited(self.inference_env, self.params), self._played.gives_fields, self.normalised)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the compiled program, which is found or made again."""
        return {name: value for name, value in vars(self).items() if name != "_program"}

    @property  # Gymnasium has a plain attribute, which it sets
    def spec(self) -> EnvSpec | None:
        """Gymnasium's, with the seconds that an episode has here: ``make_vec`` leaves the id's own in it."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._spec = copy.copy(spec)
        if self._spec is not None:
            self._spec.max_episode_steps = self._most

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """What happens at an episode's end."""
        return self.metadata["autoreset_mode"]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode everywhere, or where ``options["reset_mask"]`` is set; ``infos["seed"]`` are their seeds.

        Raises:
            ValueError: a bad seed, mask or option.
        """
        check_options(options, (RESET_MASK,))
        check_not_forked()
        mask = self._mask((options or {}).get(RESET_MASK))
        seeds, episodes = self._next_episodes(seed)
        first, start = self._program.reset(jnp.asarray(seeds), jnp.asarray(episodes), self.params)
        if mask.all():
            self._observation, self._state = np.asarray(first), start
        else:
            kept = self._state, self._observation
            self._state, observation = _select(jnp.asarray(mask), (start, first), kept)
            self._observation = np.asarray(observation)
        self._over = self._over & ~mask
        for i in np.flatnonzero(mask) if self._renderers else ():
            self._renderers[i].begin(int(seeds[i]))
        infos: dict[str, Any] = {"seed": seeds} if mask.all() else {"seed": seeds, "_seed": mask}
        return self._observation.copy(), infos

    def _mask(self, asked: Any) -> np.ndarray:
        if asked is None:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(asked)
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"options[{RESET_MASK!r}] = {shown(asked)}: must be bool[{self.num_envs}] with at least one true"
            )
        if self._state is None and not mask.all():
            raise ValueError(f"options[{RESET_MASK!r}]: the first reset must be of all {self.num_envs} environments")
        return mask

    def _next_episodes(self, seed: Any) -> tuple[np.ndarray, np.ndarray]:
        """(seeds uint32, episode numbers int32) of the episodes that a reset starts."""
        none = np.zeros(self.num_envs, np.int32)
        if isinstance(seed, int | np.integer):
            super().reset(seed=check_seed(seed))
            return ((int(seed) + np.arange(self.num_envs)) % SEEDS).astype(np.uint32), none
        own = [None] * self.num_envs if seed is None else list(seed)
        if len(own) != self.num_envs:
            raise ValueError(f"seed: {len(own)} given; must be one for each of {self.num_envs} environments")
        is_seeded = np.asarray([one is not None for one in own])
        checked = np.asarray([0 if one is None else check_seed(one) for one in own]).astype(np.uint32)
        if is_seeded.all():
            return checked, none
        if self._state is None:
            drawn = self.np_random.integers(SEEDS, size=self.num_envs).astype(np.uint32)
            return np.where(is_seeded, checked, drawn), none
        before = episode_of(self._state)
        number = np.asarray(before.episode) + 1
        following = np.asarray(_episode_seed(before.seed, number))
        return np.where(is_seeded, checked, following), np.where(is_seeded, 0, number).astype(np.int32)

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One second of serving everywhere; actions float32[num_envs, 5] or a batched ``ServeAction``, under a view of
        the actions an element of its space each.

        Raises:
            ResetNeeded: before a reset; in mode DISABLED: an episode is over (the message says which).
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step before reset: call reset()")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            over = np.flatnonzero(self._over).tolist()
            raise gymnasium.error.ResetNeeded(
                f"the episodes of environments {shown(over)} are over: reset(options={{{RESET_MASK!r}: mask}})"
            )
        check_not_forked()
        action = self._played.to_action(actions, (self.num_envs,))
        if isinstance(action, ServeAction):
            self._played.inner.check_action(action)
            action = jax.tree.map(lambda x: np.broadcast_to(x, self.num_envs), action.as_arrays())
        self._state, outputs = self._program.step(
            self.autoreset_mode, self._state, self._over, action, self.params, np.int32(self._most)
        )
        seen, final, reward, terminated, truncated, info = jax.device_get(outputs)
        done = terminated | truncated
        infos: dict[str, Any] = {name: info[name] for name in ("timestep", "oom")}
        infos |= {name: vars(info[name]) for name in ("metrics", "workload")}
        if int(self.params.engine.open_loop):
            infos["outcome"] = vars(info["outcome"])
        fresh = self._over
        self._record(info, reward, ~fresh)
        if fresh.any():  # NEXT_STEP: these were reset, and nothing was served
            infos |= {f"_{name}": ~fresh for name in infos}
            infos |= {"seed": np.asarray(episode_of(self._state).seed), "_seed": fresh}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            if done.any():
                last = np.full(self.num_envs, None, object)  # as Gymnasium's: wrappers may change a shape
                for i in np.flatnonzero(done):
                    last[i] = final[i].copy()
                infos |= {"final_obs": last, "_final_obs": done, "final_info": dict(infos), "_final_info": done}
            started = done
        else:
            started, self._over = fresh, done
        for i in np.flatnonzero(started) if self._renderers else ():
            self._renderers[i].begin(int(np.asarray(episode_of(self._state).seed)[i]))
        self._observation = seen
        return seen.copy(), reward.astype(np.float64), terminated.copy(), truncated.copy(), infos

    def _record(self, info: Any, reward: np.ndarray, served: np.ndarray) -> None:
        for i in np.flatnonzero(served) if self._renderers else ():
            one = jax.tree.map(lambda x, i=i: x[i].item() if x.ndim == 1 else x[i].tolist(), info)
            seen = {name: vars(one[name]) if name != "oom" else one[name] for name in ("metrics", "workload", "oom")}
            self._renderers[i].add(seen | {"timestep": one["timestep"]}, vars(one["action"]), float(reward[i]))

    def render(self) -> tuple[Any, ...] | None:
        """Each environment's episode so far, as the render mode says."""
        return tuple(one.render() for one in self._renderers) if self.render_mode else None


def _mode(wanted: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(wanted)
    except ValueError:
        names = ", ".join(repr(mode.value) for mode in AutoresetMode)
        raise ValueError(f"autoreset_mode = {shown(wanted)}: must be one of {names}") from None


def _limit(limit: int | None, length: int) -> int:
    if limit is None or limit == -1:
        return length
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= length:
        raise ValueError(
            f"max_episode_steps = {shown(limit)}: must be a whole number from 1 to the task's own {length}"
        )
    return limit


@dataclasses.dataclass(frozen=True)
class _Program:
    """The compiled reset and step of a batch."""

    reset: Any
    step: Any


@functools.lru_cache(maxsize=16)
def _program(env: Any, gives_fields: bool, normalised: bool) -> _Program:
    """One for all vector environments over equal environments; tasks and configs are arguments."""
    numbers = functools.partial(to_numbers, gives_fields, normalised)

    def begin(seed: jax.Array, episode: jax.Array, task: EnvParams) -> tuple[jax.Array, Any]:
        observation, state = reset_seed(env, seed, task)
        return numbers(observation), with_episode(state, episode)

    def reset(seeds: jax.Array, episodes: jax.Array, task: EnvParams) -> tuple[jax.Array, Any]:
        return jax.vmap(begin, in_axes=(0, 0, None))(seeds, episodes, task)

    def one(mode: AutoresetMode, state: Any, over: Any, action: Any, task: EnvParams, most: Any) -> Any:
        observation, after, reward, terminated, info = env.step_env(None, state, action, task)
        seen = numbers(observation)
        episode = episode_of(after)
        truncated = episode.time >= most
        final, begins = seen, terminated | truncated
        if mode is AutoresetMode.NEXT_STEP:
            begins = over
            reward, terminated, truncated = (
                jnp.where(over, jnp.zeros_like(x), x) for x in (reward, terminated, truncated)
            )
        if mode is not AutoresetMode.DISABLED:
            number = episode.episode + 1
            fresh = begin(counters.episode_seed(episode.seed, number), number, task)
            seen, after = jax.tree.map(functools.partial(jnp.where, begins), fresh, (seen, after))
        kept = {name: info[name] for name in ("timestep", "oom", "metrics", "workload", "outcome", "action")}
        return after, (seen, final, reward, terminated, truncated, kept)

    def step(mode: AutoresetMode, state: Any, over: Any, action: Any, task: EnvParams, most: Any) -> Any:
        each = functools.partial(one, mode)
        return jax.vmap(each, in_axes=(0, 0, 0, None, None))(state, over, action, task, most)

    compiled = functools.partial(jax.jit, compiler_options=compiler_options())
    return _Program(compiled(reset), compiled(step, static_argnums=0))


_episode_seed = jax.jit(counters.episode_seed)


_select = jax.jit(select)

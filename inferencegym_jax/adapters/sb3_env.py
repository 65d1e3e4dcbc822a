"""Stable-Baselines3's ``VecEnv`` over the vector environment that steps in one compiled call.

    from inferencegym_jax.adapters.sb3_env import InferenceGymVecEnv
    model = stable_baselines3.PPO("MlpPolicy", InferenceGymVecEnv(256, task_id=2), n_steps=32, batch_size=2048)

Several times as fast as ``make_vec_env(id, n_envs=8)``, which steps single environments one after the other. Needs the
extra ``sb3`` (torch).
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# torch and Stable-Baselines3 are not in the environment that types are checked in.

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from inferencegym_jax.adapters.gymnasium_vector import InferenceGymVectorEnv
from inferencegym_jax.models import SEEDS, check_seed


class InferenceGymVecEnv(VecEnv):
    """``InferenceGymVectorEnv`` with Stable-Baselines3's interface: ``reset`` and ``step`` give arrays, and an ended
    episode's info has ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` (return, length, seconds), as
    ``Monitor`` adds them.

    ``seed(s)`` gives environment i the seed s + i at the next reset. Metrics, workload and outcome of the last second
    are arrays in ``last_infos``, which costs nothing; a dict for each environment would.

    Args:
        num_envs: how many.
        arguments: those of ``InferenceGymVectorEnv`` but ``autoreset_mode``, which Stable-Baselines3 prescribes.
    """

    def __init__(self, num_envs: int = 64, **arguments: Any):
        if "autoreset_mode" in arguments:
            raise TypeError("autoreset_mode: Stable-Baselines3 resets in the same step; leave it out")
        self.envs: InferenceGymVectorEnv = InferenceGymVectorEnv(num_envs, **arguments)
        super().__init__(num_envs, self.envs.single_observation_space, self.envs.single_action_space)
        self.last_infos: dict[str, Any] = {}
        self._actions: Any = None
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._start = time.perf_counter()

    def reset(self) -> np.ndarray:
        """Start an episode everywhere: of the seeds that ``seed`` set, else everybody's next."""
        if any(self._options):
            raise ValueError("options: Stable-Baselines3's environments are reset together; there are none")
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        observation, infos = self.envs.reset(seed=seeds)
        self.reset_infos: list[dict[str, Any]] = [{"seed": int(seed)} for seed in infos["seed"]]
        self._reset_seeds()
        self._returns[:], self._lengths[:] = 0.0, 0
        return observation

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """The seeds of the next reset: seed + i (modulo 2^32), of None random ones.

        Raises:
            ValueError: a bad seed.
        """
        drawn = super().seed(None if seed is None else check_seed(seed))
        seeds = [one % SEEDS for one in drawn if one is not None]
        self._seeds: list[int | None] = list(seeds)
        return seeds

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One second of serving everywhere."""
        observation, rewards, terminated, truncated, self.last_infos = self.envs.step(self._actions)
        done = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        passed = round(time.perf_counter() - self._start, 6)
        for i in np.flatnonzero(done):
            infos[i] = {
                "terminal_observation": self.last_infos["final_obs"][i],
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                "episode": {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": passed},
            }
        self._returns[done], self._lengths[done] = 0.0, 0
        return observation, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing is held open."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Each environment's episode so far, where ``render_mode`` is "rgb_array"."""
        return list(self.envs.render() or [None] * self.num_envs)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vector environment, once for each of ``indices``."""
        return [getattr(self.envs, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused.

        Raises:
            AttributeError: always; the environments are one.
        """
        raise AttributeError(f"{attr_name}: the environments are stepped as one and have no attributes of their own")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Refused.

        Raises:
            AttributeError: always; the environments are one.
        """
        raise AttributeError(f"{method_name}: the environments are stepped as one and have no methods of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Whether they are wrapped: never by a Gymnasium wrapper; of ``Monitor``, whose work is done here, yes."""
        return [wrapper_class.__name__ == "Monitor"] * len(list(self._get_indices(indices)))

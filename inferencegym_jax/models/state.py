"""What an episode carries from one step to the next, and a task as numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from inferencegym_jax.models.engine import EngineParams, EngineState, Scalar


class EpisodeState:
    """What every environment's state has: the episode's seed and the step it is at."""

    seed: jax.Array  # uint32, seed of this episode
    episode: jax.Array  # int32, episodes finished before this one
    time: jax.Array  # int32, steps taken in this episode


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EnvState(EpisodeState):
    """Everything that an episode carries from one step to the next; nine numbers, and the engine's.

    Randomness is not state: each step's draws are a function of (seed, time), so any step can be regenerated.
    """

    seed: jax.Array  # uint32, seed of this episode
    episode: jax.Array  # int32, episodes finished before this one
    time: jax.Array  # int32, steps taken in this episode
    queue: jax.Array  # int32, requests waiting
    arrival_ema: jax.Array  # float32, requests/s
    class_counts: jax.Array  # int32[3], the task's own arrivals by class over the last 50 steps
    cost_so_far: jax.Array  # float32
    engine: EngineState = EngineState()  # what an open-loop engine carries; untouched by the closed loop


@dataclass(frozen=True)
class RewardWeight:
    """A weight of the reward: the term that it weighs, its symbol, and its value where a task states none."""

    term: str
    symbol: str
    default: float


REWARD_WEIGHTS: dict[str, RewardWeight] = {
    "alpha": RewardWeight("throughput", "α", 0.40),
    "beta": RewardWeight("latency", "β", 0.25),
    "gamma": RewardWeight("violations", "γ", 0.30),
    "delta": RewardWeight("cost", "δ", 0.10),
}
"""Weights of ``scoring.reward``, each a field of ``EnvParams``. Tasks must state those whose default is above 0."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EnvParams:
    """One task as numbers. All tasks have the same structure, so params stack and ``vmap`` mixes tasks.

    Built by ``inferencegym_jax.make`` from ``data/workload_configs.json`` and ``data/calibration.json``.
    """

    task_id: Scalar  # int32
    # arrivals: Poisson(rate), or Poisson(burst_rate) where burst_start <= time mod burst_period < burst_start + length
    rate: Scalar  # float32, requests/s
    burst_rate: Scalar  # float32, requests/s
    burst_period: Scalar  # int32, steps
    burst_start: Scalar  # int32, steps into the period
    burst_length: Scalar  # int32, steps
    # prompts: uniform [short_low, short_high], or with long_share uniform [long_low, long_high]; or lognormal, clamped
    short_low: Scalar  # float32, tokens
    short_high: Scalar
    long_low: Scalar
    long_high: Scalar
    long_share: Scalar  # float32, share
    lognormal: Scalar  # bool: exp(N(log_mean, log_sigma)) clamped to [short_low, short_high] instead
    log_mean: Scalar  # float32, log tokens
    log_sigma: Scalar  # float32, log tokens
    class_shares: Scalar  # float32[3], interactive, batch, best effort; [1, 0, 0] where a task has no classes
    slo_ms: Scalar  # float32[3], TTFT objective of each class; inf for none
    memory_limit_gb: Scalar  # float32, what the task's grader asks for
    oom_limit_gb: Scalar  # float32, what the GPU has: of a closed-loop task by the task, else by the table
    acceptance: Scalar  # float32, base acceptance rate of drafted tokens
    alpha: Scalar  # float32, reward weight of throughput
    beta: Scalar  # float32, of latency
    gamma: Scalar  # float32, of violations
    delta: Scalar  # float32, of cost
    optimal_tps: Scalar  # float32, tokens/s, from calibration
    cost_normaliser: Scalar  # float32, cost_per_1k, from calibration
    active: Scalar  # bool[5], which knobs the task leaves to the agent, in the order of KNOBS
    noise_sigma: Scalar  # float32, standard deviation of the latency noise
    episode_length: Scalar  # int32, steps
    engine: EngineParams = EngineParams()  # the open-loop part

    @property
    def max_steps_in_episode(self) -> Scalar:
        """gymnax's name of ``episode_length``."""
        return self.episode_length

    def replace(self, **changes: Any) -> EnvParams:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

"""Objects over the pure functions, for people who want one: thin, stateful, the same numbers.

``InferenceEnv`` plays episodes, ``TraceSimulator`` asks the GPU physics alone, ``WorkloadGenerator`` the traffic alone,
``GraderModule`` the graders.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.models import (
    EnvParams,
    MetricsSnapshot,
    Phase,
    ServeAction,
    ServeObservation,
    WorkloadState,
    check_action,
    check_seed,
    plain,
)
from inferencegym_jax.physics.closed_loop import simulate
from inferencegym_jax.registry import make
from inferencegym_jax.scoring.episode_log import log_entry
from inferencegym_jax.scoring.grader import grade
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from inferencegym_jax.table.lookup import TableGrid
from inferencegym_jax.tasks import TaskSpec, get_task
from inferencegym_jax.traffic import calendar as workload
from inferencegym_jax.traffic import fitted as traffic

ENDLESS = np.int32(2**22)  # steps; the burst calendar is exact below it


class InferenceEnv:
    """One episode at a time, with a log for the graders.

    Args:
        task_id: id or name of the task.
        seed: whole number from 0 to 4294967295; ``reset`` without a seed plays it again.
        table: latency table; default the shipped one.
        config: overrides, see ``make``.
    """

    def __init__(
        self,
        task_id: int | str | TaskSpec = 1,
        seed: int = 0,
        *,
        table: str | Path | LatencyTable | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.env: Environment
        self.params: EnvParams
        self.env, self.params = make(task_id, table=table, config=config)
        self.spec: TaskSpec = get_task(task_id)
        self.task_id: int = self.spec.id
        self.seed: int = seed
        self.reset()

    def reset(self, seed: int | None = None) -> ServeObservation:
        """Start an episode, with a new ``session_id`` (a UUID) and an empty ``episode_log``."""
        self.seed = self.seed if seed is None else seed
        observation, self._state = self.env.reset_seed(self.seed, self.params)
        self.session_id: str = str(uuid.uuid4())
        self.episode_log: list[dict[str, Any]] = []
        self._phase = Phase.WARMUP
        return observation

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return int(self._state.time) >= int(self.params.episode_length)

    def step(self, action: ServeAction) -> tuple[ServeObservation, float, bool, dict[str, Any]]:
        """One second of serving.

        Returns:
            (observation, reward, done, info with timestep, metrics, workload, outcome, oom).

        Raises:
            RuntimeError: the episode is over; call ``reset``.
            ValueError, TypeError: an action out of range.
        """
        if self.done:
            raise RuntimeError(f"step after the episode's end (step {int(self._state.time)}): call reset() first")
        observation, self._state, reward, _, info = self.env.step_env(None, self._state, action, self.params)
        self._phase = Phase(int(info["workload"].phase))
        metrics, outcome = plain(info["metrics"]), plain(info["outcome"])
        self.episode_log.append(log_entry(self.spec, action.to_dict(), float(reward), metrics, outcome))
        return observation, float(reward), self.done, info

    def state(self) -> dict[str, Any]:
        """step_count, cumulative_reward, done, workload_phase, task_id, seed, session_id."""
        return {
            "step_count": int(self._state.time),
            "cumulative_reward": float(sum(entry["reward"] for entry in self.episode_log)),
            "done": self.done,
            "workload_phase": self._phase.name.lower(),
            "task_id": self.task_id,
            "seed": self.seed,
            "session_id": self.session_id,
        }


class TraceSimulator:
    """The GPU physics alone: what a second of given traffic measures on a latency table.

    Args:
        table: path, ``LatencyTable`` or None for the shipped one.
        seed: of the latency noise; each ``simulate`` is the next step of that seed.
        task_id: whose acceptance, SLO and memory limit apply.
    """

    def __init__(
        self, table: str | Path | LatencyTable | None = None, seed: int = 0, *, task_id: int | str | TaskSpec = 1
    ):
        self.params: EnvParams
        env, self.params = make(task_id, table=load_table(table))
        self._grid = env.grid
        self.reset_seed(seed)

    def reset_seed(self, seed: int) -> None:
        """Start the noise of ``seed`` from its first step."""
        self.seed: int = check_seed(seed)
        self._step = 0

    def simulate(self, action: ServeAction, workload: WorkloadState) -> MetricsSnapshot:
        """The metrics of one second.

        Args:
            action: knobs, taken as they are (no knob is locked here).
            workload: traffic and queue, e.g. of ``WorkloadGenerator``.

        Raises:
            ValueError, TypeError: an action out of range.
        """
        check_action(action)
        seed, step = jnp.uint32(self.seed), jnp.int32(self._step)
        self._step += 1
        return _simulate(self._grid, action.as_arrays(), workload, seed, step, self.params)[0]


@functools.partial(jax.jit, static_argnums=0)
def _simulate(grid: TableGrid, action: Any, traffic: Any, seed: jax.Array, step: jax.Array, params: EnvParams) -> Any:
    return simulate(grid, action, traffic, seed, step, params)


class WorkloadGenerator:
    """The traffic alone: arrivals, prompt lengths, class shares and the queue of a task's seed."""

    def __init__(self, task_id: int | str | TaskSpec = 1, seed: int = 0):
        self.env: Environment
        self.params: EnvParams
        self.env, params = make(task_id)
        self.params = params.replace(episode_length=ENDLESS)
        self.seed: int = seed
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Go back to the first step, of a new seed where one is given."""
        self.seed = self.seed if seed is None else seed
        self._state = self.env.reset_seed(self.seed, self.params)[1]

    def step(self, batch_size: int = 32, **knobs: Any) -> WorkloadState:
        """One second of traffic in front of an engine on the shipped table.

        Args:
            batch_size: most requests served in this second (of an open-loop task: running at once).
            knobs: the second's other knobs; what the queue then is depends on them too, as a closed-loop engine that
                runs out of memory serves nobody.

        Raises:
            ValueError, TypeError: unknown knob, or one out of range.
        """
        action = ServeAction(**{"batch_size": batch_size, **knobs})
        _, self._state, _, _, info = self.env.step_env(None, self._state, action, self.params)
        return info["workload"]

    def is_burst_active(self) -> bool:
        """Whether the next step lies in a burst; of fitted traffic: whether its rate is over 1.5 times the mean."""
        if int(self.params.engine.traffic):
            log_rate = traffic.log_modulation(self._state.seed, self._state.time, self.params.engine)
            return bool(jnp.exp(log_rate) > traffic.BURST)
        return bool(workload.is_burst_at(self._state.time, self.params))


class GraderModule:
    """The graders behind an object."""

    def score(self, task_id: int | str, episode_log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See ``grade``."""
        return grade(task_id, episode_log)

"""OpenEnv's client with this library's types: ``ServingClient``.

    from inferencegym_jax.adapters.openenv_client import ServingClient
    with ServingClient(base_url="http://localhost:7860").sync() as env:
        result = env.reset(seed=7, task_id=2)
        while not result.done:
            result = env.step(ServeAction(batch_size=64))
        print(result.observation.ttft_p50, env.state().cumulative_reward)

Needs the extra ``openenv`` and openenv itself (0.10, or openenv-core 0.3) beside it, without its dependencies.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient

from inferencegym_jax.adapters.answer_types import knobs, observation_of
from inferencegym_jax.fleet.action import FleetAction
from inferencegym_jax.models import ServeAction


@dataclasses.dataclass(frozen=True)
class ServingState:
    """Where an episode stands on the server; ``others`` is what a newer server says besides."""

    episode_id: str | None = None
    step_count: int = 0
    task_id: int | None = None  # before the first reset there is none
    seed: int | None = None
    cumulative_reward: float = 0.0
    done: bool = False
    workload_phase: str = ""
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


class ServingClient(EnvClient[Any, Any, Any]):
    """An episode on a server over ``/ws``. ``reset(seed=, task_id=, config=)``, ``step``, ``state``; see ``EnvClient``.

    ``step`` takes a ``ServeAction`` (of a fleet a ``FleetAction``), which is checked here, or a mapping of knobs, of
    which what is left out takes the baseline's value. A result's ``observation`` is a ``ServeObservation`` (of a fleet
    a ``FleetObservation``) of Python numbers, its ``metadata`` what the server sends of metrics and workload.
    """

    def _step_payload(self, action: ServeAction | FleetAction | Mapping[str, Any]) -> dict[str, Any]:
        return knobs(action)

    def _parse_result(self, payload: Mapping[str, Any]) -> StepResult[Any]:
        result = StepResult(
            observation=observation_of(payload["observation"]),
            reward=payload.get("reward"),
            done=bool(payload.get("done", False)),
        )
        metadata = payload.get("metadata")
        if metadata is not None:
            result.metadata = metadata  # a field of openenv's own from 0.10 on
        return result

    def _parse_state(self, payload: Mapping[str, Any]) -> ServingState:
        known = {f.name for f in dataclasses.fields(ServingState)} - {"others"}
        others = {name: value for name, value in payload.items() if name not in known}
        return ServingState(**{name: payload[name] for name in known if name in payload}, others=others)

"""The environment as OpenEnv sees it: one per WebSocket connection, over the same programs as the HTTP sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import EnvironmentMetadata

import inferencegym_jax as ig
from inferencegym_jax.models import Phase
from server.programs import Programs
from server.schema_parts import StateModel
from server.schemas import ResetRequest, config_dict
from server.service import check_finite, draw_seed, phase_of, reset_info
from server.task_programs import AnyProgram

DESCRIPTION = (
    "LLM inference control: an agent turns five serving knobs once per simulated second; a trace-driven simulator, "
    "grounded in measured GPU kernels, answers with latency, throughput, memory and cost."
)


class ServingEnvironment(Environment):
    """An episode at a time. Reset and step are coroutines that rarely wait: a step takes less than a hop to another
    thread and back."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, programs: Programs, on_step: Callable[[], None] = lambda: None):
        super().__init__()
        self._programs, self._on_step = programs, on_step
        self._program: AnyProgram | None = None
        self._state, self._seed, self._episode_id = b"", 0, None
        self._steps, self._total, self._done, self._phase = 0, 0.0, False, 0

    async def reset_async(self, seed: Any = None, episode_id: Any = None, **kwargs: Any) -> Any:
        """Start an episode: seed, episode_id, task_id and config as in POST /reset.

        Raises:
            pydantic.ValidationError: a field is unknown or out of range.
        """
        request = ResetRequest.model_validate({"seed": seed, "episode_id": episode_id, **kwargs})
        seed = draw_seed() if request.seed is None else request.seed
        program = await self._programs.ready(request.task_id, config_dict(request.config), seed)
        self._seed = seed
        outcome = program.reset(self._seed)
        self._program, self._state, self._episode_id = program, outcome.state, request.episode_id
        self._steps, self._total, self._done, self._phase = 0, 0.0, False, 0
        metadata = reset_info(program, self._seed) | {"episode_length": program.length}
        return program.kind.sent.model_construct(**outcome.observation, done=False, reward=None, metadata=metadata)

    async def step_async(self, action: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """One step: a second of an engine's serving, a decision of a fleet's.

        Raises:
            pydantic.ValidationError: a knob that the episode's task does not have.
            RuntimeError: there was no reset, or the episode is over.
        """
        if self._program is None:
            raise RuntimeError("no episode yet: send a reset first")
        if self._done:
            raise RuntimeError(f"the episode is over at step {self._steps}: send a reset")
        kind, program = self._program.kind, await self._programs.in_memory(self._program)
        outcome = program.step(self._state, program.pack_action(kind.knobs_in(action)))
        check_finite(outcome)
        self._state, self._done, self._steps = outcome.state, outcome.done, outcome.info["timestep"]
        self._total += outcome.reward
        self._phase = phase_of(outcome)
        self._on_step()
        return kind.sent.model_construct(
            **outcome.observation, done=outcome.done, reward=outcome.reward, metadata=outcome.info
        )

    def reset(self, seed: Any = None, episode_id: Any = None, **kwargs: Any) -> Any:
        """Not used: the server awaits ``reset_async``."""
        raise NotImplementedError("use reset_async")

    def step(self, action: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """Not used: the server awaits ``step_async``."""
        raise NotImplementedError("use step_async")

    @property
    def state(self) -> Any:
        """Where the episode stands."""
        if self._program is None:
            return StateModel()
        return StateModel(
            episode_id=self._episode_id,
            step_count=self._steps,
            task_id=self._program.spec.id,
            seed=self._seed,
            config=self._program.config,
            cumulative_reward=self._total,
            done=self._done,
            workload_phase=Phase(self._phase).name.lower(),
        )

    def get_metadata(self) -> EnvironmentMetadata:
        """Name, description and version for GET /metadata."""
        return EnvironmentMetadata(
            name="inferencegym-jax",
            description=DESCRIPTION,
            version=ig.__version__,
            author="The InferenceGym contributors",
        )

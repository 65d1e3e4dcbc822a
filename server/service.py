"""What the session endpoints do, without HTTP: reset, step, state and the grading of a session.

``Service`` joins the compiled programs (pure physics) with a session store (who stands where). Every method may run
concurrently.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from typing import Any

import orjson

from inferencegym_jax.episodes.single_step import Outcome, read_actions
from inferencegym_jax.models import Phase
from inferencegym_jax.verification import first_difference
from server.kinds import kind_of
from server.programs import Programs
from server.schema_parts import ActionBase
from server.sessions import Session, SessionStore, new_id
from server.task_programs import AnyProgram


class StepConflict(RuntimeError):
    """The step cannot be applied: the episode is over, or another step of the session was applied meanwhile."""


class NotFinite(RuntimeError):
    """A step gave a number that is not finite. It is not applied, so that the session can go on from where it was."""


def check_finite(outcome: Outcome) -> None:
    """Raise ``NotFinite`` for a step whose reward or observation is no finite number."""
    numbers = [outcome.reward]
    for value in outcome.observation.values():
        numbers.extend(value) if isinstance(value, list) else numbers.append(value)
    if not math.isfinite(sum(numbers)):
        bad = [name for name, value in {"reward": outcome.reward, **outcome.observation}.items() if not _finite(value)]
        raise NotFinite(f"the step gave no finite number for {', '.join(bad)}; it was not applied")


def _finite(value: Any) -> bool:
    return all(map(math.isfinite, value if isinstance(value, list) else [value]))


def draw_seed() -> int:
    """A seed for a reset that names none."""
    return secrets.randbits(32)


def phase_of(outcome: Outcome) -> int:
    """Where an episode stands in its burst calendar after a step; a fleet's days have none and count as steady."""
    return outcome.info["workload"].get("phase", Phase.STEADY)


def reset_info(program: AnyProgram, seed: int) -> dict[str, Any]:
    """What a reset says of its episode."""
    spec = program.spec
    return {
        "task_id": spec.id,
        "task": spec.name,
        "seed": seed,
        "config": program.config,
        "active_actions": list(spec.active_knobs),
    }


class Service:
    """Episodes of HTTP clients."""

    def __init__(self, programs: Programs, store: SessionStore):
        self.programs, self.store = programs, store

    async def reset(
        self, task: int | str, seed: int | None, config: dict[str, float], episode_id: str | None = None
    ) -> dict[str, Any]:
        """Start a session; the answer of POST /reset."""
        seed = draw_seed() if seed is None else seed
        program = await self.programs.ready(task, config, seed)
        outcome = program.reset(seed)
        session_id = new_id()
        session = Session(
            id=session_id,
            task=program.spec.id,
            seed=seed,
            config=program.config,
            state=outcome.state,
            episode_id=episode_id or session_id,
        )
        await self.store.create(session)
        info = reset_info(program, seed)
        return {
            "session_id": session_id,
            "observation": outcome.observation,
            "episode_length": program.length,
            "reward": None,
            "done": False,
            "info": info,
            "metadata": info | {"session_id": session_id, "episode_id": session.episode_id},
        }

    async def step(self, session_id: str, action: ActionBase, step_id: str | None = None) -> tuple[bytes, bool]:
        """Take one step of a session.

        Args:
            session_id: from ``reset``.
            action: as it was read; of the kind of the session's task or as far as it may be of either.
            step_id: a retry with the step_id of the session's last step gets that step's answer again.

        Returns:
            (body of the answer, was a step taken).

        Raises:
            SessionNotFound: unknown or expired.
            StepConflict: the episode is over, or another step came between.
            NotFinite: the step gave a number that is not finite.
            pydantic.ValidationError: a knob that the session's task does not have.
            ValueError: the server's own latency table lacks a value of a knob.
        """
        session = await self.store.get(session_id)
        if step_id is not None and step_id == session.step_id:
            return session.response, False
        if session.done:
            raise StepConflict(f"session {session_id!r}: the episode is over at step {session.steps}; POST /reset")
        program = await self.programs.ready(session.task, session.config, session.seed)
        packed = program.pack_action(program.kind.knobs_in(action))
        outcome = program.step(session.state, packed)
        check_finite(outcome)
        response = step_answer(session_id, outcome)
        after = dataclasses.replace(
            session,
            state=outcome.state,
            steps=outcome.info["timestep"],
            total_reward=session.total_reward + outcome.reward,
            done=outcome.done,
            phase=phase_of(outcome),
            actions=session.actions + packed,
            step_id=step_id,
            response=response if step_id is not None else b"",
        )
        if await self.store.replace(after, session.steps):
            return response, True
        now = await self.store.get(session_id)
        if step_id is not None and step_id == now.step_id:
            return now.response, False
        raise StepConflict(
            f"session {session_id!r}: another step was applied at the same time; it stands at step {now.steps} now"
        )

    async def state(self, session_id: str) -> dict[str, Any]:
        """Where a session stands; the answer of GET /state."""
        session = await self.store.get(session_id)
        return {
            "episode_id": session.episode_id,
            "step_count": session.steps,
            "session_id": session.id,
            "task_id": session.task,
            "seed": session.seed,
            "config": session.config,
            "cumulative_reward": session.total_reward,
            "done": session.done,
            "workload_phase": Phase(session.phase).name.lower(),
        }

    async def session_episode(self, session_id: str) -> tuple[Session, list[dict[str, Any]]]:
        """A session and the actions that it took."""
        session = await self.store.get(session_id)
        return session, read_actions(session.actions, kind_of(session.task).knobs)

    def verify(
        self,
        task: int | str,
        seed: int,
        config: dict[str, float],
        actions: list[dict[str, Any]],
        episode_log: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Score what (task, seed, config, actions) really gives, and say whether a claimed log is that episode.

        The same answer as ``inferencegym_jax.verify``, by the step that served the session rather than by a scan over
        it, whose last bits differ.

        Raises:
            ValueError: an action that the server's table cannot serve.
        """
        program = self.programs.of(task, config, seed)
        log = self.programs.replay(program, seed, actions).log
        result = program.grade(log)
        difference = None if episode_log is None else first_difference(episode_log, log)
        if difference is not None:
            result["feedback"] += (
                f" Not verified: the log differs at step {difference['step']}, {difference['field']}: claimed"
                f" {difference['claimed']}, simulated {difference['simulated']}; the score is the simulated episode's."
            )
        return result | {"verified": difference is None, "first_difference": difference}


def step_answer(session_id: str, outcome: Outcome) -> bytes:
    """The body of POST /step's answer."""
    return orjson.dumps(
        {
            "observation": outcome.observation,
            "reward": outcome.reward,
            "done": outcome.done,
            "info": outcome.info,
            "metadata": {"session_id": session_id, "step_count": outcome.info["timestep"]},
        }
    )

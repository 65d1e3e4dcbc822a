"""Whole episodes on request: a built-in policy or sequences of actions, vmapped in the library's ``rollout``.

Episodes run in blocks of one size, the policies without weights are one program, and so are the trained ones: a
compiled rollout keeps about 50 MB for good, so their number is what bounds the server's memory.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orjson
import pyarrow as pa
from jax.tree_util import Partial

import inferencegym_jax as ig
from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.models import KNOBS, ServeAction, ServeObservation, Trajectory
from inferencegym_jax.policies.names import STATIC, WEIGHTLESS, policy_of, static_action
from inferencegym_jax.policies.reactive_control import ReactivePlan, act
from inferencegym_jax.scoring.aggregates import Aggregates, aggregate
from inferencegym_jax.scoring.grader import score_aggregates
from server.bad_input import BadInput
from server.programs import Programs, TaskProgram
from server.schemas import RolloutRequest, config_dict
from server.settings import Settings

ARROW = "application/vnd.apache.arrow.stream"
BLOCK = 256  # episodes a compiled call
PARTS = ("observation", "action", "metrics", "workload")  # of a trajectory; of an open-loop one also the outcome
SCORED = ("action", "reward", "metrics", "outcome", "oom")  # what scores are made from
REPLAY, REACTIVE, FIRST = 0, 1, 2  # what ``choose`` chooses: actions, the controller, one of WEIGHTLESS from FIRST on
Choice = tuple[jax.Array, ServeAction, jax.Array, ReactivePlan]


def choose(key: jax.Array, observation: ServeObservation, carry: Choice) -> tuple[ServeAction, Choice]:
    """Every policy that is no network in one: the carry says which, and holds the actions to replay, the step and the
    reactive controller's plan."""
    which, actions, step, plan = carry
    replayed = jax.tree.map(lambda column: column[step], actions)
    others = [policy(key, observation, None) for policy in (functools.partial(act, plan), *WEIGHTLESS.values())]
    chosen = jax.tree.map(
        lambda *options: jnp.select([which == i for i in range(len(options))], options),
        replayed,
        *(action.as_arrays() for action in others),
    )
    return chosen, (which, actions, step + 1, plan)


def trim() -> None:
    """Give memory that compiling used back to the system, where the C library can: some 100 MB a program."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


NO_PLAN = ReactivePlan.empty()


@dataclass(frozen=True)
class Source:
    """Where a request's actions come from."""

    policy: Policy
    lengths: np.ndarray  # steps of each episode
    which: int | None = None  # what ``choose`` is to choose; None: the policy is not ``choose``
    actions: ServeAction | None = None  # NumPy columns (episodes, steps) to replay
    plan: ReactivePlan = NO_PLAN


class Rollouts:
    """Runs and scores what POST /rollout asks for."""

    def __init__(self, programs: Programs, settings: Settings):
        self.programs, self.settings = programs, settings
        self._compiled: set[Policy] = set()

    def check(self, request: RolloutRequest) -> None:
        """Raise ``BadInput`` for a request above the server's limits or for a policy that it lacks."""
        episodes, steps = self.settings.rollout_episodes, self.settings.rollout_trajectories
        if len(request.seeds) > episodes:
            raise BadInput(f"seeds: {len(request.seeds)} given; at most {episodes} a call (ROLLOUT_EPISODES)")
        if request.trajectories and request.format == "json" and len(request.seeds) > steps:
            raise BadInput(
                f"seeds: {len(request.seeds)} given; at most {steps} a call with trajectories as JSON "
                '(ROLLOUT_TRAJECTORIES); format "arrow" has no such limit'
            )
        if request.format == "arrow" and not request.trajectories:
            raise BadInput('format = "arrow": needs trajectories = true')
        if request.policy is not None and request.policy not in (*STATIC, *WEIGHTLESS):
            self.policy(request.policy, self.programs.program(request.task_id))

    def warm_up(self) -> None:
        """Compile ``choose``, so that no request waits for it."""
        self.run(RolloutRequest(task_id=1, seeds=[0], policy="baseline", actions=None))

    def policy(self, name: str, program: TaskProgram) -> Policy:
        """The policy of a name.

        Raises:
            BadInput: this server lacks it for the task, with the reason.
        """
        try:
            return Partial(act, program.reactive_plan) if name == "reactive" else policy_of(name, program.problem)
        except (OSError, ValueError) as error:
            raise BadInput(f"policy = {name!r}: not available for task {program.spec.id}: {error}") from error

    def run(self, request: RolloutRequest) -> tuple[bytes, str, int]:
        """(body, media type, steps taken) of a checked request."""
        program = self.programs.program(request.task_id, config_dict(request.config))
        source = self._source(request, program)
        lengths = source.lengths
        seeds = np.asarray(request.seeds, np.uint32)
        parts = []
        for start in range(0, len(seeds), BLOCK):
            block = np.arange(start, min(start + BLOCK, len(seeds)))
            parts.append(self._block(program, source, seeds, block, request.trajectories))
        compiled = getattr(source.policy, "func", source.policy)
        if compiled not in self._compiled:
            self._compiled.add(compiled)
            trim()
        trajectory = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)
        counts_requests = bool(program.params.engine.open_loop)
        scores, aggregates, totals, crashes = self._score(program, trajectory, lengths)
        response = {
            "task_id": program.spec.id,
            "policy": request.policy,
            "seeds": request.seeds,
            "steps": lengths.tolist(),
            "scores": scores.pop("score").tolist(),
            "total_rewards": totals.tolist(),
            "oom_shares": crashes.tolist(),
            "breakdown": {name: value.tolist() for name, value in scores.items()},
        }
        response["mean_score"] = float(np.mean(response["scores"]))
        response["gpu_seconds"] = aggregates.gpu_seconds.tolist() if counts_requests else None
        response["mean_oom_share"] = float(np.mean(response["oom_shares"]))
        steps, parts = int(lengths.sum()), (*PARTS, "outcome") if counts_requests else PARTS
        if request.format == "arrow":
            return _arrow(trajectory, parts, lengths, seeds, response), ARROW, steps
        response["trajectories"] = _episodes(trajectory, parts, lengths) if request.trajectories else None
        return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY), "application/json", steps

    def _source(self, request: RolloutRequest, program: TaskProgram) -> Source:
        count = len(request.seeds)
        steps = program.spec.episode_length
        whole = np.full(count, steps)
        name: str = request.policy or "baseline"
        action = static_action(name, program.problem)
        if action is None and name not in ("reactive", *WEIGHTLESS):
            return Source(self.policy(name, program), whole)
        knobs = (action or ServeAction()).to_dict()
        sequences = [[]] if request.actions is None else request.actions
        longest = max(len(sequence) for sequence in sequences)
        if longest > steps:
            raise BadInput(f"actions: {longest} given; an episode of task {program.spec.id} has {steps} steps")
        columns: dict[str, np.ndarray] = {}
        for knob in KNOBS:
            rows = np.full((len(sequences), steps), knobs[knob])
            for row, sequence in zip(rows, sequences, strict=True):
                row[: len(sequence)] = [getattr(action, knob) for action in sequence]
            columns[knob] = np.broadcast_to(rows, (count, steps))
        actions = ServeAction(**columns)
        if request.actions is not None:
            try:
                program.env.check_action(actions)
            except ValueError as error:
                raise BadInput(f"actions: {error}") from error
            lengths = np.broadcast_to([len(sequence) for sequence in sequences], (count,))
            return Source(choose, lengths, REPLAY, actions)
        if name == "reactive":
            return Source(choose, whole, REACTIVE, actions, program.reactive_plan)
        which = FIRST + list(WEIGHTLESS).index(name) if name in WEIGHTLESS else REPLAY
        return Source(choose, whole, which, actions)

    def _block(self, program: TaskProgram, source: Source, seeds: np.ndarray, block: np.ndarray, whole: bool) -> Any:
        """The episodes of a block as NumPy arrays (steps, episodes); what no response needs is dropped."""
        padded = np.resize(block, BLOCK)
        carry, axis = None, None
        if source.which is not None:
            actions = jax.tree.map(lambda column: column[padded], source.actions).as_arrays()
            plan = jax.tree.map(lambda x: jnp.broadcast_to(x, (BLOCK, *jnp.shape(x))), source.plan)
            carry, axis = (jnp.full(BLOCK, source.which), actions, jnp.zeros(BLOCK, jnp.int32), plan), 0
        trajectory = ig.rollout(program.env, program.params, source.policy, seeds[padded], carry=carry, carry_axis=axis)
        part = trajectory if whole else {name: getattr(trajectory, name) for name in SCORED}
        return jax.tree.map(lambda x: np.asarray(x)[:, : len(block)], part)

    def _score(
        self, program: TaskProgram, trajectory: Any, lengths: np.ndarray
    ) -> tuple[dict[str, np.ndarray], Aggregates, np.ndarray, np.ndarray]:
        """Components and score of every episode over its own length, in float64 as the grader does; what they were made
        from; total rewards; shares of seconds out of memory."""
        get: Callable[[str], Any] = (
            trajectory.__getitem__ if isinstance(trajectory, dict) else trajectory.__getattribute__
        )
        inside = np.arange(program.spec.episode_length)[:, None] < lengths[None, :]
        total_rewards, crashed = (np.where(inside, get(x), 0).sum(axis=0, dtype=np.float64) for x in ("reward", "oom"))
        spec = program.spec
        aggregates = aggregate(spec, get("metrics"), get("action"), get("outcome"), lengths)
        scores = score_aggregates(spec, aggregates, program.problem.normalisers)
        return scores, aggregates, total_rewards, crashed / lengths


def _flat(trajectory: Trajectory, parts: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Part -> field -> array of (steps, episodes) or (steps, episodes, 3)."""
    return {part: vars(getattr(trajectory, part)) for part in parts}


def _episodes(trajectory: Trajectory, names: Sequence[str], lengths: np.ndarray) -> list[list[dict[str, Any]]]:
    """The steps of every episode as JSON-ready dicts."""
    parts = _flat(trajectory, names)
    episodes = []
    for i, length in enumerate(lengths.tolist()):
        columns = {part: {k: v[:length, i].tolist() for k, v in fields.items()} for part, fields in parts.items()}
        rewards, ooms = trajectory.reward[:length, i].tolist(), trajectory.oom[:length, i].tolist()
        episodes.append(
            [
                {part: {k: v[t] for k, v in fields.items()} for part, fields in columns.items()}
                | {"reward": rewards[t], "oom": ooms[t]}
                for t in range(length)
            ]
        )
    return episodes


def _arrow(
    trajectory: Trajectory, names: Sequence[str], lengths: np.ndarray, seeds: np.ndarray, response: dict[str, Any]
) -> bytes:
    """One IPC stream: a row a step, columns ``part.field``; scores as JSON in the schema's metadata."""
    steps, episodes = np.asarray(trajectory.reward).shape
    inside = (np.arange(steps)[None, :] < lengths[:, None]).ravel()
    columns: dict[str, Any] = {
        "episode": np.repeat(np.arange(episodes, dtype=np.int32), steps)[inside],
        "seed": np.repeat(seeds, steps)[inside],
        "step": np.tile(np.arange(steps, dtype=np.int32), episodes)[inside],
        "reward": np.asarray(trajectory.reward).T.ravel()[inside],
        "oom": np.asarray(trajectory.oom).T.ravel()[inside],
    }
    for part, fields in _flat(trajectory, names).items():
        for name, value in fields.items():
            rows = np.swapaxes(value, 0, 1).reshape(steps * episodes, *value.shape[2:])[inside]
            plain = rows if rows.ndim == 1 else pa.FixedSizeListArray.from_arrays(rows.ravel(), rows.shape[1])
            columns[f"{part}.{name}"] = plain
    names = ("task_id", "policy", "seeds", "steps", "scores", "total_rewards", "oom_shares")
    summary = {key: response[key] for key in names}
    table = pa.table(columns).replace_schema_metadata({"inferencegym": orjson.dumps(summary)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()

"""Whole episodes on request: a built-in policy or sequences of actions, vmapped in the library's ``rollout``.

Episodes run in blocks of one size. A request of several keeps none of their steps: they are scored as they come, and
simulated again where they are asked for (``trajectories``), so that memory is that of a block. The policies without
weights are one program, and so are the trained ones: a rollout that is loaded takes 20 to 100 MB, so that few are held
(``memory.bound_programs``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from pydantic import ValidationError

import inferencegym_jax as ig
from inferencegym_jax.episodes.parallel import count_compiled
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import KNOBS, ServeAction, ServeObservation, Trajectory
from inferencegym_jax.policies import has_trained
from inferencegym_jax.policies.names import WEIGHTLESS, policy_of, static_action
from inferencegym_jax.policies.reactive_control import ReactivePlan, act
from inferencegym_jax.scoring.aggregates import aggregate
from inferencegym_jax.scoring.grader import score_aggregates
from server.bad_input import BadInput, sentence
from server.fleet_rollouts import FleetRollouts
from server.found import BLOCK_STEPS, PARTS, Found
from server.kinds import ENGINE, FLEET, kind_of
from server.memory import let_go, trim
from server.programs import Programs
from server.schemas import RolloutRequest, config_dict
from server.settings import Settings
from server.task_programs import TaskProgram

WARMED = 3  # the task whose trained policy is compiled at the start: the one of "Beat it"
SCORED = ("action", "reward", "metrics", "outcome", "oom")  # what scores are made from
REPLAY, REACTIVE, FIRST = 0, 1, 2  # what ``choose`` chooses: actions, the controller, one of WEIGHTLESS from FIRST on
Choice = tuple[jax.Array, ServeAction, jax.Array, ReactivePlan]


def choose(key: jax.Array, observation: ServeObservation, carry: Choice) -> tuple[ServeAction, Choice]:
    """Every policy that is no network in one: the carry says which, and holds the actions to replay, the step and the
    reactive controller's plan."""
    which, actions, step, plan = carry
    replayed = jax.tree.map(lambda column: column[step], actions)
    others = [policy(key, observation, None) for policy in (functools.partial(act, plan), *WEIGHTLESS.values())]
    action = jax.tree.map(
        lambda *options: jnp.select([which == i for i in range(len(options))], options),
        replayed,
        *(action.as_arrays() for action in others),
    )
    return action, (which, actions, step + 1, plan)


NO_PLAN = ReactivePlan.empty()
NO_ACTIONS = np.empty((0, len(KNOBS)))


@dataclass(frozen=True)
class Source:
    """Where a request's actions come from."""

    policy: Policy
    lengths: np.ndarray  # steps of each episode
    which: int | None = None  # what ``choose`` is to choose; None: the policy is not ``choose``
    default: ServeAction = ServeAction()  # replayed where no sequence says otherwise
    sequences: Sequence[np.ndarray] = (NO_ACTIONS,)  # float64 (steps, knobs): of each episode, or one for all
    plan: ReactivePlan = NO_PLAN


def _engine_knobs(action: Any) -> dict[str, Any]:
    try:
        return ENGINE.knobs_in(action)
    except ValidationError as error:
        raise BadInput(f"actions: {sentence(error.errors(include_url=False))}") from error


def block_size(program: TaskProgram) -> int:
    """Episodes of a task that one compiled call plays: as many as keep its steps, and so its memory, the same."""
    return max(8, BLOCK_STEPS // program.spec.episode_length)


def _columns(default: ServeAction, sequences: Sequence[np.ndarray], steps: int) -> ServeAction:
    """Sequences of actions as NumPy columns (sequences, steps), filled up with a default."""
    columns = {}
    for i, (knob, value) in enumerate(default.to_dict().items()):
        kind = {bool: np.bool_, int: np.int32, float: np.float32}[type(value)]
        columns[knob] = np.full((len(sequences), steps), value, kind)
        for row, sequence in zip(columns[knob], sequences, strict=True):
            row[: len(sequence)] = sequence[:, i]
    return ServeAction(**columns)


class Rollouts:
    """Runs and scores what POST /rollout asks for."""

    def __init__(self, programs: Programs, settings: Settings):
        self.programs, self.settings = programs, settings
        self.fleets = FleetRollouts(programs)

    def check(self, request: RolloutRequest) -> None:
        """Raise ``BadInput`` for a request above the server's limits."""
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

    def warm_up(self) -> None:
        """Compile ``choose`` and a trained policy on a short task, so that a visitor who turns to it need not wait; the
        page's first screen is a file. Nothing where a task would have to be searched first."""
        if not self.programs.is_found(WARMED):
            return
        self.score(RolloutRequest(task_id=1, seeds=[0], policy="baseline", actions=None))
        if has_trained(WARMED):
            self.score(RolloutRequest(task_id=WARMED, seeds=[0], policy="trained", actions=None))

    def policy(self, name: str, program: TaskProgram) -> Policy:
        """The policy of a name.

        Raises:
            BadInput: this server lacks it for the task, with the reason.
        """
        try:
            return Partial(act, program.reactive_plan) if name == "reactive" else policy_of(name, program.problem)
        except (OSError, ValueError) as error:
            raise BadInput(f"policy = {name!r}: not available for task {program.spec.id}: {error}") from error

    def score(self, request: RolloutRequest) -> Found:
        """What a checked request comes to, see ``play``."""
        *_, result = self.play(request)
        assert result is not None
        return result

    def play(self, request: RolloutRequest) -> Iterator[Found | None]:
        """Run a checked request block by block and score it; of the steps no more than one block is kept.

        Yields:
            None after each block, so that others may have their turn; at last what it came to.

        Raises:
            BadInput: a policy that the server lacks for the task, or actions that it cannot have.
        """
        if kind_of(request.task_id) is FLEET:
            yield from self.fleets.play(request)
            return
        program = self.programs.program(request.task_id, config_dict(request.config))
        source = self._source(request, program)
        seeds = np.asarray(request.seeds, np.uint32)
        size = block_size(program)
        blocks = [np.arange(start, min(start + size, len(seeds))) for start in range(0, len(seeds), size)]
        keeps = request.trajectories and len(blocks) == 1
        block_columns, kept = [], None
        for block in blocks:
            compiled = count_compiled()
            kept = self._block(program, source, seeds, block, keeps)
            block_columns.append(self._score(program, kept, source.lengths[block]))
            if not keeps:
                kept = None
            if count_compiled() > compiled:
                let_go()
            yield None
        trim()  # of the steps of a block

        def steps() -> Iterator[tuple[np.ndarray, Trajectory]]:
            for block in blocks:
                yield block, kept if kept is not None else self._block(program, source, seeds, block, True)

        yield Found(
            task_id=program.spec.id,
            policy=request.policy,
            seeds=request.seeds,
            lengths=source.lengths,
            parts=(*PARTS, "outcome") if program.params.engine.open_loop else PARTS,
            columns={name: np.concatenate([part[name] for part in block_columns]) for name in block_columns[0]},
            blocks=steps,
        )

    def _source(self, request: RolloutRequest, program: TaskProgram) -> Source:
        count = len(request.seeds)
        steps = program.spec.episode_length
        whole = np.full(count, steps)
        name: str = request.policy or "baseline"
        action = static_action(name, program.problem)
        if action is None and name not in ("reactive", *WEIGHTLESS):
            return Source(self.policy(name, program), whole)
        if request.actions is not None:
            rows = [[list(_engine_knobs(action).values()) for action in sequence] for sequence in request.actions]
            sequences = [np.array(row, np.float64) for row in rows]
            lengths = np.array([len(sequence) for sequence in sequences])
            if lengths.max() > steps:
                text = f"{lengths.max()} given; an episode of task {program.spec.id} has {steps} steps"
                raise BadInput(f"actions: {text}")
            try:
                program.env.check_action(_columns(ServeAction(), sequences, lengths.max()))
            except ValueError as error:
                raise BadInput(f"actions: {error}") from error
            return Source(choose, np.broadcast_to(lengths, (count,)), REPLAY, sequences=sequences)
        if name == "reactive":
            return Source(choose, whole, REACTIVE, plan=program.reactive_plan)
        which = FIRST + list(WEIGHTLESS).index(name) if name in WEIGHTLESS else REPLAY
        return Source(choose, whole, which, action or ServeAction())

    def _block(self, program: TaskProgram, source: Source, seeds: np.ndarray, block: np.ndarray, whole: bool) -> Any:
        """The episodes of a block as NumPy arrays (steps, episodes); what no response needs is dropped."""
        size = block_size(program)
        padded = np.resize(block, size)
        carry, axis = None, None
        if source.which is not None:
            mine = [source.sequences[i] for i in padded] if len(source.sequences) > 1 else [source.sequences[0]] * size
            actions = _columns(source.default, mine, program.spec.episode_length).as_arrays()
            plan = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (size, *np.shape(x))), source.plan)
            carry, axis = (np.full(size, source.which, np.int32), actions, np.zeros(size, np.int32), plan), 0
        trajectory = ig.rollout(program.env, program.params, source.policy, seeds[padded], carry=carry, carry_axis=axis)
        part = trajectory if whole else {name: getattr(trajectory, name) for name in SCORED}
        cut = np.ascontiguousarray if len(block) < size else np.asarray  # a view would keep all of a block
        return jax.tree.map(lambda x: cut(np.asarray(x)[:, : len(block)]), part)

    def _score(self, program: TaskProgram, trajectory: Any, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Components and score of every episode over its own length, in float64 as the grader does; total rewards,
        shares of seconds out of memory and, where requests are counted, GPU-seconds."""
        get: Callable[[str], Any] = (
            trajectory.__getitem__ if isinstance(trajectory, dict) else trajectory.__getattribute__
        )
        inside = np.arange(program.spec.episode_length)[:, None] < lengths[None, :]
        total_rewards, crashed = (np.where(inside, get(x), 0).sum(axis=0, dtype=np.float64) for x in ("reward", "oom"))
        spec = program.spec
        aggregates = aggregate(spec, get("metrics"), get("action"), get("outcome"), lengths)
        columns = score_aggregates(spec, aggregates, program.problem.normalisers)
        columns |= {"total_rewards": total_rewards, "oom_shares": crashed / lengths}
        if program.params.engine.open_loop:
            columns["gpu_seconds"] = np.asarray(aggregates.gpu_seconds)
        return columns

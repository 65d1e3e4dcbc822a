"""Whole episodes of fleets on request: fixed sizes, rules and sequences of actions are one compiled program.

The same as ``rollouts`` does for single engines. A rule's plan, like a fixed size, stands in the policy's carry, and
every episode brings params of its own, as fleet-anywhere's do: so that one program plays all fleets of a table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError

import inferencegym_jax as ig
from inferencegym_jax.episodes.parallel import count_compiled
from inferencegym_jax.fleet.action import FLEET_KNOBS, GPUS, FleetAction, check_fleet_action
from inferencegym_jax.fleet.grading import fleet_scores
from inferencegym_jax.fleet.making import anywhere_params, is_anywhere
from inferencegym_jax.fleet.rules import DEFAULTS, REACTIVE, RulePlan, act_by_rule, fixed, rule_start
from inferencegym_jax.models import Trajectory
from server.bad_input import BadInput, sentence
from server.found import BLOCK_STEPS, PARTS, Found
from server.kinds import FLEET
from server.memory import let_go, trim
from server.programs import Programs
from server.schemas import RolloutRequest, config_dict
from server.task_programs import FleetProgram

REPLAY, RULE, RANDOM = range(3)  # what ``choose`` chooses
SEARCH_SEEDS = 16  # days on which the fixed sizes are tried
DESCRIPTIONS = {
    "baseline": "All GPUs, always.",
    "random": "Knobs drawn at random every five seconds.",
    "reactive": "A rule that asks for as many GPUs as the load keeps busy, tuned once on days of many fleets.",
    "best_static": "The number of GPUs that never changes with the best score, found by trying each.",
}


def fleet_policies(spec: ig.FleetSpec) -> dict[str, str]:
    """What POST /rollout can play on a fleet's task, each in a sentence."""
    del spec
    return DESCRIPTIONS | {name: f"{name}: the rule at its project's published defaults." for name in DEFAULTS}


def choose(key: jax.Array, seen: Any, carry: Any) -> tuple[FleetAction, Any]:
    """Every policy in one: the carry says which, and holds the actions to replay, the step, a rule's plan and what the
    rule remembers."""
    which, actions, step, plan, memory = carry
    replayed = jax.tree.map(lambda column: column[step], actions)
    ruled, memory = act_by_rule(plan, key, seen, memory)
    options = (replayed, ruled.as_arrays(), _drawn(key))
    action = jax.tree.map(lambda *x: jnp.select([which == i for i in range(len(x))], x), *options)
    return action, (which, actions, step + 1, plan, memory)


def _drawn(key: jax.Array) -> FleetAction:
    """Every knob uniform over its range; at least one GPU decodes."""
    keys = dict(zip(FLEET_KNOBS, jax.random.split(key, len(FLEET_KNOBS)), strict=True))
    drawn = {}
    for name, knob in FLEET_KNOBS.items():
        if knob.choices:
            drawn[name] = jnp.asarray(knob.choices)[jax.random.randint(keys[name], (), 0, len(knob.choices))]
        else:
            drawn[name] = jax.random.randint(keys[name], (), int(knob.low), int(knob.high) + 1)
    return FleetAction(**drawn | {"prefill_gpus": jnp.minimum(drawn["prefill_gpus"], drawn["gpus"] - 1)}).as_arrays()


class Plays(NamedTuple):
    """Where each episode's actions come from."""

    which: int
    plans: Sequence[RulePlan]  # one for all, or one an episode
    sequences: Sequence[FleetAction]  # NumPy int32[steps] of every knob: one for all, or one an episode
    lengths: np.ndarray  # steps of each episode


class FleetRollouts:
    """Runs and scores what POST /rollout asks for on fleets."""

    def __init__(self, programs: Programs):
        self.programs = programs
        self._best = functools.lru_cache(maxsize=32)(self._search)

    def play(self, request: RolloutRequest) -> Iterator[Found | None]:
        """Run a checked request block by block and score it; of the steps no more than one block is kept.

        Yields:
            None after each block, so that others may have their turn; at last what it came to.

        Raises:
            BadInput: a policy that there is not for fleets, actions of another kind or too many.
        """
        program = self.programs.of(request.task_id, config_dict(request.config))
        assert isinstance(program, FleetProgram)
        plays = self._plays(request, program)
        seeds = np.asarray(request.seeds, np.uint32)
        size = max(1, BLOCK_STEPS // program.length)
        blocks = [np.arange(start, min(start + size, len(seeds))) for start in range(0, len(seeds), size)]
        keeps = request.trajectories and len(blocks) == 1
        block_columns, kept = [], None
        for block in blocks:
            kept = self._block(program, plays, seeds, block)
            block_columns.append(self._scores(program, kept, seeds[block], plays.lengths[block]))
            if not keeps:
                kept = None
            yield None

        def steps() -> Iterator[tuple[np.ndarray, Trajectory]]:
            for block in blocks:
                yield block, kept if kept is not None else self._block(program, plays, seeds, block)

        trim()  # of the steps of a block
        yield Found(
            task_id=program.spec.id,
            policy=request.policy,
            seeds=request.seeds,
            lengths=plays.lengths,
            parts=(*PARTS, "outcome"),
            columns={name: np.concatenate([part[name] for part in block_columns]) for name in block_columns[0]},
            blocks=steps,
        )

    def _plays(self, request: RolloutRequest, program: FleetProgram) -> Plays:
        whole = np.full(len(request.seeds), program.length)
        nothing = [_columns([], program.length)]
        if request.actions is not None:
            lengths = np.array([len(sequence) for sequence in request.actions])
            if lengths.max() > program.length:
                text = f"{lengths.max()} given; an episode of task {program.spec.id} has {program.length} steps"
                raise BadInput(f"actions: {text}")
            sequences = []
            for sequence in request.actions:
                try:
                    columns = _columns([FLEET.knobs_in(action) for action in sequence], program.length)
                    check_fleet_action(columns, program.gpus)
                except ValidationError as error:
                    raise BadInput(f"actions: {sentence(error.errors(include_url=False))}") from error
                except ValueError as error:
                    raise BadInput(f"actions: {error}") from error
                sequences.append(columns)
            return Plays(REPLAY, [REACTIVE], sequences, np.broadcast_to(lengths, whole.shape))
        if request.policy == "random":
            return Plays(RANDOM, [REACTIVE], nothing, whole)
        return Plays(RULE, [self._plan(request.policy or "baseline", program)], nothing, whole)

    def _plan(self, policy: str, program: FleetProgram) -> RulePlan:
        known = {"baseline": fixed(GPUS), "reactive": REACTIVE, **DEFAULTS}
        if policy in known:
            return known[policy]
        if policy == "best_static":
            return fixed(self._best(program.spec.name))
        raise BadInput(
            f"policy = {policy!r}: not available for task {program.spec.id}: must be one of "
            + ", ".join(fleet_policies(program.spec))
        )

    def _search(self, name: str) -> int:
        """The fixed size with the best mean score on the first test days."""
        program = self.programs.of(name)
        assert isinstance(program, FleetProgram)
        sizes = np.arange(1, program.gpus + 1)
        seeds = np.tile(np.arange(SEARCH_SEEDS, dtype=np.uint32), len(sizes))
        plans = [fixed(int(size)) for size in np.repeat(sizes, SEARCH_SEEDS)]
        lengths = np.full(len(seeds), program.length)
        plays = Plays(RULE, plans, [_columns([], program.length)], lengths)
        block = max(1, BLOCK_STEPS // program.length)
        scores = []
        for start in range(0, len(seeds), block):
            mine = np.arange(start, min(start + block, len(seeds)))
            played = self._block(program, plays, seeds, mine)
            scores.append(self._scores(program, played, seeds[mine], lengths[mine])["score"])
        means = np.concatenate(scores).reshape(len(sizes), SEARCH_SEEDS).mean(axis=1)
        return int(sizes[np.argmax(means)])

    def _params(self, program: FleetProgram, seeds: np.ndarray) -> Any:
        if is_anywhere(program.spec.id):
            return anywhere_params(seeds.tolist(), self.programs.table)
        return jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (len(seeds), *np.shape(x))), program.fleet_params)

    def _block(self, program: FleetProgram, plays: Plays, seeds: np.ndarray, block: np.ndarray) -> Any:
        """The episodes of a block as NumPy arrays (steps, episodes)."""
        size = max(1, BLOCK_STEPS // program.length)
        padded = np.resize(block, size)
        sequences = [plays.sequences[i if len(plays.sequences) > 1 else 0] for i in padded]
        plans = [plays.plans[i if len(plays.plans) > 1 else 0].as_arrays() for i in padded]
        start = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (size, *np.shape(x))), rule_start(REACTIVE))
        carry = (
            np.full(size, plays.which, np.int32),
            jax.tree.map(lambda *x: np.stack(x), *sequences),
            np.zeros(size, np.int32),
            jax.tree.map(lambda *x: np.stack(x), *plans),
            start,
        )
        params: Any = self._params(program, seeds[padded])
        env: Any = program.env
        compiled = count_compiled()
        trajectory = ig.rollout(env, params, choose, seeds[padded], length=program.length, carry=carry, carry_axis=0)
        if count_compiled() > compiled:
            let_go()
        cut = np.ascontiguousarray if len(block) < size else np.asarray  # a view would keep all of a block
        return jax.tree.map(lambda x: cut(np.asarray(x)[:, : len(block)]), trajectory)

    def _scores(
        self, program: FleetProgram, trajectory: Any, seeds: np.ndarray, lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Components and score of every episode over its own length, total rewards and GPU-seconds."""
        inside = np.arange(program.length)[:, None] < lengths[None, :]

        def total(values: Any) -> np.ndarray:
            return np.where(inside, values, 0).sum(axis=0, dtype=np.float64)

        outcome = trajectory.outcome
        bad = sum(total(np.asarray(getattr(outcome, name)).sum(axis=-1)) for name in ("late", "rejected", "failed"))
        paid = total(outcome.gpu_seconds)
        columns = fleet_scores(paid, bad, lengths, self._params(program, seeds))
        return columns | {
            "total_rewards": total(trajectory.reward),
            "oom_shares": np.zeros(len(lengths)),
            "gpu_seconds": paid,
        }


def _columns(sequence: Sequence[Mapping[str, Any]], steps: int) -> FleetAction:
    """Actions as NumPy int32[steps] of every knob, filled up with the defaults."""
    columns = {name: np.full(steps, knob.default, np.int32) for name, knob in FLEET_KNOBS.items()}
    for name, column in columns.items():
        column[: len(sequence)] = [action[name] for action in sequence]
    return FleetAction(**columns)

"""What a training run is made of: frozen, checked, readable from YAML; one file a task in ``training/configs/``.

``TrainConfig`` holds what fixes shapes and loops, ``Hyperparameters`` the numbers that may be traced, so that a sweep
is a vmap over them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jax
import yaml

from inferencegym_jax import registry
from inferencegym_jax.encoding import History
from inferencegym_jax.fleet.making import fleet_spec_of, is_anywhere, is_fleet
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, check_seed, check_whole
from inferencegym_jax.policies.fleet_numbers import FLEET_SIZE
from inferencegym_jax.policies.relative import RELATIVE_SIZE
from inferencegym_jax.registry import Problem
from inferencegym_jax.tasks import get_task, shipped_specs
from inferencegym_jax.traffic.log_rows import ReadOptions
from inferencegym_jax.traffic.request_log import load_trace

STARTS = ("middle", "baseline", "best_static")
MEMORIES = ("none", "gru")
READS = ("observation", "relative")
ACTS = ("knobs", "correction")
BASE_RULES = ("tuned", "calm")
LARGEST_BLOCK = 16  # blocks of environments at least, where they can be cut so: as many devices may share them
CONFIGS = Path(__file__).resolve().parent / "configs"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyperparameters:
    """Numbers of PPO (Schulman et al., 2017) that the compiled update takes as arguments; each may be a traced
    scalar."""

    learning_rate: Any = 1e-3  # of Adam, falling linearly to final_learning_rate over the run
    final_learning_rate: Any = 0.0
    discount: Any = 0.95
    gae_lambda: Any = 0.9
    clip: Any = 0.2  # of the probability ratio
    entropy: Any = 1e-3  # weight of the entropy bonus
    value_weight: Any = 0.5
    max_gradient_norm: Any = 0.5
    score_share: Any = (
        0.0  # share of the grader's score, beside the reward, in what is maximised: see training/objective.py
    )
    stability_weight: Any = 0.0  # of changes of the knobs within that score
    late_weight: Any = (
        0.0  # of requests late, rejected or failed, by the mean second's demand, beside what the score has
    )
    memory_weight: Any = 0.0  # of memory that the action would take above the task's limit, per 10 GB
    crash_weight: Any = 0.0  # of an action that would run out of memory if the task's longest prompts came
    # of a fleet, in a mean request's GPU time: of a late request beside the reward's own price is late_weight,
    shed_weight: Any = 0.0  # of a request that is rejected or fails, beside being late
    change_weight: Any = 0.0  # of a GPU asked for more or less than before, in GPU-seconds
    late_limit: Any = 0.0  # most that a decision's late requests cost, in its GPU-seconds at full size; 0: no limit
    signal_scale: Any = 1.0  # of a fleet: by which all that is maximised is multiplied, so that values are near 1


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Raises ``ValueError`` where a field is out of range; the message names field, value and what
    is allowed."""

    task: int | str = 1
    table: str | None = None  # a latency table of your own; default: the shipped one
    trace: str | None = None  # a request log of your own, replayed open-loop in place of the task's traffic
    trace_unit: str | None = None  # how to read it: see inferencegym_jax.load_trace
    trace_columns: str | None = None
    trace_start: str | float | None = None
    trace_end: str | float | None = None
    trace_last: str | float | None = None
    seed: int = 0
    total_steps: int = 2_000_000  # environment steps, rounded up to whole updates
    environments: int = 256  # over all devices
    rollout_length: int = 16  # steps of every environment an update
    epochs: int = 4
    minibatches: int = 4  # random sets of the rollout's steps, every environment in each; with memory the other way
    hidden: tuple[int, ...] = (64, 64)  # tanh layers of the actor, and of the critic
    memory: str = "none"  # or "gru": a recurrent layer that actor and critic read beside the observation
    memory_size: int = 32  # numbers of its hidden state
    history: tuple[float, ...] = ()  # averages of the observation beside it, time constants in seconds
    history_last: int = 0  # and the last so many observations
    reads: str = "observation"  # or "relative": in units of the task's own objectives and capacity
    acts: str = "knobs"  # or "correction": of the tuned load-following controller, of a fleet of the tuned rule, of a
    # closed-loop task of the reactive controller
    # task whose tuned settings (docs/headroom) are corrected, default: the task; or a policy file (.npz), for its own
    plan_of: int | str | None = None
    base_rule: str = "tuned"  # that a fleet's networks correct, or "calm": of data/fleet_rules.json
    out_of_reach: float = 0.0  # share of a fleet's environments whose objectives nobody can meet, of one pool's tasks
    steady: float = 0.0  # share of them whose load is constant, of other heights
    initial_std: float = 0.5  # of the positions in [-1, 1] of kv_budget and batch_size
    start: str = (
        "middle"  # of every knob, or "baseline" or "best_static": the action that the untrained policy is centred on
    )
    stagger: bool = True  # start environments at every moment of an episode instead of all at its beginning
    phases: int = 0  # moments of an episode at which they start; 0: each at its own. A reset takes as long as steps
    evaluate_every: int = 10  # updates
    evaluation_episodes: int = 64
    hyper: Hyperparameters = field(default_factory=Hyperparameters)

    def __post_init__(self) -> None:
        episode = self.episode_length
        if not isinstance(self.hidden, tuple) or not self.hidden:
            raise ValueError(f"hidden = {self.hidden!r}: must be a list of at least one layer size")
        names = ["total_steps", "environments", "rollout_length", "epochs", "minibatches", "memory_size"]
        names += ["evaluate_every", "evaluation_episodes"]
        for name, value in [(name, getattr(self, name)) for name in names] + [("hidden", size) for size in self.hidden]:
            check_whole(name, value)
        check_seed(self.seed)
        ReadOptions.of(self.trace_unit, self.trace_columns, self.trace_start, self.trace_end, self.trace_last)
        if self.rollout_length > episode:
            raise ValueError(f"rollout_length = {self.rollout_length}: must be at most an episode, {episode}")
        whole = isinstance(self.phases, int) and not isinstance(self.phases, bool)
        if not whole or not 0 <= self.phases <= self.environments:
            raise ValueError(
                f"phases = {self.phases!r}: must be a whole number from 0 to environments, {self.environments}"
            )
        if self.memory not in MEMORIES:
            raise ValueError(f"memory = {self.memory!r}: must be one of {', '.join(MEMORIES)}")
        try:
            History(self.history, self.history_last)
        except ValueError as error:
            raise ValueError(f"history, history_last: {error}") from None
        if self.has_gru and self.environments % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches}: must divide environments = {self.environments} "
                "(with memory a minibatch is a set of environments, with all of the rollout's steps)"
            )
        if not self.has_gru and self.rollout_length % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches}: must divide rollout_length = {self.rollout_length} "
                "(a minibatch is a set of its steps)"
            )
        if self.start not in STARTS:
            raise ValueError(f"start = {self.start!r}: must be one of {', '.join(STARTS)}")
        if self.plan_file is not None and self.is_fleet:
            raise ValueError(f"plan_of = {self.plan_of!r}: must be a fleet task; files hold other settings")
        if self.plan_of is not None and self.plan_file is None:
            (fleet_spec_of if self.is_fleet else get_task)(self.plan_of)
        for name, allowed in (("reads", READS), ("acts", ACTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        if self.is_fleet and (self.history or self.history_last):
            raise ValueError("history, history_last: a fleet's observation holds its averages; must be empty")
        if self.is_fleet and self.start == "best_static":
            raise ValueError(f"start = {self.start!r}: a fleet has none; must be middle or baseline")
        if self.acts == "correction" and not self.is_fleet:
            wanted = "observation" if self.corrects_queue else "relative"
            if self.reads != wanted:
                raise ValueError(f"reads = {self.reads!r}: must be {wanted!r} where acts = 'correction' on this task")
        if not isinstance(self.stagger, bool):
            raise ValueError(f"stagger = {self.stagger!r}: must be true or false")
        check_number("initial_std", self.initial_std, above=0.0)
        if self.base_rule not in BASE_RULES:
            raise ValueError(f"base_rule = {self.base_rule!r}: must be one of {', '.join(BASE_RULES)}")
        for name in ("out_of_reach", "steady"):
            value = getattr(self, name)
            check_number(name, value, most=1.0)
            if value and (not self.is_fleet or is_anywhere(self.task) or self.trace is not None):
                raise ValueError(
                    f"{name} = {value!r}: is of a fleet of one pool; must be 0 where the task is no fleet's, is drawn "
                    "or replays a log"
                )
        for item in dataclasses.fields(Hyperparameters):
            value = getattr(self.hyper, item.name)
            if isinstance(value, jax.Array):
                continue
            share = item.name in ("discount", "gae_lambda", "score_share")
            positive = item.name in ("learning_rate", "clip", "max_gradient_norm", "signal_scale")
            check_number(item.name, value, above=0.0 if positive else None, most=1.0 if share else math.inf)

    @property
    def is_fleet(self) -> bool:
        """Whether the task is a fleet's."""
        return is_fleet(self.task)

    @property
    def plan_file(self) -> Path | None:
        """The policy file whose settings are corrected; None where they are a task's."""
        is_file = isinstance(self.plan_of, str) and self.plan_of.endswith(".npz")
        return Path(str(self.plan_of)) if is_file else None

    @property
    def corrects_queue(self) -> bool:
        """Whether the networks correct the reactive controller of a closed-loop task."""
        if self.acts != "correction" or self.is_fleet or self.trace is not None:
            return False
        return get_task(self.task).dynamics == "closed_loop"

    @property
    def task_id(self) -> int:
        """Number of the task."""
        return (fleet_spec_of if self.is_fleet else get_task)(self.task).id

    @property
    def task_name(self) -> str:
        """Name of the task."""
        return (fleet_spec_of if self.is_fleet else get_task)(self.task).name

    @property
    def episode_length(self) -> int:
        """Steps of an episode."""
        return fleet_spec_of(self.task).decisions if self.is_fleet else get_task(self.task).episode_length

    def problem(self) -> Problem:
        """The task on the config's table and log; of a fleet a ``FleetProblem``, which stands for one here."""
        log = self.trace
        if log is not None:
            log = load_trace(
                log,
                self.trace_unit,
                columns=self.trace_columns,
                start=self.trace_start,
                end=self.trace_end,
                last=self.trace_last,
            )
        if self.is_fleet:
            from training.fleet_forms import fleet_problem

            counts = self.environments, self.evaluation_episodes
            return cast(Any, fleet_problem(self.task, self.table, log, *counts, self.out_of_reach, self.steady))
        return registry.problem(self.task, table=self.table, trace=log)

    @property
    def has_gru(self) -> bool:
        """Whether the networks have a recurrent layer."""
        return self.memory == "gru"

    @property
    def hidden_size(self) -> int:
        """Numbers of the recurrent layer's hidden state, 0 without one."""
        return self.memory_size if self.has_gru else 0

    @property
    def observed(self) -> History | None:
        """What the features hold of earlier observations; None for nothing."""
        return History(self.history, self.history_last) if self.history or self.history_last else None

    @property
    def features(self) -> int:
        """Numbers that the networks see of the present and, with ``history``, the past; without the hidden state."""
        return self.numbers * (1 if self.observed is None else self.observed.copies)

    @property
    def numbers(self) -> int:
        """Numbers of one observation."""
        if self.is_fleet:
            return FLEET_SIZE
        return RELATIVE_SIZE if self.reads == "relative" else FLAT_OBSERVATION_SIZE

    @property
    def column_block(self) -> int:
        """Environments that are shuffled among each other where a minibatch is a set of them; every block is shuffled
        alike, and each device holds whole blocks, so that minibatches do not depend on their number."""
        most = max(self.minibatches, self.environments // LARGEST_BLOCK)
        return max(n for n in range(self.minibatches, most + 1, self.minibatches) if self.environments % n == 0)

    def uses(self, weight: str) -> bool:
        """Whether a weight of ``hyper`` is anything but a plain 0: what it weighs is computed only then."""
        value = getattr(self.hyper, weight)
        return not isinstance(value, int | float) or value != 0

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one update."""
        return self.environments * self.rollout_length

    @property
    def updates(self) -> int:
        """Updates of the run, a whole number of evaluations."""
        return self.chunks * self.evaluate_every

    @property
    def chunks(self) -> int:
        """Compiled calls of the run, each ``evaluate_every`` updates and an evaluation."""
        return math.ceil(self.total_steps / (self.steps_per_update * self.evaluate_every))

    def replace(self, **changes: Any) -> TrainConfig:
        """A checked copy; names of ``Hyperparameters`` go there.

        Raises:
            ValueError: unknown key, or a value out of range.
        """
        own = {f.name for f in dataclasses.fields(self)} - {"hyper"}
        hyper = {f.name for f in dataclasses.fields(Hyperparameters)}
        for key in changes:
            if key not in own | hyper | {"hyper"}:
                raise ValueError(f"config key {key!r} is unknown; allowed are {', '.join(sorted(own | hyper))}")
        changed = dict(changes)
        inner = {key: changed.pop(key) for key in list(changed) if key in hyper}
        if isinstance(changed.get("hidden"), list):
            changed["hidden"] = tuple(changed["hidden"])
        if "history" in changed:
            changed["history"] = _seconds(changed["history"])
        if inner:
            changed["hyper"] = dataclasses.replace(changed.get("hyper", self.hyper), **inner)
        return dataclasses.replace(self, **changed)

    def to_dict(self) -> dict[str, Any]:
        """All fields flat, as YAML and JSON hold them."""
        flat = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "hyper"}
        flat |= {"hidden": list(self.hidden), "history": list(self.history)}
        return flat | {f.name: float(getattr(self.hyper, f.name)) for f in dataclasses.fields(self.hyper)}


def check_number(name: str, value: Any, above: float | None = None, most: float = math.inf) -> None:
    """Raise ``ValueError`` unless value is a finite number of at least 0 (or above ``above``) and at most ``most``."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value <= most
    if not good or (value <= above if above is not None else value < 0):
        low = f"above {above:g}" if above is not None else "of at least 0"
        raise ValueError(
            f"{name} = {value!r}: must be a finite number {low}{f' and at most {most:g}' if most < math.inf else ''}"
        )


def from_mapping(entries: Mapping[str, Any], base: TrainConfig | None = None) -> TrainConfig:
    """A config from flat keys, on top of ``base`` or the defaults.

    YAML reads ``1e-3`` as text; text that is a number is taken as one.

    Raises:
        ValueError: unknown key or bad value.
    """
    if not isinstance(entries, Mapping):
        raise ValueError(f"config = {entries!r}: must be a mapping of keys to values")
    return (base or TrainConfig()).replace(**{str(key): _number(str(key), value) for key, value in entries.items()})


def _number(key: str, value: Any) -> Any:
    if isinstance(value, str) and key not in ("task", "table", "trace", "plan_of") and not key.startswith("trace_"):
        try:
            return (
                yaml.safe_load(value) if not _is_float(value) else float(value) if not value.isdigit() else int(value)
            )
        except yaml.YAMLError:
            return value
    return value


def _seconds(value: Any) -> tuple[Any, ...]:
    """Numbers of seconds from a number, a list, or text as ``15,120``; nothing where it is None, "none" or empty."""
    if value is None or value == "none":
        return ()
    if isinstance(value, str):
        value = [float(part) if _is_float(part) else part for part in value.split(",") if part.strip()]
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def load_config(path: str | Path) -> TrainConfig:
    """Read a YAML file of flat keys.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML, unknown key or bad value; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config = {str(path)!r}: no such file")
    try:
        return from_mapping(yaml.safe_load(path.read_text()) or {})
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def task_config(task: int | str) -> TrainConfig:
    """The config of a task in ``training/configs/``; the defaults where it has none, as a registered one."""
    if is_fleet(task):
        own = fleet_spec_of(task)
        path = CONFIGS / f"task{own.id}.yaml"
        return load_config(path) if path.is_file() else TrainConfig(task=own.name)
    spec = get_task(task)
    path = CONFIGS / f"task{spec.id}.yaml"
    return load_config(path) if spec.name in shipped_specs() and path.is_file() else TrainConfig(task=spec.name)

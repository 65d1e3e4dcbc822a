"""A task on one table and one traffic, with everything that follows from the two: ``Problem``.

``task, table, trace, dynamics, config -> problem -> environment, params, normalisers, the best static action``. On the
shipped table and a task's own traffic the last two come from ``data/calibration.json``, elsewhere from an exhaustive
search over the static actions, which runs once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.static_search import StaticSearch, best_action, normalise, refine
from inferencegym_jax.fleet.making import is_fleet, make_fleet
from inferencegym_jax.models import EPISODE_LENGTH, EnvParams, ServeAction, shown
from inferencegym_jax.scoring.grader import score_aggregates
from inferencegym_jax.scoring.reward import Reward
from inferencegym_jax.scoring.static_reference import with_static_reference
from inferencegym_jax.table import profile_of
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from inferencegym_jax.tasks import (
    NORMALISERS,
    NOT_NORMALISED,
    OPEN_LOOP_NORMALISERS,
    Calibration,
    TaskSpec,
    calibration,
    check_config,
    dynamics_of,
    get_task,
    known_calibration,
    make_params,
    search_with,
)
from inferencegym_jax.tasks.draws import Draws, draws_of
from inferencegym_jax.traffic.request_log import RequestLog, load_trace
from inferencegym_jax.traffic.stretches import representative_seeds

SEARCH_SEEDS = 16  # episodes of each static action in a search


@dataclass(frozen=True, eq=False)
class Problem:
    """A task on one table and one traffic; made by ``problem``.

    Attributes:
        spec: the task.
        env: its environment, which holds the table and the request log.
        params: the task as numbers.
        normalisers: what rewards and graders divide by: ``optimal_tps`` (tokens/s), ``cost_normaliser`` (cost per 1,000
            tokens) and ``throughput_floor`` (tokens/s); open-loop also ``demand_tps`` (tokens/s) and ``demand_rps``
            (requests/s), ``static_gpus`` and ``static_on_time_share`` of the best static action.
        dynamics: "closed_loop" or "open_loop".
        config: the overrides of the task's reward weights and objective.
        own_best_static: the best static action where it was searched elsewhere, on traffic that no params describe.
    """

    spec: TaskSpec
    env: Environment
    params: EnvParams
    normalisers: dict[str, float]
    dynamics: str
    config: dict[str, float] = field(default_factory=dict[str, float])
    own_best_static: ServeAction | None = None

    @property
    def table(self) -> LatencyTable:
        """The latency table."""
        return self.env.table

    @property
    def trace(self) -> RequestLog | None:
        """The request log that is replayed in place of the task's traffic, if any."""
        return self.env.trace

    @functools.cached_property
    def best_static(self) -> ServeAction:
        """The static action with the best mean score on this table and this traffic, of those that never run out of
        memory there (of Python numbers)."""
        if self.own_best_static is not None:
            return self.own_best_static
        return ServeAction(**_calibration(self.spec, self.table, self.dynamics, self.trace)["best_static"]["action"])

    def score(self, statistics: Any) -> np.ndarray:
        """The grader's score of each episode, float64[episodes].

        Args:
            statistics: ``EpisodeStatistics`` of ``evaluate`` on this problem, or ``Aggregates`` of its episodes.
        """
        return np.asarray(score_aggregates(self.spec, statistics, self.normalisers)["score"], np.float64)


def problem(
    task: int | str | TaskSpec,
    *,
    table: str | Path | LatencyTable | None = None,
    trace: str | Path | RequestLog | None = None,
    dynamics: str | None = None,
    config: Mapping[str, Any] | None = None,
    reward: Reward | None = None,
) -> Problem:
    """A task with its environment, params, normalisers and, when asked, the best static action.

    Args:
        task: a number or a name: 1 "static-uniform", 2 "bursty-sharegpt", 3 "adversarial-multi-tenant",
            4 "azure-conversation", 5 "mooncake-conversation"; that of a registered one; or a ``TaskSpec``.
        table: a latency table of your own (parquet, CSV or ``LatencyTable``). Default: the shipped one.
        trace: a request log of your own (CSV or JSON lines, see ``load_trace``), replayed second by second in place of
            the task's traffic, open-loop. Seed s starts at its second 200 s, and past its end it begins again.
        dynamics: "open_loop" serves the task's traffic by continuous batching. Default: the task's own.
        config: overrides among alpha, beta, gamma, delta and slo_ttft_ms.
        reward: a reward function of your own, see ``Environment``; scores stay the grader's.

    Raises:
        ValueError: unknown task or dynamics, unknown or bad config (the message says what is allowed).
        FileNotFoundError, TableError, TraceError: the table or the log cannot be used.
        TypeError: the reward is no function of a second, or gives no number.
    """
    spec, overrides = get_task(task), check_config(config)
    loaded = load_table(table)
    log = None if trace is None else load_trace(trace)
    loop = dynamics_of(spec, dynamics, log)
    calibrated = _calibration(spec, loaded, loop, log)
    names = NORMALISERS + (OPEN_LOOP_NORMALISERS if loop == "open_loop" else ())
    normalisers = {name: float(calibrated[name]) for name in names}
    params = make_params(spec, loaded, normalisers, overrides, loop, log)
    env = Environment(loaded, params, log, reward, drawn_by(spec, loaded, log))
    return Problem(spec, env, params, normalisers, loop, overrides)


@functools.lru_cache(maxsize=8)
def drawn_by(spec: TaskSpec, table: LatencyTable, trace: RequestLog | None = None) -> Draws | None:
    """What a task draws for each episode; None of one that draws nothing, or that replays a log. On a table of one's
    own every episode has its engine.

    Raises:
        ValueError, TableError: see ``draws_of``.
    """
    if spec.draws is None or trace is not None:
        return None
    return draws_of(spec.draws, None if table == load_table() else profile_of(table))


def make(
    task: int | str | TaskSpec = 1,
    *,
    table: str | Path | LatencyTable | None = None,
    config: Mapping[str, Any] | None = None,
    dynamics: str | None = None,
    trace: str | Path | RequestLog | None = None,
    reward: Reward | None = None,
) -> tuple[Environment, EnvParams]:
    """An environment and the params of a task; arguments and errors are those of ``problem``.

    With a table or a log of one's own the throughput and cost normalisers are found by an exhaustive search over the
    table's static actions, which takes a few seconds once. The name or id of a fleet task gives a ``FleetEnvironment``
    and its ``FleetParams``, see ``make_fleet``.
    """
    if is_fleet(task):
        if config is not None or dynamics is not None or reward is not None:
            raise ValueError(f"task = {shown(task)}: a fleet takes no config, dynamics or reward; see ig.make_fleet")
        return cast(Any, make_fleet(cast(Any, task), table=table, trace=trace))
    made = problem(task, table=table, trace=trace, dynamics=dynamics, config=config, reward=reward)
    return made.env, made.params


def _calibration(spec: TaskSpec, table: LatencyTable, dynamics: str, trace: RequestLog | None) -> Calibration:
    """Normalisers and best static action: those known of the task, else those of a search."""
    known = _known(spec, table, dynamics, trace)
    return search(spec, table, dynamics, trace) if known is None else known


def _known(spec: TaskSpec, table: LatencyTable, dynamics: str, trace: RequestLog | None) -> Calibration | None:
    """What is known of the task where table, dynamics and traffic are those that it was found on."""
    shipped = load_table()
    usual = trace is None and dynamics == spec.dynamics and table == shipped
    return known_calibration(spec) if usual and shipped.digest == calibration()["table_digest"] else None


def needs_search(spec: TaskSpec, table: LatencyTable, trace: RequestLog | None = None) -> bool:
    """Whether ``problem`` would search the static actions, which takes from seconds to minutes, once a process.

    Args:
        spec: the task, under its own dynamics.
        table: of the engine.
        trace: a request log in place of its traffic.
    """
    return _known(spec, table, dynamics_of(spec, None, trace), trace) is None


@functools.lru_cache(maxsize=32)
def search(spec: TaskSpec, table: LatencyTable, dynamics: str, trace: RequestLog | None = None) -> Calibration:
    """An exhaustive search over the static actions on the table's own nodes; where episodes are no longer than usual,
    the best one is refined between them. On a log its episodes are of every load that the log has, the busiest among
    them (``representative_seeds``).

    Returns:
        The normalisers and ``"best_static": {"action", "mean_score"}``, as an entry of ``data/calibration.json``.

    Raises:
        ValueError: every static action runs out of memory.
    """
    with jax.ensure_compile_time_eval():  # the search runs now, also where a caller is being traced
        params = make_params(spec, table, NOT_NORMALISED, None, dynamics, trace)
        env, seeds = Environment(table, params, trace, draws=drawn_by(spec, table, trace)), np.arange(SEARCH_SEEDS)
        if trace is not None:  # the log's first episodes need not be like the others
            seeds = representative_seeds(trace, spec.episode_length, SEARCH_SEEDS)
        normalisers, grid = normalise(env, params, seeds)
        normalisers = {**normalisers, "throughput_floor": 0.0}

        def scores_of(search: StaticSearch) -> np.ndarray:
            return with_static_reference(spec, search.per_seed, normalisers)[1]

        # long episodes are dear, and the grid is searched on more of their seconds
        statics = refine(env, params, grid, scores_of, seeds) if spec.episode_length <= EPISODE_LENGTH else grid
        normalisers, scores = with_static_reference(spec, statics.per_seed, normalisers)
    best = best_action(statics, scores)
    return {**normalisers, "best_static": {"action": statics.actions[best], "mean_score": float(scores[best])}}


@search_with
def search_shipped(spec: TaskSpec) -> Calibration:
    """``search`` on the shipped table, under the task's own traffic and dynamics."""
    return search(spec, load_table(), spec.dynamics)

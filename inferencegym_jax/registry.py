"""``make``: from a task's number or name to an environment and its params; what its score and its rival are there."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.static_search import best_action, normalise
from inferencegym_jax.models import EnvParams
from inferencegym_jax.scoring.grader import score_aggregates
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from inferencegym_jax.tasks import TaskSpec, calibration, check_config, get_task, make_params
from inferencegym_jax.traffic.request_log import RequestLog, load_trace

OWN_TABLE_SEEDS = 16  # episodes a static action when a user's own table or traffic is normalised


def make(
    task: int | str = 1,
    *,
    table: str | Path | LatencyTable | None = None,
    config: Mapping[str, Any] | None = None,
    dynamics: str | None = None,
    trace: str | Path | RequestLog | None = None,
) -> tuple[Environment, EnvParams]:
    """An environment and the params of a task.

    Args:
        task: a number or a name: 1 "static-uniform", 2 "bursty-sharegpt", 3 "adversarial-multi-tenant",
            4 "azure-conversation", 5 "mooncake-conversation".
        table: a latency table of your own (parquet, CSV or ``LatencyTable``); its throughput and cost normalisers are
            then found by an exhaustive search over its static actions, which takes a few seconds once. Default: the
            shipped one.
        config: overrides among alpha, beta, gamma, delta and slo_ttft_ms.
        dynamics: "open_loop" serves the task's traffic by continuous batching (ENVIRONMENT.md, section 9). Default: the
            task's own.
        trace: a request log of your own (CSV or JSON lines, see ``load_trace``), replayed second by second in place of
            the task's traffic, open-loop. Seed s starts at its second 200 s, and past its end it begins again.

    Raises:
        ValueError: unknown task or dynamics, unknown or bad config (the message says what is allowed).
        FileNotFoundError, TableError, TraceError: the table or the log cannot be used.
    """
    spec = get_task(task)
    check_config(config)
    loaded = load_table(table)
    log = None if trace is None else load_trace(trace)
    params = make_params(spec, loaded, normalisers(spec, loaded, dynamics, log), config, dynamics, log)
    return Environment(loaded, params, log), params


def normalisers(
    spec: TaskSpec, table: LatencyTable, dynamics: str | None = None, trace: RequestLog | None = None
) -> dict[str, float]:
    """``optimal_tps`` and ``cost_normaliser`` of a task: the shipped calibration's where table, dynamics and traffic
    are."""
    shipped = _shipped(spec, table, dynamics, trace)
    return _search(spec.name, table, dynamics, trace)[0] if shipped is None else shipped


def best_static_action(
    spec: TaskSpec, table: LatencyTable, dynamics: str | None = None, trace: RequestLog | None = None
) -> dict[str, Any]:
    """The static action with the best mean score of a task among those never out of memory, as a knob dict: the shipped
    calibration's where table, dynamics and traffic are, otherwise that of the search that ``normalisers`` makes, over
    the table's own nodes."""
    shipped = _shipped(spec, table, dynamics, trace)
    return dict(_search(spec.name, table, dynamics, trace)[1] if shipped is None else shipped["best_static"]["action"])


def _shipped(
    spec: TaskSpec, table: LatencyTable, dynamics: str | None, trace: RequestLog | None
) -> dict[str, Any] | None:
    found = calibration()
    same = table.digest == found["table_digest"] and trace is None and dynamics in (None, spec.dynamics)
    return found["tasks"][spec.name] if same else None


@functools.lru_cache(maxsize=32)
def _search(
    name: str, table: LatencyTable, dynamics: str | None, trace: RequestLog | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """(normalisers, best static action)."""
    spec = get_task(name)
    params = make_params(spec, table, {"optimal_tps": 1.0, "cost_normaliser": 1.0}, None, dynamics, trace)
    found, search = normalise(Environment(table, params, trace), params, np.arange(OWN_TABLE_SEEDS))
    found = {**found, "throughput_floor": 0.0}
    scores = np.asarray(score_aggregates(spec, search.per_seed, found)["score"]).mean(axis=1)
    return found, search.actions[best_action(search, scores)]

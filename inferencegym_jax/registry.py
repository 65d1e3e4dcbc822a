"""``make``: from a task's number or name to an environment and its params."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.models import EnvParams
from inferencegym_jax.solver import normalise
from inferencegym_jax.table import LatencyTable, load_table
from inferencegym_jax.tasks import TaskSpec, calibration, check_config, get_task, make_params

OWN_TABLE_SEEDS = 16  # episodes a static action when a user's own table is normalised


def make(
    task: int | str = 1,
    *,
    table: str | Path | LatencyTable | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Environment, EnvParams]:
    """An environment and the params of a task.

    Args:
        task: 1, 2, 3 or a name ("static-uniform", "bursty-sharegpt", "adversarial-multi-tenant").
        table: a latency table of your own (parquet, CSV or ``LatencyTable``); its throughput and cost normalisers are
        then
            found by an exhaustive search over its static actions, which takes a few seconds once. Default: the
            shipped one.
        config: overrides among alpha, beta, gamma, delta and slo_ttft_ms.

    Raises:
        ValueError: unknown task, unknown or bad config (the message says what is allowed).
        FileNotFoundError, TableError: the table cannot be used.
    """
    spec = get_task(task)
    check_config(config)
    loaded = load_table(table)
    params = make_params(spec, loaded, normalisers(spec, loaded), config)
    return Environment(loaded, params), params


def normalisers(spec: TaskSpec, table: LatencyTable) -> dict[str, float]:
    """``optimal_tps`` and ``cost_normaliser`` of a task on a table: the shipped calibration's where it is that
    table's."""
    shipped = calibration()
    if table.digest == shipped["table_digest"]:
        return shipped["tasks"][spec.name]
    return _search(spec.name, table)


@functools.lru_cache(maxsize=32)
def _search(name: str, table: LatencyTable) -> dict[str, float]:
    spec = get_task(name)
    params = make_params(spec, table, {"optimal_tps": 1.0, "cost_normaliser": 1.0})
    found, _ = normalise(Environment(table, params), params, np.arange(OWN_TABLE_SEEDS))
    return {**found, "throughput_floor": 0.0}

"""A fleet by name: ``make_fleet``; and conditions drawn for each episode, fleet-anywhere's: ``draw_condition``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.spec import FleetSpec, fleet_params, fleet_specs, get_fleet
from inferencegym_jax.fleet.state import TRAINING_SEEDS, FleetParams
from inferencegym_jax.models import check_seed, shown
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from inferencegym_jax.traffic.request_log import RequestLog, load_trace

ANYWHERE, ANYWHERE_ID = "fleet-anywhere", 804
TRAINING_POOLS, TEST_POOLS = ("azure-day", "m-large"), ("azure-day", "m-large", "m-mid")
OBJECTIVES = ((2000.0, 100.0), (1000.0, 50.0), (500.0, 30.0))
"""TTFT and TPOT, ms: MLPerf inference's llama3.1-8b and its interactive tier, and the elastic fleets' between them."""
OUT_OF_REACH = (1500.0, 15.0)
"""MLPerf's deepseek-r1-interactive: a shipped engine's bare iteration alone takes nearly as long."""
UNREACHABLE = 0.25
STARTS_S = (3.0, 30.0, 100.0)
SCALES = (0.5, 1.0, 2.0)


def is_fleet(task: Any) -> bool:
    """Whether a task is a fleet's: a ``FleetSpec``, or the name or id of one that ships."""
    if isinstance(task, FleetSpec) or is_anywhere(task):
        return True
    return any(task in (spec.name, spec.id) for spec in fleet_specs().values() if not isinstance(task, bool))


def is_anywhere(task: Any) -> bool:
    """Whether a task is fleet-anywhere's name or id."""
    return task == ANYWHERE or (task == ANYWHERE_ID and not isinstance(task, bool))


@functools.cache
def fleet_tasks() -> dict[str, FleetSpec]:
    """Every fleet task by name; fleet-anywhere is its first training condition."""
    return {**fleet_specs(), ANYWHERE: draw_condition(TRAINING_SEEDS)}


def make_fleet(
    task: int | str | FleetSpec = "fleet-elastic",
    *,
    table: str | Path | LatencyTable | None = None,
    trace: str | Path | RequestLog | None = None,
    **changes: Any,
) -> tuple[FleetEnvironment, FleetParams]:
    """A fleet's environment and the params of its task.

    Args:
        task: "fleet-elastic", "fleet-elastic-m-large", "fleet-elastic-m-mid", their ids, "fleet-anywhere" (params of
            its first training condition; ``anywhere_params`` draws more), or a ``FleetSpec``.
        table: of one engine. Default: the shipped one.
        trace: a request log of your own, replayed second by second; seed s starts s episodes into it.
        changes: fields of ``FleetSpec`` that differ, as ``clock=1.0, start_s=100.0``.

    Raises:
        ValueError: no such task, or a field out of its range.
        TypeError: no such field.
        FileNotFoundError, TableError, TraceError: the table or the log cannot be used.
    """
    spec = fleet_spec_of(task)
    spec = spec.replace(**changes) if changes else spec
    loaded = load_table(table)
    log = None if trace is None else load_trace(trace)
    params = fleet_params(spec, loaded, log)
    return FleetEnvironment(loaded, params, log), params


def fleet_spec_of(task: int | str | FleetSpec) -> FleetSpec:
    """The fleet task of a name or an id; of "fleet-anywhere" its first training condition.

    Raises:
        ValueError: no such task.
    """
    if is_anywhere(task):
        return draw_condition(TRAINING_SEEDS)
    if not is_fleet(task):
        raise ValueError(
            f"fleet = {shown(task)}: no such fleet task; there are {', '.join((*fleet_specs(), ANYWHERE))}"
        )
    return get_fleet(task)


def draw_condition(seed: int) -> FleetSpec:
    """The condition of a seed of fleet-anywhere: pool, lengths, objectives, start, clock, weight format.

    Seeds from 2^31 on are for training and never see the pool m-mid or lengths as they are in it; a quarter of the
    objectives is out of reach. Lengths half and twice as long make pools that nobody measured.

    Raises:
        ValueError: no whole number from 0 to 4294967295.
    """
    training = check_seed(seed) >= TRAINING_SEEDS
    rng = np.random.default_rng([seed, ANYWHERE_ID])
    pools = TRAINING_POOLS if training else TEST_POOLS
    ttft, tpot = OUT_OF_REACH if rng.random() < UNREACHABLE else OBJECTIVES[rng.integers(len(OBJECTIVES))]
    real = rng.random() < 0.5
    clock = float(rng.choice((1.0, 12.0)))
    return FleetSpec(
        name=ANYWHERE,
        id=ANYWHERE_ID,
        title="Fleet Anywhere",
        difficulty="hard",
        description="A fleet of any pool, day, objective, start, clock and weight format, drawn for each episode.",
        pool=str(rng.choice(pools)),
        prompt_scale=1.0 if real else float(rng.choice(SCALES)),
        output_scale=1.0 if real else float(rng.choice(SCALES)),
        slo_ttft_ms=ttft,
        slo_tpot_ms=tpot,
        start_s=float(rng.choice(STARTS_S)),
        clock=clock,
        windows_a_day=12 if clock == 1.0 else 1,
        quant_tier=int(rng.choice((0, 2))),
    )


@functools.lru_cache(maxsize=4096)
def _condition_params(spec: FleetSpec, table: LatencyTable) -> FleetParams:
    return fleet_params(spec, table)


def anywhere_params(seeds: Sequence[int], table: LatencyTable | None = None) -> FleetParams:
    """Params of fleet-anywhere's conditions, an entry a seed: NumPy arrays, to be played with the same seeds.

    Args:
        seeds: whole numbers; those from 2^31 on are training conditions.
        table: of one engine; default: the shipped one.

    Raises:
        ValueError: see ``draw_condition``.
    """
    loaded = load_table() if table is None else table
    rows = [_condition_params(draw_condition(int(seed)), loaded) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

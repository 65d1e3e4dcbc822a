"""How fast the engine is at a moment, beside what was measured of it before: a host that other guests share is not
always equally fast, and near saturation a tenth of an iteration decides how long the queue is.

``engine, table -> a slice of seconds under constant load -> its gaps over those that the table foretells of it``;
``table, factor -> the table of an engine that is so much slower -> drift's shares on time``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import numpy as np

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.measure.beside import load_of
from inferencegym_jax.live.measure.cell_run import Slice, run_cell
from inferencegym_jax.live.scenarios.described import Drift, scenario_of
from inferencegym_jax.live.scenarios.drift import drift, switching
from inferencegym_jax.live.scenarios.rivals import BEST, NEXT, OPEN, SWITCHING
from inferencegym_jax.live.server.probe import probe
from inferencegym_jax.live.server.streaming import Endpoint, open_client
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.profile_engine import engine_times
from inferencegym_jax.live.trial.runs import TrialSettings, foretell
from inferencegym_jax.models import ServeAction
from inferencegym_jax.table.latency_table import METRICS, LatencyTable

SLICE_S = 3.0
SLOWDOWNS = (1.0, 1.05, 1.1, 1.15, 1.2)
TIMES_OF_METADATA = ("prefill_ms", "path_ms")


def slowdown_now(endpoint: Endpoint, table: LatencyTable, seed: int, slice_s: float = SLICE_S) -> float:
    """By what an iteration takes longer now than the table says: half its largest batch in flight, its shortest prompt,
    for one slice; below 1 where the engine is faster.

    Args:
        endpoint: the engine, which has nothing else to do.
        table: measured on it.
        seed: of lengths and prompts.
        slice_s: shortest slice, seconds; it takes two requests at least.

    Raises:
        EngineError: requests fail one after another.
    """
    return over_table(asyncio.run(_slice(endpoint, table, seed, slice_s)), table)


def over_table(piece: Slice, table: LatencyTable) -> float:
    """A slice's mean gap over what the table foretells of it: an iteration of as many requests as a token saw beside
    it, and the prefills of others that were counted in the gaps."""
    load = load_of(table, piece.seconds)
    times = engine_times(table)
    decode = times.decode_ms(piece.inside, load.prompt_tokens + 0.5 * load.output_tokens)
    return piece.itl_ms / (decode + piece.prefills * times.prompt_ms(load.prompt_tokens))


async def _slice(endpoint: Endpoint, table: LatencyTable, seed: int, slice_s: float) -> Slice:
    load = load_of(table, slice_s)
    async with open_client(endpoint) as client:
        return await run_cell(
            client,
            (await probe(client, endpoint)).endpoint,
            load.concurrency,
            load.prompt_tokens,
            load.output_tokens,
            seconds=slice_s,
            most_seconds=10.0 * slice_s,
            seed=seed,
        )


def slowed(table: LatencyTable, factor: float) -> LatencyTable:
    """The table of an engine all of whose times are ``factor`` times as long.

    Raises:
        ValueError: a table with an engine profile, whose times are not in its columns; ``measure`` writes none.
    """
    if table.engine is not None:
        raise ValueError(f"table = {table.name}: has an engine profile; must be one that was measured, without")
    values = table.values.copy()
    for name in ("ttft_p50_ms", "ttft_p99_ms", "tpot_ms"):
        values[..., METRICS.index(name)] *= factor
    metadata = dict(table.metadata)
    for key in TIMES_OF_METADATA:
        if key in metadata:
            metadata[key] = json.dumps((factor * np.asarray(json.loads(metadata[key]))).tolist())
    return dataclasses.replace(table, values=values, metadata=metadata)


def drift_at_speeds(table: LatencyTable, found: dict[str, Any], max_num_seqs: int) -> dict[str, list[float]]:
    """Share on time foretold of drift's policies, as they were chosen, on engines of the table's speed and slower ones.

    Args:
        table: measured.
        found: what the stage ``drift`` kept.
        max_num_seqs: the engine's own limit.

    Returns:
        A share for each of the policy's ``factors``, by policy.
    """
    scenario, how, choices = scenario_of("drift"), found["how"], found["choices"]
    assert isinstance(scenario, Drift)
    setting = drift(scenario, table, how["seconds"])
    objective = Objective((setting.objective.ttft_ms,) * 3, setting.objective.tpot_ms)
    sent, settings = setting.traffic(0), TrialSettings(warmup_s=how["warmup_s"], max_num_seqs=max_num_seqs)
    kinds = choices[SWITCHING]
    policies: dict[str, Policy | ServeAction] = {
        BEST: _pair(choices[BEST]),
        NEXT: _pair(choices[NEXT]),
        SWITCHING: switching(_pair(kinds["long prompts"]), _pair(kinds["short prompts"]), how["switch_at_prompt"]),
        OPEN: ServeAction(batch_size=choices[OPEN]),
    }
    shares: dict[str, list[float]] = {name: [] for name in policies}
    for name, policy in policies.items():
        for factor in factors(found, name):
            slower = slowed(table, factor)
            records = foretell(slower, sent, policy, setting.problem.params, settings).records
            counted = [record for record in records if record.arrival_s >= how["warmup_s"]]
            shares[name].append(round(sum(map(objective.met, counted)) / len(counted), 5))
    return shares


def factors(found: dict[str, Any], policy: str) -> list[float]:
    """The slowdowns for which a policy's share is foretold: ``SLOWDOWNS``, and where it was measured the one beside its
    run."""
    then: dict[str, float] = found.get("slowdowns", {})
    return [*SLOWDOWNS, then[policy]] if policy in then else list(SLOWDOWNS)


def _pair(pair: list[float]) -> ServeAction:
    return ServeAction(batch_size=int(pair[0]), kv_budget=float(pair[1]))

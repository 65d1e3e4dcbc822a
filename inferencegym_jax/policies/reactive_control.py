"""A hand-written controller for closed-loop tasks: follow the load, keep the worst case in memory.

``table, params -> ReactivePlan -> policy``. What the controller knows of a GPU and a model is read off its latency table
when the plan is made; what it then does in a second is a few comparisons.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.models import KNOBS, EnvParams, Phase, ServeAction, ServeObservation, WorkloadState
from inferencegym_jax.physics.closed_loop import simulate
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.table.lookup import TableGrid
from inferencegym_jax.traffic.calendar import draw_prompt_len, prompt_bucket

SPARE = 0.005  # share of the memory limit that the plan leaves free
BUDGETS = np.append(np.arange(KNOBS["kv_budget"].low, 1.0, 0.0025), 1.0).astype(np.float32)
SIZES = np.arange(1, int(KNOBS["batch_size"].high) + 1, dtype=np.int32)
PROMPTS, PLAN_SEED = 256, 2**32 - 1  # prompt lengths that expectations are taken over: drawn like the traffic's own
DEVIATIONS = 3.0  # of a second's Poisson arrivals, kept as headroom above their mean


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReactivePlan:
    """What the controller is told of table and task; arrays of 512 have one entry a batch size, from 1.

    Attributes:
        least_batch: float32, the batch size with the highest expected throughput of those that fit into memory.
        most_batch: float32, the largest that fits at the least KV budget if all prompts are the longest there are.
        queue_weight: float32, slots for each waiting request: 1000 over the strictest TTFT objective (ms), at least 1.
        kv_budget: float32[512], the largest budget that fits then.
        spec_length: int32[512], the draft length with the highest expected throughput.
        quant_tier: int32, the weight format with the highest expected throughput.
    """

    least_batch: jax.Array
    most_batch: jax.Array
    queue_weight: jax.Array
    kv_budget: jax.Array
    spec_length: jax.Array
    quant_tier: jax.Array


def act(plan: ReactivePlan, key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """The controller: as many slots as requests are expected, with headroom, and more where some wait.

    Never fewer than the batch size that yields most, never more than memory holds if the longest prompts come. The KV
    budget is what then fits, as eviction costs recompute. No second GPU, which doubles the bill.
    """
    del key, carry
    headroom = DEVIATIONS * jnp.sqrt(observation.arrival_rate)
    wanted = plan.queue_weight * observation.queue_depth + observation.arrival_rate + headroom
    batch = jnp.clip(jnp.floor(wanted), plan.least_batch, plan.most_batch).astype(jnp.int32)
    return ServeAction(
        kv_budget=plan.kv_budget[batch - 1],
        spec_length=plan.spec_length[batch - 1],
        batch_size=batch,
        prefill_disagg=False,
        quant_tier=plan.quant_tier,
    )


def reactive_for(table: LatencyTable, params: EnvParams) -> Policy:
    """The controller planned for a closed-loop task on a latency table.

    Args:
        table: memory, throughput and latency of every action.
        params: one task: its memory limit, prompts, objectives and free knobs.

    Raises:
        ValueError: an open-loop task, or no action fits into the task's memory (says how much is needed).
    """
    return Partial(act, plan_for(table, params))


def plan_for(table: LatencyTable, params: EnvParams) -> ReactivePlan:
    """The plan of a task on a table; arguments and errors as ``reactive_for``."""
    if np.any(np.asarray(params.engine.open_loop)):
        raise ValueError("reactive: this plan is for a closed-loop task; params say that the task is an open-loop one")
    limit = float(min(params.memory_limit_gb, params.oom_limit_gb)) * (1.0 - SPARE)
    tiers, lengths = (_choices(table, params, name) for name in ("quant_tier", "spec_length"))
    budgets, throughput, ttft, least_memory = [], [], [], np.inf
    for tier in tiers:
        for length in lengths:
            memory = np.asarray(_memory(TableGrid(table), params, tier, length))
            least_memory = min(least_memory, float(memory.min()))
            fits = memory <= limit
            largest = BUDGETS[len(BUDGETS) - 1 - np.argmax(fits[:, ::-1], axis=1)]
            budgets.append(np.where(fits.any(axis=1), largest, 0.0))
            means = _expectations(TableGrid(table), params, tier, length, np.maximum(budgets[-1], BUDGETS[0]))
            throughput.append(np.where(budgets[-1] > 0, np.asarray(means[0]), -np.inf))
            ttft.append(np.asarray(means[1]))
    shape = (len(tiers), len(lengths), len(SIZES))
    budget, yields, delay = (np.reshape(x, shape) for x in (budgets, throughput, ttft))
    if not (budget > 0).any():
        raise ValueError(
            f"reactive: no action fits into {limit:.2f} GB on table {table.name!r} at the task's longest prompts; the "
            f"least that one needs is {least_memory:.2f} GB"
        )
    draft = yields.argmax(axis=1)  # index of the best length, by tier and batch size
    budget, yields, delay = (np.take_along_axis(x, draft[:, None], axis=1)[:, 0] for x in (budget, yields, delay))
    slo = float(np.asarray(params.slo_ms)[0])
    in_time = (budget > 0) & (delay <= slo)
    wanted = np.where(in_time if in_time.any() else budget > 0, yields, -np.inf)
    tier, least = np.unravel_index(int(wanted.argmax()), wanted.shape)
    fitting = np.flatnonzero(budget[tier] > 0)
    return ReactivePlan(
        least_batch=jnp.float32(SIZES[least]),
        most_batch=jnp.float32(SIZES[fitting[-1]]),
        queue_weight=jnp.float32(max(1000.0 / slo, 1.0)),
        kv_budget=jnp.asarray(np.maximum(budget[tier], BUDGETS[0]), jnp.float32),
        spec_length=jnp.asarray(np.asarray(lengths)[draft[tier]], jnp.int32),
        quant_tier=jnp.int32(tiers[tier]),
    )


def _choices(table: LatencyTable, params: EnvParams, name: str) -> list[int]:
    """Values of a knob that the plan may choose from: the table's, or the default where the task locks it."""
    if not np.asarray(params.active)[list(KNOBS).index(name)]:
        return [int(table.knob_defaults[name])]
    return [int(node) for node in table.axes[name]]


@functools.partial(jax.jit, static_argnums=0)
def _memory(grid: TableGrid, params: EnvParams, tier: jax.Array, length: jax.Array) -> jax.Array:
    """float32[512, budgets] GB of every batch size and KV budget if all prompts are the traffic's longest."""
    sizes, budgets = jnp.meshgrid(SIZES, BUDGETS, indexing="ij")
    action = ServeAction(batch_size=sizes, kv_budget=budgets, quant_tier=tier, spec_length=length, prefill_disagg=False)
    longest = jnp.maximum(params.short_high, params.long_high)
    same = ServeAction(**{name: jnp.broadcast_to(x, sizes.shape) for name, x in vars(action.as_arrays()).items()})
    return grid.lookup(same, jnp.broadcast_to(longest, sizes.shape))["gpu_mem_gb"]


@functools.partial(jax.jit, static_argnums=0)
def _expectations(
    grid: TableGrid, params: EnvParams, tier: jax.Array, length: jax.Array, budgets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Expected tokens/s and median TTFT (ms), float32[512], of every batch size with its KV budget and no queue."""
    steps = jnp.arange(PROMPTS, dtype=jnp.int32)
    prompts = jax.vmap(lambda step: draw_prompt_len(jnp.uint32(PLAN_SEED), step, params))(steps)
    quiet = params.replace(noise_sigma=jnp.float32(0.0))

    def second(size: jax.Array, budget: jax.Array, prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        nobody, zero = jnp.int32(0), jnp.float32(0.0)
        traffic = WorkloadState(
            arrival_rate=zero,
            mean_prompt_len=prompt,
            prompt_len_bucket=prompt_bucket(prompt),
            queue_depth=nobody,
            priority_distribution=jnp.asarray(params.class_shares),
            is_burst=jnp.bool_(False),
            phase=jnp.int32(Phase.STEADY),
            arrivals=nobody,
            served=nobody,
            rejected=nobody,
        )
        action = ServeAction(kv_budget=budget, spec_length=length, batch_size=size, quant_tier=tier).as_arrays()
        metrics, _ = simulate(grid, action, traffic, jnp.uint32(0), nobody, quiet)
        return metrics.tokens_per_sec, metrics.ttft_p50_ms

    by_prompt = jax.vmap(second, in_axes=(None, None, 0))
    found = jax.vmap(by_prompt, in_axes=(0, 0, None))(jnp.asarray(SIZES), budgets, prompts)
    return found[0].mean(axis=1), found[1].mean(axis=1)

"""The reactive controller's plans, read off a latency table: one for each dynamics.

``table, params -> ReactivePlan``. Closed loop: throughput, TTFT and memory of every action by the step's own physics,
over prompts drawn as the traffic's. Open loop: iterations of the table's engine profile.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import KNOBS, TRAFFIC_DAY, TRAFFIC_FITTED, EnvParams, Phase, ServeAction, WorkloadState
from inferencegym_jax.physics.closed_loop import simulate
from inferencegym_jax.physics.iteration import Iterations, iteration, prompt_nodes, prompts_ms
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.speculation import accepted_tokens
from inferencegym_jax.policies.reactive_control import SIZES, ReactivePlan, act
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.table.lookup import TableGrid
from inferencegym_jax.traffic.calendar import EMA_STEPS, draw_prompt_len, prompt_bucket

SPARE = 0.005  # share of the memory limit that a plan leaves free
BUDGETS = np.append(np.arange(KNOBS["kv_budget"].low, 1.0, 0.0025), 1.0).astype(np.float32)
BATCHES = np.arange(1, SIZES + 1, dtype=np.int32)
PROMPTS, PLAN_SEED = 256, 2**32 - 1  # prompt lengths that expectations are taken over: drawn like the traffic's own
NEARLY_BEST = 0.9  # of the highest throughput: what more slots may cost that wait for a burst
BUSY = 4.0  # standard deviations of the arrival rate's average above its mean: a burst
PEAK_HEADROOM = 2.0  # standard deviations of a second's arrivals in a burst
PREEMPTED = 0.01  # chance, a completion, that the running outgrow what the watermark leaves free


def reactive_for(table: LatencyTable, params: EnvParams) -> Policy:
    """The reactive controller planned for a task on a latency table.

    Args:
        table: what every action costs there; of an open-loop task, its engine profile.
        params: one task: its memory, prompts, objectives and free knobs.

    Raises:
        ValueError: no action fits into the task's memory (says how much is needed).
        TableError: an open-loop task on a table that says too little of an engine.
    """
    return Partial(act, plan_for(table, params))


def plan_for(table: LatencyTable, params: EnvParams) -> ReactivePlan:
    """The plan of a task on a table; arguments and errors as ``reactive_for``."""
    with jax.ensure_compile_time_eval():  # a plan is made now, also where a caller is being traced
        return open_loop_plan(table, params) if int(params.engine.open_loop) else closed_loop_plan(table, params)


def closed_loop_plan(table: LatencyTable, params: EnvParams) -> ReactivePlan:
    """The plan of a closed-loop task: memory holds the longest prompts that there are, whatever comes.

    Fewest slots: the batch size with the highest expected throughput of those whose expected TTFT meets the strictest
    objective. Most slots: what fits at the least KV budget. Where bursts come that fit, the most is what a burst can
    bring, and the fewest are more, if that costs at most a tenth of the throughput. KV budget: the largest that fits at
    each batch size, as evicting costs recompute. Drafts and weight format: those with the highest expected throughput.
    """
    limit = _limit_gb(params)
    tiers, lengths = _choices(table, params, "quant_tier"), _choices(table, params, "spec_length")
    grid = TableGrid(table)
    budgets, throughputs, delays, least_memory = [], [], [], math.inf
    for tier in tiers:
        for length in lengths:
            largest, fits, least = _largest_budgets(grid, params, tier, length, limit)
            least_memory = min(least_memory, least)
            tokens, ttft = (np.asarray(x) for x in _expectations(grid, params, tier, length, largest))
            budgets.append(np.where(fits, largest, 0.0))
            throughputs.append(np.where(fits, tokens, -np.inf))
            delays.append(ttft)
    shape = (len(tiers), len(lengths), SIZES)
    budget, throughput, delay = (np.reshape(x, shape) for x in (budgets, throughputs, delays))
    if not (budget > 0).any():
        raise ValueError(
            f"reactive: no action fits into {limit:.2f} GB on table {table.name!r} at the task's longest prompts; the "
            f"least that one needs is {least_memory:.2f} GB"
        )
    draft = throughput.argmax(axis=1)  # index of the best length, by tier and batch size
    budget, throughput, delay = (
        np.take_along_axis(x, draft[:, None], axis=1)[:, 0] for x in (budget, throughput, delay)
    )
    slo = float(np.asarray(params.slo_ms)[0])
    in_time = (budget > 0) & (delay <= slo)
    candidates = np.where(in_time if in_time.any() else budget > 0, throughput, -np.inf)
    tier, fastest = np.unravel_index(int(candidates.argmax()), candidates.shape)
    fits, least, busy = float(BATCHES[budget[tier] > 0].max()), float(BATCHES[fastest]), math.inf
    usual, peak = float(params.rate), float(params.burst_rate)
    most = fits
    if usual < peak <= fits:  # slots for more than a GPU can hold would cost throughput and not keep the queue short
        most = max(min(fits, math.floor(peak + PEAK_HEADROOM * math.sqrt(peak))), least)
        nearly = BATCHES[candidates[tier] >= NEARLY_BEST * candidates[tier, fastest]]
        least = max(least, float(nearly[nearly <= most].max()))
        busy = usual + BUSY * math.sqrt(usual / EMA_STEPS)  # its variance is the rate over the span
    return ReactivePlan(
        least_batch=jnp.float32(least),
        most_batch=jnp.float32(most),
        busy_rate=jnp.float32(busy),
        queue_weight=_queue_weight(params),
        kv_budget=jnp.asarray(np.maximum(budget[tier], BUDGETS[0]), jnp.float32),
        spec_length=jnp.asarray(np.asarray(lengths)[draft[tier]], jnp.int32),
        quant_tier=jnp.int32(tiers[tier]),
        by_rate=jnp.bool_(False),
    )


def open_loop_plan(table: LatencyTable, params: EnvParams) -> ReactivePlan:
    """The plan of an open-loop task: the baseline's weight format and one GPU.

    Slots: as many as keep an iteration within the TPOT objective. Watermark: the running outgrow the free share above
    it with a chance of 1 % a completion, ``exp(-theta H)``, theta = P / (O (P + O)), H tokens free. Drafts, by arrival
    rate: those with the shortest TPOT at the number running that the rate then brings (Little's law).
    """
    grid, engine = iterations_of(table), params.engine
    prompt, output = _mean_lengths(table, params)
    tier = int(table.knob_defaults["quant_tier"])
    lengths = _choices(table, params, "spec_length")
    tpot = np.stack([np.asarray(_tpot(grid, params, prompt, output, k, tier)) for k in lengths])
    slo = float(np.min(np.asarray(engine.slo_tpot_ms)))
    within = np.flatnonzero(tpot.min(axis=0) <= slo)
    most = int(BATCHES[within[-1]]) if len(within) else 1
    pool = grid.profile.pool_tokens(tier, float(engine.memory_gb))
    theta = prompt / (output * (prompt + output))
    free = math.log(1.0 / PREEMPTED) / theta
    budget = float(np.clip(1.0 - free / pool, *(getattr(KNOBS["kv_budget"], side) for side in ("low", "high"))))
    # requests/s that n running finish: n / (O t); at each rate the fewest running that finish as many as come
    served = BATCHES / (output * tpot / 1000.0)
    running = np.stack([np.searchsorted(np.maximum.accumulate(row), BATCHES) for row in served])
    reached = running < SIZES
    waits = np.where(reached, np.take_along_axis(tpot, np.minimum(running, SIZES - 1), axis=1), np.inf)
    best = np.where(reached.any(axis=0), waits.argmin(axis=0), served.max(axis=1).argmax())
    return ReactivePlan(
        least_batch=jnp.float32(most),
        most_batch=jnp.float32(most),
        busy_rate=jnp.float32(math.inf),
        queue_weight=_queue_weight(params),
        kv_budget=jnp.full(SIZES, budget, jnp.float32),
        spec_length=jnp.asarray(np.asarray(lengths)[best], jnp.int32),
        quant_tier=jnp.int32(tier),
        by_rate=jnp.bool_(True),
    )


def budgets_by_drafts(table: LatencyTable, params: EnvParams, tier: int) -> tuple[np.ndarray, np.ndarray]:
    """What a closed-loop task's memory holds, whatever comes, at every draft length that may be chosen.

    Args:
        table: what every action costs.
        params: the task.
        tier: weight format.

    Returns:
        (draft lengths int32[lengths], rising; the largest KV budget by batch size from 1, float32[2, lengths, 512],
        that fits into the task's limit and into the GPU, 0 where none does).
    """
    lengths, grid = _choices(table, params, "spec_length"), TableGrid(table)
    limits = _limit_gb(params), float(params.oom_limit_gb) * (1.0 - SPARE)
    budgets = np.zeros((len(limits), len(lengths), SIZES), np.float32)
    with jax.ensure_compile_time_eval():
        for i, limit in enumerate(limits):
            for j, length in enumerate(lengths):
                largest, fits, _ = _largest_budgets(grid, params, tier, length, limit)
                budgets[i, j] = np.where(fits, largest, 0.0)
    return np.asarray(lengths, np.int32), budgets


def _limit_gb(params: EnvParams) -> float:
    return float(min(params.memory_limit_gb, params.oom_limit_gb)) * (1.0 - SPARE)


def _largest_budgets(
    grid: TableGrid, params: EnvParams, tier: int, length: int, limit_gb: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """(the largest KV budget that fits at each batch size, float32[512]; whether any does, bool[512]; the least memory
    of all, GB)."""
    memory = np.asarray(_memory(grid, params, tier, length))
    fits = memory <= limit_gb
    largest = BUDGETS[len(BUDGETS) - 1 - np.argmax(fits[:, ::-1], axis=1)]
    return largest, np.asarray(fits.any(axis=1)), float(memory.min())


def _queue_weight(params: EnvParams) -> jax.Array:
    return jnp.float32(max(1000.0 / float(np.asarray(params.slo_ms)[0]), 1.0))


def _choices(table: LatencyTable, params: EnvParams, name: str) -> list[int]:
    """Values of a knob that a plan may choose from: the table's, or the default where the task locks it."""
    if not np.asarray(params.active)[list(KNOBS).index(name)]:
        return [int(table.knob_defaults[name])]
    return [int(node) for node in table.axes[name]]


def _mean_lengths(table: LatencyTable, params: EnvParams) -> tuple[float, float]:
    """Mean prompt and output of an open-loop task, tokens. A replayed log's prompts are no params: the middle of the
    table's prompt axis stands for them."""
    if int(params.engine.traffic) in (TRAFFIC_FITTED, TRAFFIC_DAY):
        prompt = float(params.engine.prompt_mean)
    elif int(params.engine.traffic):
        prompt = float(np.median(table.axes["prompt_len_bucket"]))
    else:
        prompt = float(np.mean(np.asarray(_prompts(params))))
    return prompt, float(params.engine.output_mean)


@jax.jit
def _prompts(params: EnvParams) -> jax.Array:
    """float32[256] prompt lengths, drawn as the task's traffic draws them."""
    steps = jnp.arange(PROMPTS, dtype=jnp.int32)
    return jax.vmap(lambda step: draw_prompt_len(jnp.uint32(PLAN_SEED), step, params))(steps)


@functools.partial(jax.jit, static_argnums=0)
def _tpot(grid: Iterations, params: EnvParams, prompt: Any, output: Any, drafts: Any, tier: Any) -> jax.Array:
    """float32[512] ms for an output token with 1 to 512 requests running, each of which brings a prompt: an iteration's
    time over the tokens that it yields, and the time that n prompts add over the tokens of an output."""
    engine, context = params.engine, jnp.float32(prompt + output / 2.0)
    drafted, tier = jnp.asarray(drafts, jnp.int32), jnp.asarray(tier, jnp.int32)
    nodes = prompt_nodes(jnp.float32(prompt), jnp.square(jnp.float32(engine.prompt_cv)))
    yielded = accepted_tokens(jnp.asarray(engine.acceptance_lengths), drafted)

    def at(n: jax.Array) -> jax.Array:
        took = iteration(grid, n, jnp.float32(jnp.inf), context, drafted.astype(jnp.float32), tier, engine)
        beside = n * (drafted + 1)
        added = prompts_ms(grid, nodes, beside, engine.token_budget, engine.prefix_share, tier)
        # an iteration whose tokens are all decoded takes no prompt in
        return jnp.where(beside < engine.token_budget, took.ms / yielded + n / output * added.mean_ms, jnp.inf)

    return jax.vmap(at)(jnp.asarray(BATCHES, jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def _memory(grid: TableGrid, params: EnvParams, tier: Any, length: Any) -> jax.Array:
    """float32[512, budgets] GB of every batch size and KV budget if all prompts are the traffic's longest."""
    sizes, budgets = jnp.meshgrid(BATCHES, BUDGETS, indexing="ij")
    action = ServeAction(batch_size=sizes, kv_budget=budgets, quant_tier=tier, spec_length=length).as_arrays()
    action = jax.tree.map(lambda x: jnp.broadcast_to(x, sizes.shape), action)
    longest = jnp.maximum(params.short_high, params.long_high)
    return grid.lookup(action, jnp.broadcast_to(longest, sizes.shape))["gpu_mem_gb"]


@functools.partial(jax.jit, static_argnums=0)
def _expectations(
    grid: TableGrid, params: EnvParams, tier: Any, length: Any, budgets: Any
) -> tuple[jax.Array, jax.Array]:
    """Expected tokens/s and median TTFT (ms), float32[512], of every batch size with its KV budget and no queue."""
    quiet = params.replace(noise_sigma=jnp.float32(0.0))

    def second(size: jax.Array, budget: jax.Array, prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        nobody = jnp.int32(0)
        traffic = WorkloadState(
            arrival_rate=jnp.float32(0.0),
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
    expected = jax.vmap(by_prompt, in_axes=(0, 0, None))(jnp.asarray(BATCHES), jnp.asarray(budgets), _prompts(params))
    return expected[0].mean(axis=1), expected[1].mean(axis=1)

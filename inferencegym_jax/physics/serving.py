"""One second of open-loop serving: the fluid, the lines of the classes, and what became of the requests.

``arrivals, knobs, engine -> switching -> fluid -> line, first token, on time -> Second, engine``. Symbols:
docs/physics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams, EngineState, RequestOutcome, ServeAction
from inferencegym_jax.physics import line, on_time, pool
from inferencegym_jax.physics.first_token import FirstToken, first_token, quantiles, share_within
from inferencegym_jax.physics.flow import mix, total
from inferencegym_jax.physics.fluid import Flow, flow, prompts_of
from inferencegym_jax.physics.inflow import Arrivals, Inflow, merge_arrivals, waiting_again
from inferencegym_jax.physics.iteration import TINY, Prompts, over_nodes
from inferencegym_jax.physics.kernels import Iterations, by_tier
from inferencegym_jax.physics.line import Lines
from inferencegym_jax.physics.on_time import TimePerToken
from inferencegym_jax.physics.speculation import accepted_tokens
from inferencegym_jax.physics.switching import SECOND_MS, Configuration, Switched, configure


class Second(NamedTuple):
    """What one second of serving came to; float32 unless noted."""

    tokens: jax.Array  # output tokens
    tpot_ms: jax.Array
    ttft_mean_ms: jax.Array
    ttft_p50_ms: jax.Array
    ttft_p90_ms: jax.Array
    ttft_p99_ms: jax.Array
    memory_gb: jax.Array  # of one GPU: weights, runtime and tokens held
    occupancy: jax.Array  # share of the KV pools in use
    admitted: jax.Array  # requests
    completed: jax.Array
    rejected: jax.Array
    preempted: jax.Array
    running: jax.Array  # mean number
    accepted: jax.Array  # accepted share of the drafted tokens; 0 without drafts
    outcome: RequestOutcome
    flow: Flow
    first: FirstToken
    lines: Lines
    wait_ms: jax.Array  # mean wait in line of those that entered
    spread_ms: jax.Array  # over which that wait is spread
    per_token: TimePerToken  # of the requests that finish


def serve_second(
    grid: Iterations,
    engine: EngineState,
    action: ServeAction,
    arrivals: Arrivals,
    is_first: jax.Array,
    class_shares: jax.Array,
    slo_ttft_ms: jax.Array,
    params: EngineParams,
    short: jax.Array | None = None,
    is_log: jax.Array | None = None,
) -> tuple[Second, EngineState]:
    """One second of serving for one environment.

    Args:
        grid: the lookups of the engine's profile.
        engine: at the start of the second.
        action: knobs in force, as arrays.
        arrivals: the second's requests.
        is_first: bool, the episode's first second.
        class_shares: float32[3], of the arrivals.
        slo_ttft_ms: float32[3], objective on the time to first token, by class; infinite for none.
        params: the engine and the traffic.
        short: see ``serve_configured``.
        is_log: see ``serve_configured``.

    Returns:
        What the second came to, and the engine after it (``running`` is the caller's to count).
    """
    configuration, switched = configure(engine, action, is_first, params)
    return serve_configured(
        grid, engine, configuration, switched, action, arrivals, class_shares, slo_ttft_ms, params, short, is_log
    )


def serve_configured(
    grid: Iterations,
    engine: EngineState,
    configuration: Configuration,
    switched: Switched,
    action: ServeAction,
    arrivals: Arrivals,
    class_shares: jax.Array,
    slo_ttft_ms: jax.Array,
    params: EngineParams,
    short: jax.Array | None = None,
    is_log: jax.Array | None = None,
) -> tuple[Second, EngineState]:
    """``serve_second`` of engines whose configuration is known: one with its second GPU, or a fleet's that serve.

    Args:
        grid: see ``serve_second``.
        engine: at the start of the second; of a fleet all its engines together.
        action: see ``serve_second``.
        arrivals: see ``serve_second``.
        class_shares: see ``serve_second``.
        slo_ttft_ms: see ``serve_second``.
        params: see ``serve_second``.
        configuration: which GPUs serve.
        switched: what changes of the state with it.
        short: float32[len(SHORT_OUTPUTS)], shares of the requests that have few tokens (``on_time.ShortOutputs``), to
            be judged by their own gaps; None: all are judged as the mean request.
        is_log: bool, the requests are a log's: prompts share iterations (``shared_iterations``), and a request ends in
            the midst of a second (``on_time.last_second``). None: they are not, and nothing of it is computed.
    """
    profile = grid.profile
    weights = by_tier(profile.weights_gb, grid.weight_format(configuration.tier))
    pool_tokens = pool.pool_tokens(params.memory_gb, weights, profile.runtime_gb, profile.kv_bytes_per_token)
    tokens = accepted_tokens(params.acceptance_lengths, action.spec_length)
    inflow = merge_arrivals(
        engine, arrivals, action, tokens, pool_tokens, switched.preempted_tokens, configuration, params
    )
    prompts, apart = prompts_of(grid, inflow, configuration, params)
    fluid = flow(grid, engine, inflow, prompts, apart, action, configuration, params, is_log)
    new = fluid.admitted - fluid.again
    lines = line.serve_lines(
        engine, new, arrivals.requests, class_shares, slo_ttft_ms, params.queue_capacity, fluid.slowed_ms
    )
    first = first_token(prompts, apart, fluid, lines.wait_ms, configuration, params)
    return close_second(
        grid,
        engine,
        switched,
        inflow,
        fluid,
        lines,
        first,
        prompts,
        action,
        arrivals,
        configuration,
        class_shares,
        slo_ttft_ms,
        params,
        short,
        is_log,
    )


def close_second(
    grid: Iterations,
    engine: EngineState,
    switched: Switched,
    inflow: Inflow,
    fluid: Flow,
    lines: Lines,
    first: FirstToken,
    prompts: Prompts,
    action: ServeAction,
    arrivals: Arrivals,
    configuration: Configuration,
    class_shares: jax.Array,
    slo_ttft_ms: jax.Array,
    params: EngineParams,
    short: jax.Array | None = None,
    is_log: jax.Array | None = None,
) -> tuple[Second, EngineState]:
    """Lines, outcome and metrics of the second, and the engine after it."""
    profile = grid.profile
    new = fluid.admitted - fluid.again
    per_token = on_time.time_per_token(
        fluid.slowed_ms,
        inflow.tokens,
        engine.had_ms,
        engine.had_tokens,
        fluid.output,
        fluid.admitted / (SECOND_MS * configuration.gpus),
        over_nodes(tuple(x * x for x in prompts.added_ms)),
        1.0 - fluid.iteration_ms / fluid.slowed_ms,
        params.output_cv,
        fluid.running / configuration.gpus,
        fluid.stiffness,
        is_log,
    )
    finished = jnp.minimum(fluid.completed / jnp.maximum(inflow.running + new, TINY), 1.0)

    def quick(objective: jax.Array) -> jax.Array:
        if short is None:
            return on_time.share_quick(per_token, objective)
        few = on_time.short_outputs(short, fluid, prompts, inflow.tokens, configuration)
        by_gaps = on_time.share_quick_of_all(per_token, objective, few)
        return by_gaps if is_log is None else jnp.where(is_log, by_gaps, on_time.share_quick(per_token, objective))

    def judge(i: int) -> on_time.Judged:
        mine, objective = lines.classes[i], slo_ttft_ms[..., i]
        chance = fluid.chance._replace(scale_ms=fluid.chance.scale_ms * mine.last)
        return on_time.judge(
            class_shares[..., i] * lines.joined,
            engine.young[..., i],
            mine.young,
            mine.entered,
            share_within(
                first.after_place(1.0 - mine.last, mine.place_ms), chance, objective, mine.wait_ms, mine.spread_ms
            ),
            engine.unjudged[..., i],
            finished,
            quick(params.slo_tpot_ms[..., i]),
        )

    def judge_others() -> tuple[on_time.Judged, ...]:
        return tuple(judge(i) for i in range(1, line.CLASSES))

    def nobody() -> tuple[on_time.Judged, ...]:
        return (on_time.Judged(*(jnp.zeros_like(new),) * 4),) * (line.CLASSES - 1)

    rows = (judge(0), *jax.lax.cond(line.has_classes(class_shares), judge_others, nobody))
    wait, spread = lines.wait_ms, lines.spread_ms
    p50, p90, p99 = quantiles(first, fluid.chance, wait, spread)
    tokens = fluid.grown + new
    good = rows[0].on_time + rows[1].on_time + rows[2].on_time
    zero = jnp.zeros_like(class_shares)
    outcome = RequestOutcome(
        asked=class_shares * arrivals.requests[..., None],
        on_time=jnp.stack([row.on_time for row in rows], axis=-1),
        late=jnp.stack([row.late for row in rows], axis=-1),
        rejected=class_shares * lines.rejected[..., None],
        failed=zero,
        present=jnp.stack([row.present for row in rows], axis=-1),
        tokens_asked=arrivals.requests * arrivals.output,
        on_time_tokens=good * fluid.output,
        gpu_seconds=configuration.paid,
        quality=1.0 - by_tier(profile.quality_loss, grid.weight_format(configuration.tier)),
    )
    used = fluid.held / configuration.pools
    lost = engine.phases[..., 0] + engine.phases[..., 1] + engine.phases[..., 2] + engine.phases[..., 3]
    drafts = action.spec_length.astype(jnp.float32)
    yielded = accepted_tokens(params.acceptance_lengths, action.spec_length)
    second = Second(
        tokens=tokens,
        tpot_ms=fluid.slowed_ms / inflow.tokens,
        ttft_mean_ms=wait + first.mean + fluid.chance.mean_ms,
        ttft_p50_ms=p50,
        ttft_p90_ms=p90,
        ttft_p99_ms=p99,
        memory_gb=by_tier(profile.weights_gb, grid.weight_format(configuration.tier))
        + jnp.float32(profile.runtime_gb)
        + used * jnp.float32(profile.kv_bytes_per_token / 1e9),
        occupancy=jnp.clip(used / jnp.maximum(inflow.pool, 1.0), 0.0, 1.0),
        admitted=fluid.admitted,
        completed=fluid.completed,
        rejected=lines.rejected,
        preempted=fluid.preempted + jnp.where(configuration.stopped, lost, 0.0),
        running=fluid.running,
        accepted=jnp.where(drafts > 0, (yielded - 1.0) / jnp.maximum(drafts, 1.0), 0.0),
        outcome=outcome,
        flow=fluid,
        first=first,
        lines=lines,
        wait_ms=wait,
        spread_ms=spread,
        per_token=per_token,
    )
    kept = 1.0 - finished
    back = jnp.where(inflow.again > TINY, fluid.again / jnp.maximum(inflow.again, TINY), 0.0)
    taken = jnp.where(configuration.gpus > 1.0, fluid.admitted, 0.0)
    replica = configuration.second_running * kept
    filled = jnp.minimum(replica + taken, 0.5 * total(fluid.phases))
    again = waiting_again(engine, configuration.stopped)
    return second, engine.replace(
        **switched._asdict(),
        phases=jnp.stack(fluid.phases, axis=-1),
        prompt=mix(inflow.running, inflow.own_prompt, fluid.admitted, inflow.prompt),
        output=fluid.output,
        held=fluid.held,
        # The mean of a request that finishes reaches half as far back as that of all who run, from which the share of
        # the finished is taken alike: so it is taken twice. Who was preempted by a stop, half way on average, has had
        # its first token: the time until it decodes again is its TPOT's, for all of its tokens.
        had_ms=(engine.had_ms + fluid.busy_ms + 0.5 * SECOND_MS * (inflow.again - 0.5 * fluid.again)) * kept * kept,
        had_tokens=(engine.had_tokens + fluid.grown) * kept * kept,
        unjudged=jnp.stack([row.unjudged for row in rows], axis=-1),
        waiting=jnp.stack([mine.after for mine in lines.classes], axis=-1),
        young=jnp.stack([mine.young for mine in lines.classes], axis=-1),
        age_ms=jnp.stack([mine.age_ms for mine in lines.classes], axis=-1),
        waiting_prompt=mix(inflow.waiting, engine.waiting_prompt, arrivals.requests, arrivals.prompt),
        waiting_output=inflow.output,
        arrived=lines.arrived,
        earlier_rate=line.forget(engine.arrived, engine.earlier_rate),
        preempted=jnp.stack([x * (1.0 - back) for x in again], axis=-1),
        tier=configuration.tier,
        second_gpu=(configuration.paid > 1.5).astype(jnp.int32),
        second_running=jnp.where(configuration.apart > 0, replica, filled),
    )

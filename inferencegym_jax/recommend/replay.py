"""A request log replayed under many controllers at once: what every second looks like, when each first token comes.

``serve`` runs the environment's own compiled step over the log (continuous batching as a fluid, second by second).
``first_tokens`` then walks through the requests: each finds the prompts ahead of it and goes in with its own, at the
kernel times of the table for the batch that ``serve`` found in its second. The fluid knows mean prompts only; most of
the spread of TTFTs is that of the prompts.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.policy import Policy, act, init_carry, spread
from inferencegym_jax.models import EPISODE_LENGTH, EngineParams, EnvParams, ServeAction
from inferencegym_jax.physics.iteration import iteration
from inferencegym_jax.physics.kernels import Iterations, by_tier
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.pool import pool_tokens
from inferencegym_jax.physics.speculation import accepted_tokens

LEAST = 1e-6
FULL = 0.75  # mean share of the slots or of the KV pool from which a request may have to wait for one of them
JOINING = 4  # later arrivals that are looked at: they may share a request's iterations


class Seconds(NamedTuple):
    """Every second of every lane (a controller on a stretch); leading axes (seconds, lanes), float32 unless noted."""

    action: ServeAction  # in force, as arrays
    running: jax.Array  # requests in the decode batch, a real number
    wait_ms: jax.Array  # of the queue for a slot or for memory; 0 of a queue of prompts, which ``first_tokens`` has
    iteration_ms: jax.Array  # of a decode iteration without prefill
    per_iteration: jax.Array  # tokens that it yields a request
    tpot_ms: jax.Array
    tokens: jax.Array
    memory_gb: jax.Array
    cost: jax.Array  # of the second
    arrivals: jax.Array
    rejected: jax.Array
    oom: jax.Array  # bool


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def serve(
    env: Environment,
    controllers: tuple[Policy, ...],
    length: int,
    params: EnvParams,
    seeds: jax.Array,
    actions: ServeAction,
    which: jax.Array,
) -> Seconds:
    """Serve ``length`` seconds of the log, each lane under a static action or a controller; no noise, no auto-reset.

    Args:
        env: with the log.
        controllers: policies. They see episodes of 200 s, as in training: timestep and cost_so_far start again; what
            one remembers (``init_carry``) goes on, as the traffic does.
        length: seconds.
        params: of the open loop with ``TRAFFIC_TRACE``; its ``episode_length`` must be at least ``length``.
        seeds: uint32[lanes]: the stretch begins at second 200 x seed.
        actions: fields of shape (lanes,): the static actions.
        which: int32[lanes]: -1 takes the static action, i the i-th controller.
    """
    grid = iterations_of(env.table)
    any_controller = (which >= 0).any()  # one number for all lanes, so that lanes of static actions run no network

    def decide(state: Any, observation: Any, paid: jax.Array, carries: tuple[Any, ...]) -> Any:
        seen = dataclasses.replace(
            observation,
            timestep=(state.time % EPISODE_LENGTH).astype(jnp.float32),
            cost_so_far=observation.cost_so_far - paid,
        )
        knobs, after = actions, list[Any]()
        for i, (controller, carry) in enumerate(zip(controllers, carries, strict=True)):
            answers, carry = jax.vmap(functools.partial(act, controller))(state, seen, carry)
            knobs = jax.tree.map(functools.partial(jnp.where, which == i), answers, knobs)
            after.append(carry)
        return knobs, tuple(after)

    def body(loop: Any, _: Any) -> Any:
        state, observation, paid, carries = loop
        paid = jnp.where(state.time % EPISODE_LENGTH == 0, observation.cost_so_far, paid)
        taken, carries = jax.lax.cond(
            any_controller, decide, lambda *operands: (actions, operands[-1]), state, observation, paid, carries
        )
        observation, after, _gain, _over, info = jax.vmap(lambda s, a: env.step_env(None, s, a, params))(state, taken)
        row = jax.vmap(functools.partial(_second, grid, env.table.gpu_second_cost, params))(state, after, taken, info)
        return (after, observation, paid, carries), row

    observation, state = jax.vmap(env.reset_seed, in_axes=(0, None))(seeds, params)
    carries = tuple(spread(init_carry(controller), seeds.shape[0]) for controller in controllers)
    start = (state, observation, jnp.zeros(seeds.shape, jnp.float32), carries)
    return jax.lax.scan(body, start, None, length=length)[1]


def _second(
    grid: Iterations, price: float, params: EnvParams, before: Any, after: Any, action: ServeAction, info: Any
) -> Seconds:
    engine, traffic, metrics = after.engine, info["workload"], info["metrics"]
    n = engine.phases.sum(axis=-1)
    context = jnp.where(n > LEAST, engine.held / jnp.maximum(n, LEAST), engine.prompt)
    drafts = action.spec_length.astype(jnp.float32)
    slots = action.batch_size.astype(jnp.float32)
    waited, waiting = before.engine.waiting.sum(axis=-1), engine.waiting.sum(axis=-1)
    admitted = traffic.arrivals + waited - waiting - traffic.rejected
    weights = by_tier(grid.profile.weights_gb, engine.tier)
    pool = pool_tokens(params.engine.memory_gb, weights, grid.profile.runtime_gb, grid.profile.kv_bytes_per_token)
    taken = n + jnp.minimum(waiting.astype(jnp.float32), 1.0)  # whose prompt is computed has a slot too
    full = (taken >= FULL * slots) | (engine.held + traffic.mean_prompt_len >= FULL * pool)
    drain = jnp.maximum(jnp.maximum(admitted, traffic.served).astype(jnp.float32), 0.1)
    return Seconds(
        action=action,
        running=n,
        wait_ms=jnp.where(full, 1000.0 * 0.5 * (waited + waiting) / drain, 0.0),
        iteration_ms=iteration(grid, n, slots, context, drafts, engine.tier, params.engine).ms,
        per_iteration=accepted_tokens(params.engine.acceptance_lengths, action.spec_length),
        tpot_ms=metrics.tpot_ms,
        tokens=metrics.tokens_per_sec,
        memory_gb=metrics.gpu_memory_gb,
        cost=info["outcome"].gpu_seconds * jnp.float32(price),
        arrivals=traffic.arrivals.astype(jnp.float32),
        rejected=traffic.rejected.astype(jnp.float32),
        oom=info["oom"],
    )


class _Batch(NamedTuple):
    """Prompts that wait to go in together, of each controller, float32[controllers]."""

    begins: jax.Array  # ms until they go in; without tokens: until the last that went in are through
    tokens: jax.Array  # to compute
    attention_ms: jax.Array  # of these prompts, which the iterations pay beside the products of their tokens


@functools.partial(jax.jit, static_argnums=0)
def first_tokens(
    grid: Iterations,
    seconds: Seconds,
    second: jax.Array,
    gap_ms: jax.Array,
    prompt: jax.Array,
    residue: jax.Array,
    params: EngineParams,
) -> jax.Array:
    """TTFT (ms) of every request under every controller, float32[requests, controllers].

    Args:
        grid: the lookups of the table's engine profile.
        seconds: fields of shape (seconds, controllers).
        second: int32[requests], which second of ``seconds``.
        gap_ms: float32[requests], since the request before; infinite where the engine starts empty.
        prompt: float32[requests], tokens.
        residue: float32[requests] in [0, 1): where in the iteration under way the request arrives.
        params: of the engine.

    Prompts are taken in by iterations. Who arrives while one that holds prompts is under way waits for its end, and all
    who arrived until then go in together: a batch of B prompt tokens takes ``ceil(B / chunk) t + L(m, B) + sum of A``
    ms, A a prompt's attention and L what all their tokens add to the products of m decode tokens. (L is no sum over
    prompts: of a mixture of experts the first tokens add the most.) Who finds no prompt ahead waits for the rest of a
    decode iteration. The token surfaces an iteration later, and whoever came meanwhile makes that one longer. On a GPU
    of their own prompts wait for each other in the same way; they then cross the link one after the other, and wait for
    the decode iteration under way.
    """
    link_ms = grid.profile.kv_bytes_per_token / (params.link_gb_s * 1e6)  # a token

    def one(batch: _Batch, request: Any) -> tuple[_Batch, jax.Array]:
        index, gap, tokens, share, later = request
        now = jax.tree.map(lambda x: x[index], seconds)
        t, n = now.iteration_ms, now.running
        tokens = jnp.broadcast_to(tokens, n.shape)
        disagg, tier = now.action.prefill_disagg, now.action.quant_tier
        decode = n * (now.action.spec_length.astype(jnp.float32) + 1.0)
        beside = jnp.where(disagg, 1.0, jnp.minimum(jnp.maximum(decode, 1.0), params.token_budget - 1.0))
        computed = jnp.maximum(tokens * (1.0 - params.prefix_share), 1.0)
        attention = grid.prefill_attention_ms(tokens, tier)
        attention -= jnp.where(
            params.prefix_share > 0, grid.prefill_attention_ms(tokens * params.prefix_share, tier), 0.0
        )
        chunk = jnp.maximum(params.token_budget - beside, 1.0)
        base = grid.products_ms(beside, tier)
        whole = grid.budget_ms(params.token_budget, tier) - base  # what the tokens of a full iteration add

        def added(together: jax.Array) -> jax.Array:
            full = jnp.maximum(jnp.ceil(together / chunk - LEAST) - 1.0, 0.0)
            return full * whole + grid.products_ms(beside + jnp.maximum(together - full * chunk, 1.0), tier) - base

        each = jnp.where(disagg, params.overhead_ms + grid.empty_ms(tier), t)  # an iteration without its prompts
        # the batch that was open has begun, and is over or under way; or it still waits
        begins = batch.begins - gap
        begun = (begins <= 0) & (batch.tokens > 0)
        before_ms = jnp.ceil(batch.tokens / chunk - LEAST) * each + added(batch.tokens) + batch.attention_ms
        begins = begins + jnp.where(begun, before_ms, 0.0)
        waits = (batch.tokens > 0) & ~begun
        ahead_tokens, ahead_ms = (jnp.where(waits, x, 0.0) for x in (batch.tokens, batch.attention_ms))
        idle = jnp.where(disagg, 0.0, share * t * (1.0 - jnp.exp(-n)))
        begins = jnp.where(begins > 0, begins, idle)
        with_it = _Batch(begins, ahead_tokens + computed, ahead_ms + attention)
        iterations = jnp.ceil(with_it.tokens / chunk - LEAST)
        products = added(with_it.tokens)
        room, ends = iterations * chunk - with_it.tokens, begins + iterations * each + products + with_it.attention_ms
        attend, following = attention / computed, jnp.zeros_like(n)  # ms a token of those who come later
        rate = attend + (iterations * whole - products) / jnp.maximum(room, 1.0)
        for gap_after, tokens_after in later:
            joins = gap_after < begins
            taken = jnp.where(joins, jnp.minimum(tokens_after, room), 0.0)
            room, ends = room - taken, ends + rate * taken
            following = following + jnp.where(~joins & (gap_after < ends), jnp.minimum(tokens_after, chunk), 0.0)
        following = jnp.minimum(following, chunk)
        next_ms = jnp.where(following > 0, added(following) + attend * following, 0.0)
        surfaces = params.first_token_iterations * (t + jnp.where(disagg, 0.0, next_ms)) + params.path_ms
        ends = ends + jnp.where(disagg, with_it.tokens * link_ms + 0.5 * t, 0.0)
        return with_it, jnp.maximum(ends, now.wait_ms + ends - begins) + surfaces

    later, gap_after, count = [], jnp.zeros_like(gap_ms), gap_ms.shape[0]
    gaps = jnp.append(gap_ms, jnp.full(JOINING, jnp.inf))
    prompts = jnp.append(prompt, jnp.zeros(JOINING))
    for i in range(1, JOINING + 1):
        gap_after = gap_after + gaps[i : i + count]
        later.append((gap_after, prompts[i : i + count]))
    nobody = _Batch(*(jnp.zeros_like(seconds.running[0]),) * 3)
    return jax.lax.scan(one, nobody, (second, gap_ms, prompt, residue, tuple(later)))[1]

"""Who may enter an engine in a second, and who runs at its start. Symbols: docs/physics.md.

``arrivals, engine, configuration -> Inflow``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import PHASES, EngineParams, EngineState, ServeAction
from inferencegym_jax.numerics.compile_units import compile_unit, once
from inferencegym_jax.physics.flow import total
from inferencegym_jax.physics.iteration import TINY
from inferencegym_jax.physics.switching import Configuration

OVERSHOOT = 0.65  # tokens, for each above one that a verification yields: E[X^2] / (2 E[X]) - 1/2 of a cut geometric X


class Arrivals(NamedTuple):
    """Requests that come in the second, evenly over it; float32."""

    requests: jax.Array
    prompt: jax.Array  # mean tokens
    output: jax.Array  # mean tokens


class Inflow(NamedTuple):
    """Who may enter and who runs at the start; requests, tokens."""

    phases: tuple[jax.Array, ...]
    running: jax.Array
    waiting: jax.Array
    again: jax.Array  # preempted requests that wait to be recomputed
    line: jax.Array  # all that wait or arrive
    prompt: jax.Array  # mean prompt of those that may enter
    output: jax.Array  # mean output of those that wait or arrive
    square_cv: jax.Array  # squared coefficient of variation of prompts within the second
    own_prompt: jax.Array  # of the running
    own_output: jax.Array
    context: jax.Array  # tokens that a running request holds
    held: jax.Array  # tokens in the pools
    here: jax.Array  # of the running, those on GPUs that take new requests
    busiest: jax.Array  # share of the running on the GPU that has most
    tokens: jax.Array  # that an iteration yields a request
    beside: jax.Array  # decode tokens of an iteration on one GPU
    pool: jax.Array  # tokens of one GPU's pool


@compile_unit
def merge_arrivals(
    engine: EngineState,
    arrivals: Arrivals,
    action: ServeAction,
    tokens: jax.Array,
    pool_tokens: jax.Array,
    preempted_tokens: jax.Array,
    configuration: Configuration,
    params: EngineParams,
) -> Inflow:
    """The second's arrivals join those that wait; what is to be recomputed goes first.

    Args:
        engine: at the start of the second.
        arrivals: of the second.
        action: knobs in force.
        tokens: AL, tokens of a verification; 1 without drafts.
        pool_tokens: of one GPU.
        preempted_tokens: mean of each to recompute, those that ran where the engine stops among them.
        configuration: GPUs that serve.
        params: the engine.
    """
    phases = once(*(jnp.where(configuration.stopped, 0.0, engine.phases[..., i]) for i in range(PHASES)))
    waiting = engine.waiting[..., 0] + engine.waiting[..., 1] + engine.waiting[..., 2]
    running, waiting, again = once(total(phases), waiting, total(waiting_again(engine, configuration.stopped)))
    some = waiting + arrivals.requests
    share, inverse = once(
        jnp.where(some > TINY, waiting / jnp.maximum(some, TINY), 0.0), 1.0 / jnp.maximum(running, TINY)
    )
    prompt = arrivals.prompt + share * (engine.waiting_prompt - arrivals.prompt)
    output = jnp.maximum(arrivals.output + share * (engine.waiting_output - arrivals.output), 1.0)
    none = running <= TINY
    own_prompt = jnp.where(none, prompt, engine.prompt)
    own_output = jnp.where(none, output, engine.output)
    prompt, output, own_prompt, own_output = once(prompt, output, own_prompt, own_output)
    held = jnp.where(configuration.stopped, 0.0, engine.held)
    context = jnp.where(running > 0.01, jnp.clip(held * inverse, 0.5 * own_prompt, own_prompt + own_output), own_prompt)
    most = configuration.most_running
    if most is None:
        most = jnp.maximum(running - configuration.second_running, configuration.second_running)
    busiest = jnp.where(none, 1.0, most * inverse)
    width = action.spec_length.astype(jnp.float32) + 1.0
    (decode,) = once(jnp.maximum(running * busiest * width, 1.0))
    served = jnp.minimum(params.token_budget / decode, 1.0)
    # the last verification of a request yields more than it still wants
    wanted = jnp.maximum(own_output - 1.0, 1.0)
    used = wanted / (wanted + OVERSHOOT * (tokens - 1.0))
    # the means of seconds carry a part of the dispersion; variances of the logarithm add up
    square, several = params.prompt_cv**2, jnp.maximum(some, 1.0)
    within = square * (several - 1.0) / (several + square)
    longer = (some * prompt + again * preempted_tokens) / jnp.maximum(some + again, TINY)
    return Inflow(
        phases=phases,
        running=running,
        waiting=waiting,
        again=again,
        line=some + again,
        prompt=jnp.where(again > TINY, longer, prompt),
        output=output,
        square_cv=within,
        own_prompt=own_prompt,
        own_output=own_output,
        context=context,
        held=held,
        here=jnp.maximum(running - configuration.apart, 0.0),
        busiest=busiest,
        tokens=tokens * served * used,
        beside=jnp.where(configuration.prefill_gpu, 1.0, jnp.minimum(decode, params.token_budget - 1.0)),
        pool=pool_tokens,
    )


def waiting_again(engine: EngineState, stopped: jax.Array) -> tuple[jax.Array, ...]:
    """Requests to recompute, by the phase they were in: those of before, and all that ran where the engine stops."""
    return tuple(engine.preempted[..., i] + jnp.where(stopped, engine.phases[..., i], 0.0) for i in range(PHASES))

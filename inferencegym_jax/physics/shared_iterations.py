"""What a prompt adds to iterations that it shares with other prompts. Symbols: docs/physics.md.

``prompts, admission, T -> prompt tokens of an iteration that holds any -> p``. For request logs: tasks' own traffic
pays what a lone prompt adds, as its shipped policies and tables did.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.numerics.compile_units import compile_unit, once
from inferencegym_jax.physics.admission import BUSIEST
from inferencegym_jax.physics.inflow import Inflow
from inferencegym_jax.physics.iteration import Prompts, chunked_ms, over_nodes, prompt_nodes
from inferencegym_jax.physics.kernels import Iterations
from inferencegym_jax.physics.switching import Configuration

FEWEST = 1e-2  # prompts that an iteration takes in, at least: fewer never meet
# lognormal prompts at five nodes (Gauss-Hermite): at three the products' steps weigh too much
_NODES, _MASSES = np.polynomial.hermite_e.hermegauss(5)
DEVIATIONS, WEIGHTS = _NODES.tolist(), (_MASSES / _MASSES.sum()).tolist()


def shared_prompts(
    grid: Iterations,
    inflow: Inflow,
    prompts: Prompts,
    rate: jax.Array,
    iteration_ms: jax.Array,
    budget: jax.Array,
    cached_share: jax.Array,
    configuration: Configuration,
    is_log: jax.Array | None,
) -> Prompts:
    """``prompts`` with what one adds on average where ``rate`` of them a ms share the iterations.

    Args:
        grid: the profile.
        inflow: who may enter: prompts, their spread, and the decode tokens beside them.
        prompts: what a lone prompt adds.
        rate: A, requests admitted a ms, by all GPUs.
        iteration_ms: t, an iteration that holds no prompt.
        budget: tokens of one iteration.
        cached_share: share of a prompt that the prefix cache holds.
        configuration: GPUs that serve.
        is_log: bool, the requests are a log's; None: they are not, and nothing is computed.
    """
    if is_log is None:
        return prompts
    each = rate / configuration.gpus
    slowed = iteration_ms / jnp.maximum(1.0 - each * prompts.mean_ms, 1.0 - BUSIEST)
    shared = compile_unit(functools.partial(_shared, grid))(
        inflow.prompt,
        inflow.square_cv,
        inflow.beside,
        prompts.mean_ms,
        jnp.maximum(each * slowed, FEWEST),
        budget,
        cached_share,
        configuration.tier,
    )
    return prompts._replace(shared_ms=jnp.where(is_log, shared, prompts.mean_ms))


def _shared(
    grid: Iterations,
    prompt: jax.Array,
    square_cv: jax.Array,
    beside: jax.Array,
    lone_ms: jax.Array,
    taken: jax.Array,
    budget: jax.Array,
    cached_share: jax.Array,
    tier: jax.Array,
) -> jax.Array:
    """p with the products of an iteration's prompts together in place of each one's alone.

    An iteration takes in J prompts, a Poisson number of mean A T, S tokens together, which add ``L(m + S) - L(m)``
    once. With the chance P1 it is one prompt. Given several, S has the mean and variance of a compound Poisson sum,
    ``E[S; J > 1] = U (A T - P1)`` and ``E[S^2; J > 1] = U^2 ((1 + cv^2) (A T - P1) + (A T)^2)``, and is taken to be
    lognormal.

    Args:
        grid: the profile.
        prompt: P.
        square_cv: squared coefficient of variation of prompts within the second.
        beside: m.
        lone_ms: p of a lone prompt.
        taken: A T, prompts that an iteration takes in.
        budget: tokens of one iteration.
        cached_share: share of a prompt that is not computed.
        tier: int32, the weight format in force.
    """
    room = jnp.maximum(budget - beside, 1.0)
    base, inverse = once(grid.products_ms(beside, tier), 1.0 / room)
    whole = grid.budget_ms(budget, tier) - base

    def products(tokens: jax.Array) -> jax.Array:
        return chunked_ms(grid, jnp.maximum(tokens, 1.0), beside, room, inverse, base, whole, tier)[1]

    computed = 1.0 - cached_share
    some = -jnp.expm1(-taken)
    single = taken - taken * some  # P1
    several = some - single
    sizes = tuple(jnp.exp(x * jnp.sqrt(jnp.log1p(square_cv))) for x in DEVIATIONS)
    unit = prompt * computed / _weighed(sizes)  # so that the mean is exact
    mean = prompt * computed * taken * some / several
    square = several * ((1.0 + square_cv) / (taken * some) + 1.0 / (some * some)) - 1.0
    asked = (
        tuple(x * computed for x in prompt_nodes(prompt, square_cv)),
        tuple(unit * x for x in sizes),
        prompt_nodes(mean, jnp.maximum(square, 0.0)),
    )
    # all of them in one lookup
    ms = iter(jax.vmap(products)(jnp.stack([x for part in asked for x in part])))
    alone, one, more = (tuple(next(ms) for _ in part) for part in asked)
    return lone_ms + (single * _weighed(one) + several * over_nodes(more)) / taken - over_nodes(alone)


def _weighed(values: tuple[jax.Array, ...]) -> jax.Array:
    terms: list[jax.Array] = [weight * value for weight, value in zip(WEIGHTS, values, strict=True)]
    return sum(terms[1:], terms[0])

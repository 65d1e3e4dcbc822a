"""Who runs, and how the running move on to their last token in one second.

A running request passes ``PHASES`` phases; the time in each is exponential, so its output has the coefficient of
variation that the traffic has (a phase-type distribution; Cox, "A use of complex probabilities in the theory of
stochastic processes", 1955). With constant rates of admission and of passage the second is solved exactly: the
phases reached are Poisson counts. Symbols: docs/physics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.numerics.compile_units import once
from inferencegym_jax.physics.iteration import TINY

LEAST_LONG = 1.0 / 9.0  # share of requests through all phases at which the distribution is at its widest, cv 1.12


def share_of_long(cv: jax.Array) -> jax.Array:
    """x: share of requests that pass all four phases, for outputs of this coefficient of variation; the rest have the
    last one only.

    The mean is ``(3 x + 1) / mu`` and ``1 + cv^2 = (18 x + 2) / (3 x + 1)^2``, solved for x. cv is met from 1/2 to 1.12
    and the nearest is taken beyond.
    """
    second = jnp.clip(1.0 + cv * cv, 1.25, 2.25)
    root = jnp.sqrt(jnp.maximum((6.0 * second - 18.0) ** 2 - 36.0 * second * (second - 2.0), 0.0))
    return jnp.clip((18.0 - 6.0 * second + root) / (18.0 * second), LEAST_LONG, 1.0)


def phases_a_token(output: jax.Array, long: jax.Array) -> jax.Array:
    """mu: phases that a request passes for each of its tokens after the first."""
    return (3.0 * long + 1.0) / jnp.maximum(output - 1.0, 0.5)


class Step(NamedTuple):
    """The propagation of one second: what is kept of the running, and where the admitted end up."""

    moved: tuple[jax.Array, ...]  # requests in each phase at the end, of those that ran at the start
    reach: tuple[jax.Array, ...]  # ms of admission at rate 1 that are in each phase at the end


def _chances(rate: jax.Array, span_ms: jax.Array, count: int) -> tuple[list[jax.Array], list[jax.Array]]:
    """Probability of passing 0, 1, ... phases, and the time spent that many phases on: ``int_0^span P(j passed)``."""
    u = rate * span_ms
    none_passed, inverse = once(jnp.exp(-u), 1.0 / jnp.maximum(rate, 1e-9))
    chances = [none_passed]
    for j in range(1, count):
        chances.append(chances[-1] * u * jnp.float32(1.0 / j))
    # from the cumulative chances, which cancel where u is small: by series there
    spent, below, first = [], jnp.zeros_like(u), jnp.ones_like(u)
    for j, chance in enumerate(chances):
        below = below + chance
        first = first * u * jnp.float32(1.0 / (j + 1))
        small = first * (1.0 - u * jnp.float32((j + 1.0) / (j + 2.0)))
        spent.append(jnp.where(u < 0.02, small, 1.0 - below) * inverse)
    return chances, spent


def propagate(phases: tuple[jax.Array, ...], long: jax.Array, rate: jax.Array, span_ms: jax.Array) -> Step:
    """Move the running on for ``span_ms`` at ``rate`` phases a ms.

    Args:
        phases: requests in each phase at the start.
        long: share of the admitted that enter the first phase; the rest enter the last.
        rate: phases that each running request passes a ms.
        span_ms: time served.
    """
    chances, spent = _chances(rate, span_ms, len(phases))
    moved = []
    for i in range(len(phases)):
        terms = [phases[j] * chances[i - j] for j in range(i + 1)]
        moved.append(sum(terms[1:], terms[0]))
    reach = [long * s for s in spent]
    reach[-1] = reach[-1] + (1.0 - long) * spent[0]
    return Step(tuple(moved), tuple(reach))


def remainder(
    phases: tuple[jax.Array, ...], long: jax.Array, rate: jax.Array, span_ms: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums over the phases of what ``propagate`` gives: requests kept, and ms of admission at rate 1 still there."""
    chances, spent = _chances(rate, span_ms, len(phases))
    kept, below = jnp.zeros_like(rate), jnp.zeros_like(rate)
    for phase, chance in zip(reversed(phases), chances, strict=True):
        below = below + chance
        kept = kept + phase * below
    return kept, long * total(tuple(spent)) + (1.0 - long) * spent[0]


def total(values: tuple[jax.Array, ...]) -> jax.Array:
    """Sum over phases."""
    return sum(values[1:], values[0])


def occupancy(
    before: tuple[jax.Array, ...], after: tuple[jax.Array, ...], admitted: jax.Array, long: jax.Array, rate: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Requests completed, and request-ms of the running in the second, from the balance of every phase.

    Args:
        before: requests in each phase at the start.
        after: the same at the end.
        admitted: requests that joined.
        long: share of them that entered the first phase.
        rate: phases a ms.
    """
    passed, busy = admitted * long, jnp.zeros_like(admitted)
    for i, (start, end) in enumerate(zip(before, after, strict=True)):
        entering = passed + admitted * (1.0 - long) if i == len(before) - 1 else passed
        passed = entering + start - end
        busy = busy + passed
    return jnp.maximum(passed, 0.0), jnp.maximum(busy, 0.0) / jnp.maximum(rate, 1e-9)


def mean_context(
    prompt: jax.Array, output: jax.Array, cv_prompt: jax.Array, cv_output: jax.Array, correlation: jax.Array
) -> jax.Array:
    """Tokens that a running request holds on average in a steady state: long outputs stay longer, ``E[(P + O/2) O] /
    E[O]``."""
    return prompt * (1.0 + correlation * cv_prompt * cv_output) + 0.5 * output * (1.0 + cv_output * cv_output)


def mix(amount: jax.Array, value: jax.Array, more: jax.Array, other: jax.Array) -> jax.Array:
    """Mean of ``amount`` requests at ``value`` and ``more`` at ``other``; ``other`` where there are none."""
    both = amount + more
    return jnp.where(both > TINY, (amount * value + more * other) / jnp.maximum(both, TINY), other)

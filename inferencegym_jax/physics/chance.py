"""What chance does near a limit: whole requests leave at random, the fluid's evenly.

The linear noise approximation of the fluid's own equation (van Kampen, "Stochastic Processes in Physics and Chemistry",
ch. X): the number present varies by ``n / (1 - g)`` around the fluid, with g = d ln t / d ln n. The step draws the
arrivals of every second; what they do not explain is the share that comes of the spread of the outputs, ``1 - int S^2 /
int S`` of their survival S (a Poisson number present, each arrival kept with probability S), which is the Gini
coefficient of the outputs. What of it is above the limit waits. Symbols: docs/physics.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.iteration import TINY

SECOND_MS = 1000.0

NORMAL_PEAK = 0.39894228  # density of the standard normal at 0
LEAST_GINI = 0.27  # of the outputs that four phases make


class Chance(NamedTuple):
    """The wait that chance makes beside the fluid's."""

    slack: jax.Array  # z: deviations between the fluid and the limit; below 0 where a line waits
    scale_ms: jax.Array  # wait for each deviation above the limit

    @property
    def mean_ms(self) -> jax.Array:
        """Mean wait: E[max(Z - z, 0)] of a standard normal Z, to 4e-5, times ``scale_ms``."""
        z = jnp.minimum(jnp.abs(self.slack), 8.0)
        return self.scale_ms * NORMAL_PEAK * jnp.exp(-z * (1.25176 + z * (0.2919 + 0.0225 * z)))


def normal_share(z: jax.Array) -> jax.Array:
    """Standard normal distribution as a logistic of ``1.5976 z + 0.0706 z^3`` (Page, "Approximations to the cumulative
    normal function", Applied Statistics 26, 1977); to 2e-4."""
    z = jnp.clip(z, -6.0, 6.0)
    return 1.0 / (1.0 + jnp.exp(-z * (1.5976 + 0.07056 * z * z)))


def unseen(running: jax.Array, cv_output: jax.Array, stiffness: jax.Array, load: jax.Array) -> jax.Array:
    """Standard deviation of the number running around the fluid, requests.

    A deviation slows everybody and so lasts ``1 + g`` stays; the load has changed before it would for longer. Outputs
    that are less spread than four phases make the fluid too smooth: the number present then varies by ``(1 + A p)^2``
    of what the phases spread, as an arrival counts for itself and for the time by which its prompt delays the others.
    Part of that goes along with the fluid's own: the deviation is taken between it and the bare one, ``1 + A p``.

    Args:
        running: n.
        cv_output: coefficient of variation of the outputs. Their Gini coefficient, erf(sigma / 2) for lognormal ones,
            is 0.48 of it to 5 % up to 1; four phases spread constant outputs as 0.27 does.
        stiffness: g.
        load: A p, share of the time that prompts take.
    """
    gini = jnp.minimum(0.48 * cv_output, 0.6)
    gini = gini + jnp.maximum(LEAST_GINI - gini, 0.0) * (1.0 + load)
    return jnp.sqrt(gini * jnp.maximum(running, TINY) * (1.0 + stiffness))


def near_slots(
    slots: jax.Array, running: jax.Array, waiting: jax.Array, sigma: jax.Array, residence_ms: jax.Array
) -> Chance:
    """Chance where slots are the limit.

    Args:
        slots: most running requests.
        running: n.
        waiting: requests that wait in the fluid.
        sigma: their standard deviation, see ``unseen``.
        residence_ms: from a request's first to its last token.
    """
    z = (slots - running - waiting) / sigma
    return Chance(z, sigma * residence_ms / slots)


def near_pool(
    room: jax.Array,
    held: jax.Array,
    context: jax.Array,
    waiting: jax.Array,
    prompt: jax.Array,
    sigma: jax.Array,
    residence_ms: jax.Array,
) -> Chance:
    """Chance where the pool is the limit: requests count by the tokens that they hold.

    Args:
        room: tokens that the pool may hold when the last prompt has entered.
        held: K.
        context: mean tokens of a running request.
        waiting: requests that wait in the fluid.
        prompt: P.
        sigma: standard deviation of the tokens held.
        residence_ms: from a request's first to its last token.
    """
    z = (room - held - waiting * prompt) / sigma
    # a full pool gives P tokens to newcomers for each of its requests, once in a stay
    return Chance(z, sigma * context * residence_ms / (prompt * room))


@compile_unit
def prefills_ahead(others: jax.Array, service: jax.Array) -> jax.Array:
    """``rho / (1 - rho)`` of Pollaczek-Khinchine where a second's arrivals are counted, not a rate.

    ``others`` requests (m) come at independent moments of the second, each needs ``service`` ms, a share r of it: the
    k-th term ``rho^k`` of the series is then ``m (m - 1) ... (m - k + 1) r^k``, since a request meets k different ones.
    Averaged over Poisson counts these are the powers of the true rate. Two terms are taken as they are; the rest is
    ``int exp(-x) (1 + r x)^m dx``, a Mills ratio to second order in log(1 + r x), by its bound in Abramowitz and Stegun
    7.1.13. To 4 % up to r m = 1; what is beyond is the line's, which the step carries.
    """
    r = jnp.minimum(service / SECOND_MS, 1.0 / jnp.maximum(others, 1.0))
    fewer, fewest = jnp.maximum(others - 1.0, 0.0), jnp.maximum(others - 2.0, 0.0)
    idle = 1.0 - fewest * r
    rest = 2.0 / (idle + jnp.sqrt(idle * idle + (8.0 / math.pi) * fewest * r * r))
    return others * r * (1.0 + fewer * r * rest)

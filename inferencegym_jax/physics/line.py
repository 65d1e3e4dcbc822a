"""The waiting line remembers when its requests came: age of its head, and how many are past their objective.

The state holds how many requests joined in the last 1, 2, ... seconds. Requests come evenly within a second here, and
every class has its share of each second's, so one memory serves all three lines.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineState
from inferencegym_jax.numerics.compile_units import compile_unit, once
from inferencegym_jax.physics.iteration import TINY

CLASSES = 3  # interactive, batch, best effort: the most urgent enters first
EXPONENTIAL_WIDTH = 3.4641016  # of an even spread with an exponential's deviation, sqrt(12)

SECOND_MS = 1000.0
EVERYBODY = 1e9  # requests: more than a line holds
RATE_SECONDS = 16  # over which the rate of the classes is taken
LEAST_FREE = 0.1  # share of the places that a class finds free, at least: what lasts longer is the fluid's line
LEAST_RATE = 0.1  # requests/s of those older than the memory, at least


@compile_unit
def remember(arrived: jax.Array, joined: jax.Array) -> jax.Array:
    """The memory one second later: float32[..., seconds], requests that joined in the last 1, 2, ... seconds."""
    earlier = jnp.concatenate([jnp.zeros_like(arrived[..., :1]), arrived[..., :-1]], axis=-1)
    return earlier + jnp.asarray(joined)[..., None]


def forget(arrived: jax.Array, earlier_rate: jax.Array) -> jax.Array:
    """The rate (requests/s) of those older than the memory, with the second that leaves it.

    Whoever waits so long did not come in silent seconds: those with less than half of the rate count for less.
    """
    leaving = arrived[..., -1] - arrived[..., -2]
    counts = jnp.minimum(2.0 * leaving / jnp.maximum(earlier_rate, LEAST_RATE), 1.0)
    return earlier_rate + (leaving - earlier_rate) * counts * jnp.float32(1.0 / arrived.shape[-1])


@compile_unit
def age_ms(arrived: jax.Array, earlier_rate: jax.Array, backlog: jax.Array) -> jax.Array:
    """How long ago the request came that has ``backlog`` others behind it, ms; 0 for an empty line.

    A binary search in the memory, linear within its second. What is older came at ``earlier_rate`` requests/s.
    """
    seconds = arrived.shape[-1]
    node = jnp.zeros_like(backlog, jnp.int32)  # whole seconds that the backlog fills
    step = seconds
    while step > 1:
        step //= 2
        behind = _at(arrived, node + step - 1)
        node = jnp.where(backlog >= behind, node + step, node)
    behind = _at(arrived, node)
    node = jnp.where((node == seconds - 1) & (backlog >= behind), seconds, node)
    low = jnp.where(node > 0, _at(arrived, jnp.maximum(node - 1, 0)), 0.0)
    high = jnp.where(
        node < seconds, _at(arrived, jnp.minimum(node, seconds - 1)), low + jnp.maximum(earlier_rate, LEAST_RATE)
    )
    place = (backlog - low) / jnp.maximum(high - low, TINY)
    whole = node.astype(jnp.float32) + jnp.where(node < seconds, jnp.clip(place, 0.0, 1.0), jnp.maximum(place, 0.0))
    return jnp.where(backlog > TINY, SECOND_MS * whole, 0.0)


@compile_unit
def younger_than(arrived: jax.Array, age: jax.Array) -> jax.Array:
    """Requests that joined less than ``age`` ms ago; beyond the memory everybody, ``EVERYBODY``."""
    seconds = arrived.shape[-1]
    x = jnp.clip(age / SECOND_MS, 0.0, float(seconds))
    node = jnp.minimum(x.astype(jnp.int32), seconds - 1)
    low = jnp.where(node > 0, _at(arrived, jnp.maximum(node - 1, 0)), 0.0)
    arrived_before = low + (x - node) * (_at(arrived, node) - low)
    return jnp.where(age < SECOND_MS * seconds, arrived_before, EVERYBODY)


def _at(arrived: jax.Array, node: jax.Array) -> jax.Array:
    return jnp.take_along_axis(arrived, node[..., None], axis=-1, mode="promise_in_bounds")[..., 0]


@compile_unit
def wait_of(
    start: jax.Array, end: jax.Array, before: jax.Array, after: jax.Array, entered: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Wait in line of those of one class that enter in the second: its mean, and over how much it is spread, ms.

    The age of the head goes evenly from what it is at the start to what it is at the end. Where the line empties, it
    does so at the engine's pace, and whoever comes after that does not wait.

    Args:
        start: age of the first in line at the start, ms.
        end: the same at the end.
        before: requests of the class that wait at the start.
        after: the same at the end.
        entered: requests of the class that enter.
    """
    waited = jnp.where(after > TINY, 1.0, jnp.minimum(before / jnp.maximum(entered, TINY), 1.0))
    return 0.5 * (start + end) * waited, jnp.abs(start - end) * waited


class Line(NamedTuple):
    """One class's line in a second; requests, ms."""

    entered: jax.Array
    after: jax.Array  # that wait at the end
    wait_ms: jax.Array  # mean wait of those that enter
    spread_ms: jax.Array  # over which it is spread
    place_ms: jax.Array  # mean wait for a place that less urgent ones hold, beside the iteration under way
    age_ms: jax.Array  # since the first of it came, at the end
    young: jax.Array  # that wait at the end and are not past the objective
    last: jax.Array  # 1: nobody less urgent waits, 0: at least one does


class Lines(NamedTuple):
    """The lines of all classes in a second."""

    classes: tuple[Line, ...]
    joined: jax.Array  # requests
    rejected: jax.Array
    arrived: jax.Array  # the memory at the end
    wait_ms: jax.Array  # mean wait of all that enter
    spread_ms: jax.Array


def serve_lines(
    engine: EngineState,
    entering: jax.Array,
    arriving: jax.Array,
    shares: jax.Array,
    objective_ms: jax.Array,
    capacity: jax.Array,
    slowed_ms: jax.Array,
) -> Lines:
    """Let requests enter by urgency, and what does not fit the line be rejected.

    A class that finds the engine kept full by less urgent ones waits for places to come free: for the next, ``1 / A``,
    and for those of its own class and above that came before it: ``1 / (A (1 - rho) (1 - rho'))`` with the shares of
    the places that go to those above it, without and with its own (Cobham, "Priority assignment in waiting line
    problems", 1954), at the rate of the seconds that the line remembers. What of it the fluid's own line is, is in it.

    Args:
        engine: at the start of the second.
        entering: requests that enter, recomputed ones apart.
        arriving: requests that arrive.
        shares: float32[3], of the classes among the arrivals.
        objective_ms: float32[3], on the time to first token.
        capacity: requests that may wait.
        slowed_ms: T: places come free at the ends of iterations, and half of one is the first token's wait already.
    """
    starts = once(*(engine.waiting[..., i] for i in range(CLASSES)))
    waiting = starts[0] + starts[1] + starts[2]
    rejected = jnp.minimum(jnp.maximum(waiting + arriving - entering - capacity, 0.0), arriving)
    rejected, joined = once(rejected, arriving - rejected)
    arrived = remember(engine.arrived, joined)
    rest, ends = entering, []
    for i in range(CLASSES):
        entered = jnp.minimum(starts[i] + shares[..., i] * joined, rest)
        rest = rest - entered
        ends.append(jnp.maximum(starts[i] + shares[..., i] * joined - entered, 0.0))
    ends = once(*ends)

    def look(i: int) -> tuple[jax.Array, jax.Array]:
        part = 1.0 / jnp.maximum(shares[..., i], TINY)
        young = jnp.minimum(ends[i], shares[..., i] * younger_than(arrived, objective_ms[..., i]))
        # what is older than the memory is a guess; the first in line ages by a second in a second
        return jnp.minimum(
            age_ms(arrived, engine.earlier_rate, ends[i] * part), engine.age_ms[..., i] + SECOND_MS
        ), young

    def look_at_all() -> tuple[tuple[jax.Array, jax.Array], ...]:
        return tuple(look(i) for i in range(1, CLASSES))

    def nobody() -> tuple[tuple[jax.Array, jax.Array], ...]:
        zero = jnp.zeros_like(entering)
        return tuple((zero, zero) for _ in range(1, CLASSES))

    seen = (look(0), *jax.lax.cond(has_classes(shares), look_at_all, nobody))
    total, spreads, above = jnp.zeros_like(entering), jnp.zeros_like(entering), jnp.zeros_like(entering)
    each, free = SECOND_MS / jnp.maximum(entering, 1.0), jnp.ones_like(entering)
    remembered = arrived[..., RATE_SECONDS - 1] * each * jnp.float32(1.0 / (SECOND_MS * RATE_SECONDS))  # of the places
    classes = []
    for i, (age, young) in enumerate(seen):
        entered = starts[i] + shares[..., i] * joined - ends[i]
        wait, spread = wait_of(engine.age_ms[..., i], age, starts[i], ends[i], entered)
        lower = jnp.minimum(sum(ends[i + 1 :], jnp.zeros_like(entering)), 1.0)
        above = above + shares[..., i] * remembered
        before, free = free, jnp.maximum(1.0 - above, LEAST_FREE)
        place = jnp.maximum(each / (before * free) - wait - 0.5 * slowed_ms, 0.0)
        classes.append(Line(entered, ends[i], wait, spread, place, age, young, 1.0 - lower))
        total = total + entered * (wait + lower * place)
        spreads = spreads + entered * jnp.sqrt(spread**2 + (EXPONENTIAL_WIDTH * lower * place) ** 2)
    some = jnp.maximum(entering, TINY)
    none = entering <= TINY
    mean, spread = once(jnp.where(none, 0.0, total / some), jnp.where(none, 0.0, spreads / some))
    return Lines(tuple(classes), joined, rejected, arrived, mean, spread)


def has_classes(shares: jax.Array) -> jax.Array:
    """bool: there is more than the first class. A batch of one task computes the others only where there are some."""
    return shares[..., 1] + shares[..., 2] > 0

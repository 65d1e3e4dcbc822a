"""Who is on time: TTFT and TPOT of a second's requests against the objectives of their class.

Every request is judged once: late when its wait in line passes the objective or its first token comes late, and
otherwise when it finishes, by its time per output token. Symbols: docs/physics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.chance import normal_share
from inferencegym_jax.physics.fluid import Flow
from inferencegym_jax.physics.iteration import TINY, Prompts, over_nodes, prompt_nodes
from inferencegym_jax.physics.switching import SECOND_MS, Configuration


class Judged(NamedTuple):
    """One class in one second; requests."""

    on_time: jax.Array
    late: jax.Array
    unjudged: jax.Array  # running requests that are not late so far, after the second
    present: jax.Array  # the same and those that wait and are not late so far


class TimePerToken(NamedTuple):
    """TPOT of the requests that finish: nearly normal; ms."""

    mean: jax.Array
    deviation: jax.Array
    by_prompts: jax.Array  # of its square, what the prompts that a request meets make, ms^2


@compile_unit
def time_per_token(
    slowed_ms: jax.Array,
    tokens: jax.Array,
    had_ms: jax.Array,
    had_tokens: jax.Array,
    output: jax.Array,
    admission: jax.Array,
    square_ms: jax.Array,
    load: jax.Array,
    cv_output: jax.Array,
    running: jax.Array,
    stiffness: jax.Array,
    is_log: jax.Array | None = None,
) -> TimePerToken:
    """TPOT of the requests that finish in this second.

    Of a stay of O T / AL ms the last second is this one's; before it a request had what the running had on average.
    It meets a Poisson number of prompts, whose time spreads its own; and the number running deviates by chance, by n /
    (2 (1 - g)) beside what the second's count explains, which a stay averages out in part.

    Args:
        slowed_ms: T, a mean iteration.
        tokens: AL, tokens that it yields a request.
        had_ms: request-ms that the running had before this second.
        had_tokens: tokens that they got in it.
        output: O.
        admission: prompts a ms on one GPU.
        square_ms: mean square of what a prompt adds to an iteration, ms^2.
        load: A p, share of the time that prompts take.
        cv_output: coefficient of variation of the outputs; the shorter ones see fewer prompts.
        running: n on one GPU.
        stiffness: g, d ln t / d ln n.
        is_log: bool, a request ends in the midst of the second, and its TPOT is its time over its tokens; None: at the
            second's end, and the mean of what it had in each second.
    """
    now = slowed_ms / tokens
    residence_ms = jnp.maximum(output - 1.0, 1.0) * now
    recent = jnp.minimum(1000.0 / jnp.maximum(residence_ms, TINY), 1.0)
    before = jnp.where(had_tokens > 1.0, had_ms / jnp.maximum(had_tokens, 1.0), now)
    mean = recent * now + (1.0 - recent) * before
    square_cv = cv_output * cv_output
    # E[1 / tau - 1 / (tau + 1/2)], tau a stay in seconds: of the prompts met, those of whole seconds are counted
    seconds = 1e-3 * residence_ms
    longer = 1.0 / (seconds + 0.5)
    uncounted = (1.0 + square_cv) / seconds - (1.0 + square_cv * (seconds * longer) ** 2) * longer
    by_prompts = 1e-3 * admission * square_ms / jnp.maximum(1.0 - load, 0.2) * now * now * uncounted
    by_stays = (recent * (now - before)) ** 2 * square_cv * (1.0 + square_cv) ** 2 * (1.0 - recent)
    if is_log is not None:
        last = last_second(seconds, square_cv)
        # a stay's tokens are the sum of its seconds' over their TPOT: its own is the harmonic mean
        over_stay = now * before / jnp.maximum(last.mean * before + (1.0 - last.mean) * now, TINY)
        mean = jnp.where(is_log, over_stay, mean)
        by_stays = jnp.where(is_log, (now - before) ** 2 * last.variance, by_stays)
    slack = 1.0 - stiffness
    by_chance = (now * stiffness) ** 2 * (1.0 - slack / 3.0) / (2.0 * jnp.maximum(running, 1.0) * slack)
    return TimePerToken(mean, jnp.sqrt(by_prompts + by_stays + by_chance), by_prompts)


class LastSecond(NamedTuple):
    """Share of a stay that lies in the second in which it ends, over the requests that end in it."""

    mean: jax.Array
    variance: jax.Array


def last_second(stay_s: jax.Array, square_cv: jax.Array) -> LastSecond:
    """``min(u, tau) / tau`` for ends u that are even over the second and lognormal stays tau, at three nodes.

    At a stay of tau seconds its mean is ``1 - tau / 2`` below 1 and ``1 / (2 tau)`` above, that of its square ``1 - 2
    tau / 3`` and ``1 / (3 tau^2)``.

    Args:
        stay_s: mean stay, s.
        square_cv: squared coefficient of variation of the stays.
    """
    stays = prompt_nodes(stay_s, square_cv)
    inverse = tuple(1.0 / jnp.maximum(x, 1.0) for x in stays)
    mean = over_nodes(tuple(jnp.where(x < 1.0, 1.0 - 0.5 * x, 0.5 * y) for x, y in zip(stays, inverse, strict=True)))
    square = over_nodes(
        tuple(jnp.where(x < 1.0, 1.0 - x * (2.0 / 3.0), y * y / 3.0) for x, y in zip(stays, inverse, strict=True))
    )
    return LastSecond(mean, jnp.maximum(square - mean * mean, 0.0))


@compile_unit
def share_quick(per_token: TimePerToken, objective_ms: jax.Array) -> jax.Array:
    """Share of the finishing requests whose TPOT is within the objective (ms, may be infinite)."""
    z = (jnp.minimum(objective_ms, 1e9) - per_token.mean) / jnp.maximum(per_token.deviation, 0.01)
    return normal_share(z)


SHORT_GAPS = (1.0, 2.0, 3.0, 5.0, 8.5, 14.0, 23.0)
"""Gaps between the tokens of ``SHORT_OUTPUTS``' parts after the first."""


class ShortOutputs(NamedTuple):
    """How many requests have few tokens, and what lengthens their gaps; ms."""

    shares: jax.Array  # [..., len(SHORT_OUTPUTS)], of the requests
    iteration_ms: jax.Array  # t
    slowed_ms: jax.Array  # T
    chunks: jax.Array  # prompt chunks a ms on one GPU
    chunk_ms: jax.Array  # mean of what one adds to its iteration
    chunk_square: jax.Array  # mean of its square
    full_ms: jax.Array  # what prompts add to an iteration that they fill
    tokens: jax.Array  # AL, tokens that an iteration yields a request


def short_outputs(
    shares: jax.Array, fluid: Flow, prompts: Prompts, tokens: jax.Array, configuration: Configuration
) -> ShortOutputs:
    """The short outputs of a second, and the prompt chunks that their gaps meet: none where prompts are computed
    apart."""
    pieces = tuple(further + 1.0 for further in prompts.further)
    each = over_nodes(pieces)
    rate = fluid.admitted / (SECOND_MS * configuration.gpus)
    return ShortOutputs(
        shares=shares,
        iteration_ms=fluid.iteration_ms,
        slowed_ms=fluid.slowed_ms,
        chunks=jnp.where(configuration.prefill_gpu, 0.0, rate * each),
        chunk_ms=prompts.mean_ms / each,
        chunk_square=over_nodes(tuple(x * x / n for x, n in zip(prompts.added_ms, pieces, strict=True))) / each,
        full_ms=prompts.mean_ms / prompts.iterations,
        tokens=tokens,
    )


@compile_unit
def share_quick_of_all(per_token: TimePerToken, objective_ms: jax.Array, short: ShortOutputs) -> jax.Array:
    """Share of the finishing requests whose TPOT is within the objective, short outputs counted by their gaps.

    A request of few tokens is late where the prompts that its gaps happen to hold take more than ``gaps (objective -
    t)``. Their time is a compound Poisson sum: given that there is one at all, a Gamma variable of its mean and
    variance, by Wilson and Hilferty's cube ("The Distribution of Chi-Square", PNAS 17, 1931). Longer outputs are
    ``share_quick``'s. What prompts add to a gap lies between nothing and a full iteration's worth, so its variance is
    at most ``mean (full - mean)`` (Bhatia and Davis, "A Better Bound on the Variance", Am. Math. Monthly 107, 2000):
    in an engine whose iterations are full all gaps are alike.

    Args:
        per_token: of the requests that finish.
        objective_ms: float32, may be infinite.
        short: the short ones, and the chunks that they meet.
    """
    objective = jnp.minimum(objective_ms, 1e6)
    spare = objective * short.tokens - short.iteration_ms
    idle = jnp.clip(short.iteration_ms / short.slowed_ms, 0.03, 1.0)
    load = 1.0 - idle  # A p
    prompts_ms = jnp.maximum(short.slowed_ms - short.iteration_ms, 0.0)
    full = jnp.maximum(jnp.maximum(short.full_ms, prompts_ms), TINY)
    filled = prompts_ms / full  # of the iterations' room: at most so many hold no prompt as are not filled
    counted = short.shares[..., 0]
    quick = short.shares[..., 0]
    for i, between in enumerate(SHORT_GAPS):
        share = short.shares[..., i + 1]
        gaps = between / short.tokens
        expected = jnp.maximum(short.chunks * short.slowed_ms * gaps, 1e-6)
        meets = jnp.maximum(1.0 - jnp.exp(-expected), filled)
        mean = expected * short.chunk_ms / meets
        # who came in a long iteration enters the next: lengths correlate by the load from one to the next
        bunched = (1.0 + 2.0 * load / idle * (1.0 - (1.0 - load**gaps) / (gaps * idle))) / (1.0 - load * load)
        second = expected * (bunched * short.chunk_square + expected * short.chunk_ms**2) / meets
        widest = jnp.maximum(mean * (gaps * full - mean), 0.0)
        variance = jnp.minimum(jnp.maximum(second - mean * mean, 1e-6 * second), widest + 1e-6 * second)
        shape = mean * mean / variance
        cube = jnp.cbrt(jnp.maximum(spare * gaps, 0.0) / jnp.maximum(mean, 1e-6))
        z = (cube - 1.0 + 1.0 / (9.0 * shape)) * 3.0 * jnp.sqrt(shape)
        late = jnp.where(spare > 0, meets * normal_share(-z), 1.0)
        quick = quick + share * (1.0 - late)
        counted = counted + share
    widest = (full - prompts_ms) * prompts_ms / (short.tokens * short.tokens)
    narrower = jnp.sqrt(jnp.maximum(per_token.deviation**2 - per_token.by_prompts, 0.0) + widest)
    rest = per_token._replace(deviation=jnp.where(widest < per_token.by_prompts, narrower, per_token.deviation))
    return quick + (1.0 - counted) * share_quick(rest, objective_ms)


@compile_unit
def judge(
    joined: jax.Array,
    young_before: jax.Array,
    young_after: jax.Array,
    admitted: jax.Array,
    prompt_share: jax.Array,
    unjudged: jax.Array,
    finished: jax.Array,
    quick_share: jax.Array,
) -> Judged:
    """Count one class's second.

    Args:
        joined: requests that joined its line.
        young_before: requests of its line at the start whose wait was within the objective.
        young_after: the same at the end.
        admitted: requests that left the line for the engine.
        prompt_share: share of those whose first token is on time.
        unjudged: running requests at the start that are not late so far.
        finished: share of the running that finish in the second.
        quick_share: share of those whose TPOT is on time.
    """
    decided = jnp.maximum(young_before + joined - young_after, 0.0)
    first = jnp.minimum(prompt_share * admitted, decided)
    done = (unjudged + first) * finished
    on_time = done * quick_share
    left = unjudged + first - done
    return Judged(on_time, (decided - first) + (done - on_time), left, left + young_after)

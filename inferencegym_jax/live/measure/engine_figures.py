"""Figures of an engine that no table column holds: when a first token surfaces, the pool's size, what drafts yield.

``cells -> first_token, pool_seen``; ``two readings of /metrics -> acceptance_lengths``. The constant of an iteration is
``table.fit``'s: a client sees iterations whole, so the scheduler's time and what the kernels take whatever the batch
are one number.
"""

from __future__ import annotations

import numpy as np

from inferencegym_jax.live.measure.cell_run import MOST_EXTRA
from inferencegym_jax.live.measure.cells import Cells
from inferencegym_jax.live.server.probe import EngineMetrics
from inferencegym_jax.models import KNOBS
from inferencegym_jax.table.latency_table import PROMPT_LENGTHS

MOST_MISSED = 1.0  # iterations between the estimate and the nearest of 0 to 3: beyond, something else makes them wait
LEAST_RISE = 1.2  # of an iteration over that of a lone request, from which the two can be told apart
CLEARLY = 1.25  # times the next one, from which the largest of what prompts add by their first token's delay tells it
LEAST_SHARE = 0.01  # of the pool, from which its gauge says something
SPEC_LENGTHS: tuple[int, ...] = KNOBS["spec_length"].choices


def first_token_seen(cells: Cells, buckets: list[int]) -> int | None:
    """Iterations after its own until a first token surfaces, from which gaps are the longer ones.

    A prefill lengthens the gap of its own iteration. So where its first token surfaces e iterations later, the gaps
    that have one e gaps after them are the longer ones.

    Args:
        cells: measured.
        buckets: of prompts that an iteration takes in whole.

    Returns:
        0 to ``MOST_EXTRA``; None where slices do not tell (older files), or no delay stands out.
    """
    pieces = [piece for (_, bucket), of_cell in cells.slices.items() if bucket in buckets for piece in of_cell]
    added = [np.multiply(piece.added_ms, piece.prefills * len(piece.ttft_ms)) for piece in pieces if piece.added_ms]
    if not added:
        return None
    total = np.sum(added, axis=0)
    best = int(np.argmax(total))
    return best if total[best] > CLEARLY * max(float(np.sort(total)[-2]), 0.0) else None


def first_token(cells: Cells, batch_sizes: list[int], bucket: int) -> tuple[int, float | None]:
    """Iterations after its own until a first token surfaces: 0, or 1 where the engine schedules ahead.

    With T the mean gap of n in flight, t that of a lone request and e the extra iterations,

        TTFT(n) = h + (1.5 + e) T + p        it meets half an iteration, then its own
        TTFT(1) = h + (1 + e) t + p          nobody else's iteration is under way

    so ``e = (TTFT(n) - TTFT(1) - 1.5 T + t) / (T - t)``, whatever h and p are; the mean over the cells, weighted by
    (T - t)^2, is rounded to whole iterations.

    Args:
        cells: measured.
        batch_sizes: rising, from 1.
        bucket: the shortest prompt's, whose prefills disturb the least.

    Returns:
        (whole iterations, the estimate before rounding); (0, None) where nothing can be told: no cell's iterations are
        longer than a lone request's, or what is found is no number of iterations that an engine schedules ahead, as
        where its processor launches kernels or the client reads tokens later than they are there.
    """
    single, first = cells.gap_ms((1, bucket)), cells.ttft_mean_ms((1, bucket))
    weights, values = [], []
    for n in batch_sizes[1:]:
        gap = cells.gap_ms((n, bucket))
        if gap < LEAST_RISE * single:
            continue
        values.append((cells.ttft_mean_ms((n, bucket)) - first - 1.5 * gap + single) / (gap - single))
        weights.append((gap - single) ** 2)
    if not values:
        return 0, None
    estimate = float(np.average(values, weights=weights))
    extra = int(np.clip(round(estimate), 0, MOST_EXTRA))
    return (extra, estimate) if abs(estimate - extra) <= MOST_MISSED else (0, None)


def pool_seen(cells: Cells, output_tokens: int) -> float | None:
    """Tokens of the KV pool from how far its gauge rose: tokens held over the share in use, over all cells.

    A running request holds its prompt and what it got so far. Output lengths are spread evenly from half to one and a
    half of their mean O; seen at a random moment a request has made ``O (1 + 1/12) / 2`` (inspection paradox).

    Returns:
        None where the server has no gauge, or never used a hundredth of its pool.
    """
    tokens_in_pool, share = 0.0, 0.0
    for (_, bucket), pieces in cells.slices.items():
        for piece in pieces:
            if piece.memory_share is None or piece.memory_share < LEAST_SHARE:
                continue
            made = output_tokens * (1.0 + 1.0 / 12.0) / 2.0
            tokens_in_pool += piece.inside * (PROMPT_LENGTHS[bucket] + made)
            share += piece.memory_share
    return tokens_in_pool / share if share else None


def acceptance_lengths(before: EngineMetrics | None, after: EngineMetrics | None) -> tuple[int, list[float]] | None:
    """Tokens that a verification yields, the bonus token included, by number of drafts.

    ``L(k) = 1 + sum of a_i for i < k``, with a_i the share of verifications that accepted the draft at place i, where
    the server counts by place. Else a draft is accepted with one probability a at every place, so that ``a + ... +
    a^K`` is the mean number accepted. Beyond the K drafts that were verified the last step's probability goes on.

    Args:
        before: counters at the start of the measurement.
        after: at its end.

    Returns:
        (K, one value for each of ``SPEC_LENGTHS``); None where the server verified no drafts between the two.
    """
    if before is None or after is None:
        return None
    drafts = _risen(after.drafts, before.drafts)
    tokens, accepted = (
        _risen(after.draft_tokens, before.draft_tokens),
        _risen(after.accepted_tokens, before.accepted_tokens),
    )
    if not drafts or not tokens or accepted is None:
        return None
    most = max(round(tokens / drafts), 1)
    earlier = before.accepted_at or (0.0,) * len(after.accepted_at)
    if after.accepted_at and len(earlier) == len(after.accepted_at):
        shares = [max(now - then, 0.0) / drafts for now, then in zip(after.accepted_at, earlier, strict=True)]
        most = len(shares)
    else:
        share = _even(min(accepted / drafts, float(most)), most)
        shares = [share ** (i + 1) for i in range(most)]
    last = shares[-1] / shares[-2] if len(shares) > 1 and shares[-2] > 0 else shares[-1]
    while len(shares) < max(SPEC_LENGTHS):
        shares.append(shares[-1] * min(last, 1.0))
    return most, [round(1.0 + sum(shares[:k]), 4) for k in SPEC_LENGTHS]


def _even(accepted: float, most: int) -> float:
    """a in [0, 1] with ``a + ... + a^most = accepted``, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if sum(middle ** (i + 1) for i in range(most)) < accepted:
            low = middle
        else:
            high = middle
    return high


def _risen(now: float | None, before: float | None) -> float | None:
    if now is None:
        return None
    return max(now - (before or 0.0), 0.0)

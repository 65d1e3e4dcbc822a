"""What is set on the request-by-request engine, and what it says of each request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BISECTIONS = 60


@dataclass(frozen=True)
class EngineSettings:
    """What the flags of an engine set.

    Attributes:
        batch_size: most requests that run at once.
        quant_tier: weight format, 0 to 2.
        spec_length: drafts of a verification; 0: none.
        prefill_gpu: whether a second GPU computes the prompts.
        memory_gb: that weights, runtime and KV pool share.
        token_budget: tokens of an iteration.
        kv_budget: share of the pool up to which requests are let in (1: what an engine does by itself).
        accepted: tokens that a verification yields on average, from 1 to ``spec_length`` + 1.
        prefix_share: share of a prompt that the cache holds.
        max_waiting: one more is turned away; None: nobody is.
        seed: of the draws of accepted drafts.
    """

    batch_size: int
    quant_tier: int
    spec_length: int
    prefill_gpu: bool
    memory_gb: float
    token_budget: int
    kv_budget: float = 1.0
    accepted: float = 1.0
    prefix_share: float = 0.0
    max_waiting: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Served:
    """What became of each request, float64[requests] unless noted; NaN: never.

    Attributes:
        ttft_ms: from arrival to first token.
        tpot_ms: mean time between its tokens; NaN for a single one.
        rejected: bool[requests], longer than the pool, or turned away.
        preemptions: in all.
        pool_tokens: of the KV pool.
        peak_tokens: most of them taken at once.
        end_ms: when the last request left.
    """

    ttft_ms: np.ndarray
    tpot_ms: np.ndarray
    rejected: np.ndarray
    preemptions: int
    pool_tokens: int
    peak_tokens: int
    end_ms: float


def draft_probability(accepted: float, drafts: int) -> float:
    """Probability a that a draft is accepted where a verification yields ``accepted`` tokens on average.

    With a for each draft until the first refused one that mean is ``1 + a + ... + a^drafts``; solved by bisection.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        below = sum(middle**i for i in range(drafts + 1)) < accepted
        low, high = (middle, high) if below else (low, middle)
    return high


def tokens_of_verifications(random: np.random.Generator, drafts: int, log_accepted: float, left: int) -> np.ndarray:
    """Tokens that each verification of ``drafts`` drafts yields until ``left`` are made, int64[verifications].

    Args:
        random: where the draws come from.
        drafts: of a verification.
        log_accepted: logarithm of the probability that a draft is accepted; 0: all are.
        left: tokens that the request still makes.
    """
    accepted = np.full(left, drafts)
    if log_accepted < 0:  # P(at least i accepted) = a^i
        drawn = np.log(1.0 - random.random(left)) / log_accepted
        accepted = np.minimum(drawn, drafts).astype(np.int64)
    made = np.cumsum(accepted + 1)
    count = int(np.searchsorted(made, left)) + 1
    tokens = accepted[:count] + 1
    tokens[-1] -= made[count - 1] - left
    return tokens

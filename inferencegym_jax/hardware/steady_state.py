"""Steady state of serving from an engine profile: the rows of a latency table, and TPOT of a closed loop.

``EngineProfile, operating point -> Served``. n running requests, prompt P, output O, k drafts, budget b tokens an
iteration; ms. No constant is fitted here:

    t(n)  = c + products(n (k + 1)) + head(n (k + 1)) + attention(n, P + O / 2) + k d (products + head + attention)(n)
    p(n)  = products added by the prompt's chunks of b - n (k + 1) tokens + attention of the prompt
    tpot  = t / tokens a verification yields + (n / O) p        colocated: each turnover of a slot brings one prompt
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from inferencegym_jax.table import EngineProfile


@dataclass(frozen=True)
class Point:
    """An operating point; ``tier`` is a weight format, 0 to 2."""

    running: float
    prompt: float
    output: float = 128.0
    drafts: int = 0
    tier: int = 0
    disagg: bool = False


@dataclass(frozen=True)
class Served:
    """What a point serves: ms, tokens/s of the engine, GB of one GPU, engines on the bill (2 with a prefill engine)."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    tps: float
    gpu_mem_gb: float
    engines: int


def along(x: float, nodes: np.ndarray, values: np.ndarray) -> float:
    """A curve of a profile at x: linear between nodes, along the last segment beyond them, as the physics reads it."""
    if x <= nodes[-1] or len(nodes) == 1:
        return float(np.interp(x, nodes, values))
    slope = (values[-1] - values[-2]) / (nodes[-1] - nodes[-2])
    return float(values[-1] + slope * (x - nodes[-1]))


def products_ms(profile: EngineProfile, tokens: float, tier: int) -> float:
    """Products of all layers over so many tokens, ms."""
    return along(tokens, profile.products_tokens, profile.products_ms[tier])


def attention_ms(profile: EngineProfile, sequences: float, context: float) -> float:
    """Attention of a decode iteration, ms."""
    by_sequences = np.array([along(context, profile.decode_context, row) for row in profile.decode_attention_ms])
    return along(sequences, profile.decode_sequences, by_sequences)


def decode_ms(profile: EngineProfile, point: Point) -> float:
    """An iteration without prompts, t of the module, ms."""
    context = point.prompt + point.output / 2
    n, k = point.running, point.drafts
    attention = attention_ms(profile, n, context)
    verified = n * (k + 1)
    head = along(verified, profile.head_tokens, profile.head_ms)
    bare = products_ms(profile, n, point.tier) + along(n, profile.head_tokens, profile.head_ms) + attention
    iteration = products_ms(profile, verified, point.tier) + head + attention + k * profile.draft_share * bare
    return profile.overhead_ms + profile.overhead_ms_per_sequence * n + iteration


def prompt_ms(profile: EngineProfile, point: Point, running: float, budget: float | None = None) -> float:
    """What one prompt adds to the iterations of ``running`` requests, p of the module, ms.

    Args:
        profile: of the engine.
        point: its prompt, drafts and tier are read.
        running: requests in decode; 0 is a prompt alone, which pays for the whole pass.
        budget: tokens an iteration; default: the profile's.
    """
    decoding = running * (point.drafts + 1)
    room = max((budget or profile.tokens_per_iteration) - decoding, 1.0)
    base = products_ms(profile, decoding, point.tier) if decoding else 0.0
    whole, rest = divmod(point.prompt, room)
    added = whole * (products_ms(profile, decoding + room, point.tier) - base)
    if rest:
        added += products_ms(profile, decoding + rest, point.tier) - base
    return added + along(point.prompt, profile.prefill_tokens, profile.prefill_attention_ms)


def tokens_per_verification(drafts: int, acceptance: float) -> float:
    """Expected tokens kept of a verification: (1 - a^(k+1)) / (1 - a). Leviathan et al., arXiv 2211.17192, eq. 1."""
    if acceptance >= 1.0:
        return drafts + 1.0
    return (1 - acceptance ** (drafts + 1)) / (1 - acceptance)


def tpot_ms(profile: EngineProfile, point: Point, acceptance: float = 0.7, budget: float | None = None) -> float:
    """Time per output token of a closed loop, ms."""
    decode = decode_ms(profile, point) / tokens_per_verification(point.drafts, acceptance)
    if point.disagg:
        return decode
    return decode + point.running / point.output * prompt_ms(profile, point, point.running, budget)


def queue_wait_ms(quantile: float, utilisation: float, service_ms: float, batch: float) -> float:
    """Quantile of the wait for the prefill server, an M/D/1 queue.

    P(W > t) = rho exp(-t / m) with m = S / (2 (1 - rho)): the chance to wait at all, times an exponential whose mean
    is that of the M/D/1 wait of those who wait (mean over all: rho S / (2 (1 - rho)), Pollaczek-Khinchine). At most B
    - 1 others are ahead.
    """
    if utilisation <= 1 - quantile:  # fewer than that wait at all; 0 where a prompt adds nothing to an iteration
        return 0.0
    mean = service_ms / (2 * (1 - utilisation))
    return min(math.log(utilisation / (1 - quantile)) * mean, (batch - 1) * service_ms)


def closed_loop_utilisation(batch: float, service_ms: float, elsewhere_ms: float) -> float:
    """Utilisation rho of a prefill server that B requests visit in turn, each `elsewhere_ms` outside its queue.

    Requests a millisecond X = rho / S, and by Little's law B / X = elsewhere + W, with the M/D/1 wait W = rho S / (2
    (1 - rho)). The root in (0, 1) of that quadratic: about B S / elsewhere when idle, 1 when prefill is the
    bottleneck.
    """
    a = 2 * elsewhere_ms - service_ms
    b = 2 * (batch * service_ms + elsewhere_ms)
    c = 2 * batch * service_ms
    return 2 * c / (b + math.sqrt(b * b - 4 * a * c))


def serve(profile: EngineProfile, point: Point, link_gb_s: float, acceptance: float = 0.7) -> Served:
    """All metrics of one point.

    TTFT: wait for the prefill server at its utilisation, the prompt, then one decode iteration (colocated) or the
    transfer of its cache (disaggregated); drafts do not shorten it. Tokens/s: n / tpot, or what the prefill engine lets
    through. Memory: weights, runtime and n whole requests, not capped.

    Args:
        profile: of the engine.
        point: what runs.
        link_gb_s: rate at which a cache moves between GPUs, GB/s.
        acceptance: of drafts.
    """
    tpot = tpot_ms(profile, point, acceptance)
    plain = Point(point.running, point.prompt, point.output, 0, point.tier, point.disagg)
    decode = decode_ms(profile, plain)
    unloaded_ms = prompt_ms(profile, plain, 0) + along(1, profile.head_tokens, profile.head_ms) + profile.overhead_ms
    if point.disagg:
        transfer = point.prompt * profile.kv_bytes_per_token / (link_gb_s * 1e6)
        away = point.output * decode_ms(profile, point) / tokens_per_verification(point.drafts, acceptance) + transfer
        rho = closed_loop_utilisation(point.running, unloaded_ms, away)
        full = closed_loop_utilisation(point.running, unloaded_ms, point.output * decode + transfer)
        waits = [queue_wait_ms(q, min(full, 0.999), unloaded_ms, point.running) for q in (0.5, 0.99)]
        first, rate = unloaded_ms + transfer, point.output * rho / unloaded_ms
    else:
        prompt = prompt_ms(profile, plain, point.running)
        stall = point.running / point.output * prompt
        waits = [queue_wait_ms(q, stall / (decode + stall), prompt, point.running) for q in (0.5, 0.99)]
        first, rate = prompt + decode, point.running / tpot
    kv_gb = point.running * (point.prompt + point.output) * profile.kv_bytes_per_token / 1e9
    memory = float(profile.weights_gb[point.tier]) + profile.runtime_gb + kv_gb
    ttfts = [wait + first + profile.path_ms for wait in waits]
    return Served(ttfts[0], ttfts[1], tpot, 1000 * rate, memory, 2 if point.disagg else 1)

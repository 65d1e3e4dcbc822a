"""Requests served by one engine: what the printed flags come to, request by request.

``arrivals, lengths, EngineSettings, profile -> serve_requests -> Served``; the engine: ``iteration_engine``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from inferencegym_jax.recommend.engine_settings import EngineSettings, Served
from inferencegym_jax.recommend.iteration_engine import IterationEngine
from inferencegym_jax.table import EngineProfile

LOOKS = 24  # times that a replay asks whether it is hopeless


def serve_requests(
    arrival_ms: np.ndarray,
    prompt: np.ndarray,
    output: np.ndarray,
    settings: EngineSettings,
    profile: EngineProfile,
    until_ms: float = math.inf,
    hopeless: Callable[[float, np.ndarray], bool] | None = None,
) -> Served:
    """Serve requests until none is left, or until some time.

    Args:
        arrival_ms: float64[requests], ascending.
        prompt: int[requests], tokens, at least 1.
        output: int[requests], tokens, at least 1.
        settings: of the engine.
        profile: times and sizes.
        until_ms: on the clock of the arrivals; who has no first or last token then never has one.
        hopeless: asked now and then, with the clock and when each had its first token (NaN: not yet); True ends it.

    Raises:
        TableError: the weights do not fit into the memory.
    """
    engine = IterationEngine(arrival_ms, prompt, output, settings, profile)
    if hopeless is not None and len(arrival_ms):
        for stop in np.linspace(arrival_ms[0], arrival_ms[-1], LOOKS + 1)[1:]:
            engine.run(min(float(stop), until_ms))
            if hopeless(float(stop), np.asarray(engine.seen.first_token)):
                break
        else:
            engine.run(until_ms)
    else:
        engine.run(until_ms)
    first, finish = np.asarray(engine.seen.first_token), np.asarray(engine.seen.finish)
    gaps = np.asarray(output, np.float64) - 1.0
    return Served(
        ttft_ms=first - arrival_ms,
        tpot_ms=np.where(gaps > 0, (finish - first) / np.maximum(gaps, 1.0), np.nan),
        rejected=np.asarray(engine.rejected, bool),
        preemptions=engine.preemptions,
        pool_tokens=engine.pool,
        peak_tokens=engine.peak,
        end_ms=engine.now,
    )

"""Requests of a fleet's day, one by one, for the reference: what the step draws second by second, drawn finer.

The rates of the kinds are the library's (what the day is, not how it is served); counts, moments of arrival and lengths
are drawn here, kind by kind.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from inferencegym_jax.fleet.traffic import day_scale
from inferencegym_jax.traffic import days, fitted
from tests.reference.traffic import Requests


def kind_rates(params: Any, seed: int, start_s: int, length_s: int) -> np.ndarray:
    """float64[seconds, kinds] requests/s, swings of minutes among them."""
    day = params.engine.day

    def at(second: jax.Array) -> jax.Array:
        number = jax.numpy.uint32(seed)
        swing = jax.numpy.exp(fitted.log_modulation(number, second, params.engine))
        return days.rates_at(number, second, day) * swing

    scale = float(jax.jit(day_scale)(jax.numpy.uint32(seed), params))
    seconds = np.arange(start_s, start_s + length_s, dtype=np.int32)
    return scale * np.asarray(jax.jit(jax.vmap(at))(seconds), np.float64)


def busiest_s(params: Any, seed: int, length_s: int) -> int:
    """The second at which the window of so many seconds begins that has most work."""
    day_s = int(params.episode_length) * 5
    work = np.asarray(params.engine.day.prompt_mean) * float(params.prompt_gpus)
    work = work + np.asarray(params.engine.day.output_mean) * float(params.output_gpus)
    load = kind_rates(params, seed, 0, day_s) @ work
    sums = np.concatenate([[0.0], np.cumsum(load)])
    return int(np.argmax(sums[length_s:] - sums[:-length_s]))


def day_requests(params: Any, seed: int, start_s: int, length_s: int) -> Requests:
    """The requests of a window of a day: Gamma-Poisson counts, even moments, lognormal lengths of each kind, at most
    8,192 tokens, as the pools were fitted."""
    rng = np.random.default_rng([seed, start_s])
    day = params.engine.day
    rates = kind_rates(params, seed, start_s, length_s)
    times, prompts, outputs = [], [], []
    for kind in range(rates.shape[1]):
        excess = max(float(day.gaps_scv[kind]) - 1.0, 0.0)
        rate = rates[:, kind]
        level = rng.gamma(np.maximum(rate / excess, 1e-9)) * excess if excess > 1e-3 else rate
        count = rng.poisson(level)
        second = np.repeat(np.arange(length_s), count)
        total = len(second)
        z = rng.multivariate_normal([0, 0], [[1, day.correlation[kind]], [day.correlation[kind], 1]], total)
        times.append(1000.0 * (second + rng.random(total)))
        for drawn, mean, cv, normal in (
            (prompts, day.prompt_mean[kind], day.prompt_cv[kind], z[:, 0]),
            (outputs, day.output_mean[kind], day.output_cv[kind], z[:, 1]),
        ):
            variance = np.log1p(float(cv) ** 2)
            length = float(mean) * np.exp(np.sqrt(variance) * normal - variance / 2)
            drawn.append(np.clip(np.rint(length), 1, days.LONGEST).astype(np.int64))
    order = np.argsort(np.concatenate(times), kind="stable")
    return Requests(np.concatenate(times)[order], np.concatenate(prompts)[order], np.concatenate(outputs)[order])

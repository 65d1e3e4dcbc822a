"""Requests with their arrival times: a task's, a constant rate's, or a log's. The same seed gives the same traffic.

A task's draws are the simulator's own (``workload.draw_class_arrivals``, ``draw_prompt_len``), and a day's rates and
lengths are its own expectations (``traffic.days``); what the simulator leaves open, the moment within the second and
the output length, is drawn here from (seed, second).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import TRAFFIC_DAY, DayTraffic, EngineParams, EnvParams, Phase
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.poisson import poisson
from inferencegym_jax.traffic import calendar as workload
from inferencegym_jax.traffic import days


@dataclass(frozen=True)
class Traffic:
    """Requests in the order of their arrival.

    Attributes:
        time_s: float64[requests], rising, from the start.
        prompt: int64[requests], tokens.
        output: int64[requests], tokens.
        klass: int64[requests], 0 interactive, 1 batch, 2 best effort.
        seconds: length of the whole.
        phase: int64[whole seconds], ``Phase`` of each.
    """

    time_s: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    klass: np.ndarray
    seconds: float
    phase: np.ndarray

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.time_s)


def scaled_params(
    params: EnvParams, rate_scale: float, prompt_scale: float = 1.0, longest_prompt: float = np.inf
) -> EnvParams:
    """A task for an engine of another size: the same calendar, with rates and prompt lengths multiplied.

    Args:
        params: the task.
        rate_scale: of every rate.
        prompt_scale: of every prompt length.
        longest_prompt: lengths are cut there (the server's context, or the table's end).

    Raises:
        ValueError: a scale is not above 0.
    """
    for name, value in (("rate_scale", rate_scale), ("prompt_scale", prompt_scale), ("longest_prompt", longest_prompt)):
        if not value > 0:
            raise ValueError(f"{name} = {value}: must be a number above 0")
    lengths = {
        name: np.float32(min(max(float(getattr(params, name)) * prompt_scale, 1.0), longest_prompt))
        for name in ("short_low", "short_high", "long_low", "long_high")
    }
    return params.replace(
        engine=_scaled_day(params.engine, rate_scale, prompt_scale),
        rate=np.float32(params.rate * rate_scale),
        burst_rate=np.float32(params.burst_rate * rate_scale),
        log_mean=np.float32(params.log_mean + np.log(prompt_scale)),
        **lengths,
    )


def _scaled_day(engine: EngineParams, rate_scale: float, prompt_scale: float) -> EngineParams:
    """The engine with a day's rates and prompts multiplied; as it is where the task's traffic is no day."""
    if int(engine.traffic) != TRAFFIC_DAY:
        return engine
    day = engine.day
    scaled = day.replace(
        rate=np.asarray(day.rate * rate_scale, np.float32),
        prompt_mean=np.asarray(day.prompt_mean * prompt_scale, np.float32),
    )
    return engine.replace(
        day=scaled,
        rate=np.float32(engine.rate * rate_scale),
        prompt_mean=np.float32(engine.prompt_mean * prompt_scale),
    )


def mean_rate(params: EnvParams, seeds: Sequence[int], seconds: int) -> float:
    """Requests a second that a task expects: over its calendar, or over the windows of its days that are sent."""
    if int(params.engine.traffic) != TRAFFIC_DAY:
        share = float(params.burst_length) / float(params.burst_period)
        return float(params.rate) * (1.0 - share) + float(params.burst_rate) * share
    rates = [np.asarray(_day_mix(jnp.uint32(seed), jnp.arange(seconds), params.engine.day)[0]) for seed in seeds]
    return float(np.mean(rates))


def day_mix(params: EnvParams, seed: int, steps: int) -> tuple[np.ndarray, ...]:
    """What a day's traffic is expected to be in each of the first ``steps`` seconds of a seed's window.

    Returns:
        requests/s, mean prompt (tokens) and its coefficient of variation, float64[steps] each; shares by class,
        float64[steps, 3].
    """
    mix = _day_mix(jnp.uint32(seed), jnp.arange(steps), params.engine.day)
    return tuple(np.asarray(x, np.float64) for x in mix)


@jax.jit
def _day_mix(seed: jax.Array, steps: jax.Array, day: DayTraffic) -> tuple[jax.Array, ...]:
    """float32[steps] each: rate, mean prompt, its coefficient of variation; float32[steps, 3]: shares by class."""

    def mix(step: jax.Array) -> tuple[jax.Array, ...]:
        mixture = days.mix_of(days.rates_at(seed, step, day), day)
        return mixture.rate, mixture.prompt, mixture.prompt_cv, mixture.shares

    return jax.vmap(mix)(steps)


def _day_traffic(
    params: EnvParams, seed: int, seconds: int, output_tokens: int, longest_prompt: float, first: int
) -> Traffic:
    """A window of a day, request by request: Poisson at each second's rate, prompts lognormal with its mixture's
    moments, of all kinds together."""
    mix = _day_mix(jnp.uint32(seed), jnp.arange(first, first + seconds), params.engine.day)
    rate, prompt, cv, shares = (np.asarray(x, np.float64) for x in mix)
    parts: list[tuple[np.ndarray, ...]] = []
    for step in range(seconds):
        rng = np.random.default_rng([seed, first + step, 1])
        total = int(rng.poisson(rate[step]))
        variance = np.log1p(cv[step] ** 2)
        lengths = np.exp(np.log(max(prompt[step], 1.0)) - variance / 2 + np.sqrt(variance) * rng.normal(size=total))
        lengths = np.clip(np.round(lengths), 1, longest_prompt)
        klass = rng.choice(3, total, p=shares[step] / shares[step].sum())
        parts.append((step + np.sort(rng.uniform(size=total)), lengths, _outputs(rng, total, output_tokens), klass))
    return joined(parts, float(seconds), np.full(seconds, int(Phase.STEADY)))


def task_traffic(
    params: EnvParams,
    seed: int,
    seconds: int,
    output_tokens: int,
    longest_prompt: float = np.inf,
    first: int = 0,
) -> Traffic:
    """The traffic of a task's episode.

    Args:
        params: the task; ``scaled_params`` fits it to an engine.
        seed: the episode's seed.
        seconds: how many steps of it.
        output_tokens: mean output length; each is uniform over half to one and a half of it.
        longest_prompt: prompts of a day, which have no longest of their own, are cut there.
        first: the step with which it begins.
    """
    if int(params.engine.traffic) == TRAFFIC_DAY:
        return _day_traffic(params, seed, seconds, output_tokens, longest_prompt, first)
    steps = jnp.arange(first, first + seconds)
    counts, lengths, phases = (np.asarray(x) for x in _draws(jnp.uint32(seed), steps, params))
    parts: list[tuple[np.ndarray, ...]] = []
    for step in range(seconds):
        rng = np.random.default_rng([seed, first + step])
        total = int(counts[step].sum())
        prompt = np.full(total, max(int(lengths[step]), 1))
        klass = rng.permutation(np.repeat(np.arange(3), counts[step]))
        parts.append((step + np.sort(rng.uniform(size=total)), prompt, _outputs(rng, total, output_tokens), klass))
    return joined(parts, float(seconds), phases)


@jax.jit
def _draws(seed: jax.Array, steps: jax.Array, params: EnvParams) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Class counts, prompt length and phase of every step."""

    def draw(step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return (
            class_counts(seed, step, params),
            workload.draw_prompt_len(seed, step, params),
            workload.phase_at(step, params),
        )

    return jax.vmap(draw)(steps)


def class_counts(seed: jax.Array, step: jax.Array, params: EnvParams) -> jax.Array:
    """int32[3] arrivals of a second by class; exact Poisson draws where a scaled rate is too low for the simulator's.

    ``poisson`` is accurate from about 4 a second on; below that, the quantile is found by summing
    probabilities.
    """
    total = jnp.where(workload.is_burst_at(step, params), params.burst_rate, params.rate)
    words = random.hash4(seed, step, random.CLASSES)
    rates = [total * params.class_shares[..., i] for i in range(3)]
    counts = [
        jnp.where(rate < 4.0, low_poisson(word, rate), poisson(word, rate))
        for word, rate in zip(words[:3], rates, strict=True)
    ]
    return jnp.stack(counts, axis=-1)


def low_poisson(word: jax.Array, rate: jax.Array) -> jax.Array:
    """int32 Poisson quantile of a word's uniform by summing probabilities; exact for rates below 4 (30 terms)."""
    uniform = random.uniform(word)
    k = jnp.arange(30, dtype=jnp.float32)
    log_probability = k * jnp.log(jnp.maximum(rate, 1e-9)) - rate - jax.lax.lgamma(k + 1.0)
    return (jnp.cumsum(jnp.exp(log_probability)) < uniform).sum().astype(jnp.int32)


def poisson_traffic(rate: float, seconds: float, prompt: int, output_tokens: int, seed: int) -> Traffic:
    """Poisson arrivals at a constant rate, one prompt length."""
    rng = np.random.default_rng([seed, 1])
    count = int(rng.poisson(rate * seconds))
    times = np.sort(rng.uniform(0.0, seconds, count))
    outputs = _outputs(rng, count, output_tokens)
    phases = np.ones(max(int(np.ceil(seconds)), 1), np.int64)
    return joined([(times, np.full(count, prompt), outputs, np.zeros(count, np.int64))], seconds, phases)


def log_traffic(
    time_s: Any, prompt: Any, output: Any, klass: Any = None, *, rate_scale: float = 1.0, longest_prompt: int = 10**9
) -> Traffic:
    """The traffic of a request log.

    Args:
        time_s: arrival times, seconds, any order.
        prompt: tokens.
        output: tokens.
        klass: classes, or None for interactive.
        rate_scale: 2 sends it twice as fast.
        longest_prompt: prompts are cut there.
    """
    times = np.asarray(time_s, np.float64)
    order = np.argsort(times, kind="stable")
    times = (times[order] - times[order][0]) / rate_scale
    seconds = float(np.ceil(times[-1] + 1e-9)) or 1.0
    kinds = np.zeros(len(times), np.int64) if klass is None else np.asarray(klass, np.int64)[order]
    prompts = np.clip(np.asarray(prompt, np.int64)[order], 1, longest_prompt)
    outputs = np.maximum(np.asarray(output, np.int64)[order], 1)
    return joined([(times, prompts, outputs, kinds)], seconds, np.ones(int(seconds), np.int64))


def _outputs(rng: np.random.Generator, count: int, mean: int) -> np.ndarray:
    return rng.integers(max(mean // 2, 1), mean + mean // 2 + 1, count)


def joined(parts: list[tuple[np.ndarray, ...]], seconds: float, phase: np.ndarray) -> Traffic:
    """Traffic of parts that follow each other: (time_s, prompt, output, klass) of each, times from the start."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    prompt, output, klass = (np.asarray(column, np.int64) for column in columns[1:])
    return Traffic(columns[0], prompt, output, klass, seconds, phase)

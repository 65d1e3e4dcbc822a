"""Requests with their arrival times: a task's, a constant rate's, or a log's. The same seed gives the same traffic.

A task's draws are the simulator's own (``workload.draw_class_arrivals``, ``draw_prompt_len``); what the simulator
leaves open, the moment within the second and the output length, is drawn here from (seed, second).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import EnvParams
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.poisson import poisson
from inferencegym_jax.traffic import calendar as workload


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
        rate=np.float32(params.rate * rate_scale),
        burst_rate=np.float32(params.burst_rate * rate_scale),
        log_mean=np.float32(params.log_mean + np.log(prompt_scale)),
        **lengths,
    )


def task_traffic(params: EnvParams, seed: int, seconds: int, output_tokens: int) -> Traffic:
    """The traffic of a task's episode.

    Args:
        params: the task; ``scaled_params`` fits it to an engine.
        seed: the episode's seed.
        seconds: how many steps of it.
        output_tokens: mean output length; each is uniform over half to one and a half of it.
    """
    counts, lengths, phases = (np.asarray(x) for x in _draws(jnp.uint32(seed), jnp.arange(seconds), params))
    parts: list[tuple[np.ndarray, ...]] = []
    for step in range(seconds):
        rng = np.random.default_rng([seed, step])
        total = int(counts[step].sum())
        prompt = np.full(total, max(int(lengths[step]), 1))
        klass = rng.permutation(np.repeat(np.arange(3), counts[step]))
        parts.append((step + np.sort(rng.uniform(size=total)), prompt, _outputs(rng, total, output_tokens), klass))
    return _joined(parts, float(seconds), phases)


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
    return _joined([(times, np.full(count, prompt), outputs, np.zeros(count, np.int64))], seconds, phases)


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
    return _joined([(times, prompts, outputs, kinds)], seconds, np.ones(int(seconds), np.int64))


def _outputs(rng: np.random.Generator, count: int, mean: int) -> np.ndarray:
    return rng.integers(max(mean // 2, 1), mean + mean // 2 + 1, count)


def _joined(parts: list[tuple[np.ndarray, ...]], seconds: float, phase: np.ndarray) -> Traffic:
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    prompt, output, klass = (np.asarray(column, np.int64) for column in columns[1:])
    return Traffic(columns[0], prompt, output, klass, seconds, phase)

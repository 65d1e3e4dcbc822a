"""The requests of a fleet: days of a pool with the swings of minutes, scaled to the fleet, or a request log.

``seed, params -> scale``; ``seed, second, params -> rates of the kinds -> mix -> the second's requests``. Hours run by
the clock, swings of minutes in the fleet's own time: a fast clock does not make a burst shorter.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.fleet.state import DECISION_S, FleetParams
from inferencegym_jax.models import HOURS, KINDS, EngineParams
from inferencegym_jax.numerics import draws
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.numerics.gamma import rounded_count
from inferencegym_jax.physics.inflow import Arrivals
from inferencegym_jax.traffic import days, fitted

QUARTERS = 4  # of an hour
REQUESTS = 32  # purpose of draws.hash4
NOBODY = 1e-6  # requests/s


class Coming(NamedTuple):
    """What a decision's requests are drawn from."""

    mix: days.Mix  # of the kinds, without swings
    short: jax.Array  # float32[len(SHORT_OUTPUTS)], shares of requests with few tokens
    logged: jax.Array | None  # float32[seconds, 3] of a request log; None: days are drawn


def day_scale(seed: jax.Array, params: FleetParams) -> jax.Array:
    """By what the rates of a day are multiplied (float32) so that its busiest quarter of an hour, without the swings of
    minutes, is a load of ``params.busiest`` GPUs."""
    day = params.engine.day.replace(clock=jnp.float32(3600.0 / QUARTERS), windows=jnp.int32(1))
    number, _ = days.day_of(seed, params.engine.day)

    def load(quarter: jax.Array) -> jax.Array:
        mix = days.mix_of(days.rates_at(number, quarter, day), day)
        return mix.rate * (mix.prompt * params.prompt_gpus + mix.output * params.output_gpus)

    busiest = jax.lax.map(load, jnp.arange(HOURS * QUARTERS)).max(axis=0)
    return jnp.where(params.busiest > 0, params.busiest / jnp.maximum(busiest, 1e-6), 1.0)


def coming(seed: jax.Array, time: jax.Array, scale: jax.Array, params: FleetParams, log: jax.Array | None) -> Coming:
    """What the requests of decision ``time`` (int32) are drawn from: the kinds at its middle, or the log."""
    second = DECISION_S * time + DECISION_S // 2
    if log is not None:
        return Coming(_of_log(params), jnp.asarray(params.short_outputs)[..., 0, :], log)
    rates = days.rates_at(seed, second, params.engine.day)
    came = rates.sum(axis=-1)
    # of a second in which nobody comes the mixture has no lengths, and an engine that waits for them no times
    rates = jnp.where((came > NOBODY)[..., None], rates, 1.0)
    mix = days.mix_of(rates, params.engine.day)
    mix = mix._replace(rate=jnp.where(came > NOBODY, mix.rate, 0.0))
    parts = [rates[..., kind, None] * jnp.asarray(params.short_outputs)[..., kind, :] for kind in range(KINDS)]
    short = sum(parts[1:], parts[0]) / jnp.maximum(rates.sum(axis=-1), NOBODY)[..., None]
    mix = mix._replace(rate=mix.rate * scale, shares=jnp.asarray(params.class_shares, jnp.float32))
    return Coming(mix, short, None)


def _of_log(params: FleetParams) -> days.Mix:
    engine = params.engine
    names = ("rate", "prompt_mean", "prompt_cv", "output_mean", "output_cv", "length_correlation", "arrival_scv")
    values = [jnp.asarray(getattr(engine, name), jnp.float32) for name in names]
    return days.Mix(
        *values,
        prefix_share=jnp.asarray(engine.prefix_share, jnp.float32),
        shares=jnp.asarray(params.class_shares, jnp.float32),
        acceptance=jnp.asarray(engine.acceptance_lengths, jnp.float32),
    )


def engine_of(mix: days.Mix, params: EngineParams) -> EngineParams:
    """The engine's params in a second of such requests."""
    return params.replace(
        prompt_cv=mix.prompt_cv,
        output_cv=mix.output_cv,
        length_correlation=mix.correlation,
        arrival_scv=mix.dispersion,
        prefix_share=mix.prefix_share,
        acceptance_lengths=mix.acceptance,
    )


def arrivals_of(seed: jax.Array, second: jax.Array, of: Coming, params: FleetParams) -> Arrivals:
    """The requests of one second of an episode."""
    if of.logged is not None:
        rows = of.logged
        length = DECISION_S * jnp.asarray(params.episode_length, jnp.int32)
        log_row = rows[(seed.astype(jnp.int32) * length + second) % rows.shape[0]]
        return Arrivals(log_row[..., 0], log_row[..., 1], log_row[..., 2])
    swing = compile_unit(_swing)(seed, second, params.engine)
    return compile_unit(_draw)(seed, second, swing, of.mix)


def _swing(seed: jax.Array, second: jax.Array, engine: EngineParams) -> jax.Array:
    return jnp.exp(fitted.log_modulation(seed, second, engine))


def _draw(seed: jax.Array, second: jax.Array, swing: jax.Array, mix: days.Mix) -> Arrivals:
    words = draws.hash4(seed, second, REQUESTS)
    count = rounded_count(words[0], words[1], mix.rate * swing, mix.dispersion)
    return Arrivals(count, *days.mean_lengths(mix, count, draws.normal(words[2]), draws.normal(words[3])))

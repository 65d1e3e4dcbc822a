"""Requests of few tokens are judged by their own gaps, and what prompts add to a gap is bounded by a full iteration."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import SHORT_OUTPUTS
from inferencegym_jax.physics.on_time import ShortOutputs, TimePerToken, share_quick, share_quick_of_all
from inferencegym_jax.tasks.params import NOT_NORMALISED, make_params

DECODE_MS, PROMPT_MS = 15.0, 110.0
FEW = (0.0, 0.0, 0.0, 0.2, 0.3, 0.2, 0.1, 0.0)


def seen(load: float, tokens: float = 1.0, shares: tuple[float, ...] = FEW) -> tuple[TimePerToken, ShortOutputs]:
    """A second of which prompts, each of which fills an iteration, take this share."""
    slowed = DECODE_MS / (1.0 - load)
    chunks = load / PROMPT_MS
    short = ShortOutputs(
        shares=jnp.asarray(shares, jnp.float32),
        iteration_ms=jnp.float32(DECODE_MS),
        slowed_ms=jnp.float32(slowed),
        chunks=jnp.float32(chunks),
        chunk_ms=jnp.float32(PROMPT_MS),
        chunk_square=jnp.float32(PROMPT_MS**2),
        full_ms=jnp.float32(PROMPT_MS),
        tokens=jnp.float32(tokens),
    )
    by_prompts = 4.0 * (slowed - DECODE_MS) ** 2 / tokens**2
    deviation = jnp.float32(np.sqrt(by_prompts))
    return TimePerToken(jnp.float32(slowed / tokens), deviation, jnp.float32(by_prompts)), short


def share(load: float, objective: float, tokens: float = 1.0, shares: tuple[float, ...] = FEW) -> float:
    per_token, short = seen(load, tokens, shares)
    return float(share_quick_of_all(per_token, jnp.float32(objective), short))


def test_in_an_engine_full_of_prompts_every_gap_is_a_full_iteration() -> None:
    """Each iteration holds all the prompt tokens that it has room for, so nobody is quicker or slower than it."""
    full = PROMPT_MS / (DECODE_MS + PROMPT_MS)
    assert share(full, 0.9 * (DECODE_MS + PROMPT_MS)) < 0.01
    assert share(full, 1.1 * (DECODE_MS + PROMPT_MS)) > 0.99
    per_token, _ = seen(full)
    assert share_quick(per_token, jnp.float32(0.9 * (DECODE_MS + PROMPT_MS))) > 0.2  # unbounded, two in ten are quick


def test_few_gaps_mostly_meet_no_prompt() -> None:
    """Three gaps beside prompts that come at random, drawn one by one, while few come."""
    rng, load = np.random.default_rng(5), 0.1
    slowed = DECODE_MS / (1.0 - load)
    met = rng.poisson(load / PROMPT_MS * slowed * 3.0, 100_000)  # three gaps; prompts come at random
    expected = np.mean(DECODE_MS + PROMPT_MS * met / 3.0 <= 30.0)
    three = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert share(load, 30.0, shares=three) == pytest.approx(expected, abs=0.05)


def test_drafts_make_fewer_iterations_of_as_many_tokens() -> None:
    """Two tokens an iteration: six gaps are three iterations, each of which may take twice the objective."""
    seven = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    assert share(0.3, 10.0, tokens=2.0, shares=seven) > share(0.3, 10.0, shares=seven) == 0.0


def test_where_no_output_is_short_and_nothing_is_full_nothing_changes() -> None:
    per_token, short = seen(0.2, shares=(0.0,) * len(SHORT_OUTPUTS))
    usual = per_token._replace(deviation=jnp.float32(3.0), by_prompts=jnp.float32(4.0))
    for objective in (12.0, 18.0, 25.0, np.inf):
        same = share_quick(usual, jnp.float32(objective))
        np.testing.assert_array_equal(share_quick_of_all(usual, jnp.float32(objective), short), same)


@functools.cache
def overloaded() -> ig.RequestLog:
    rng = np.random.default_rng(2)
    time = np.sort(rng.random(4000)) * 400.0
    return ig.RequestLog.from_arrays(time, rng.integers(1500, 2500, 4000), rng.integers(4, 8, 4000))


def on_time(log: ig.RequestLog, mixed: bool = False) -> np.ndarray:
    params = make_params(ig.get_task(4), ig.load_table(), NOT_NORMALISED, trace=log)
    env = ig.Environment(ig.load_table(), params, log)
    seeds = np.arange(2)
    if mixed:
        params = ig.stack_params([params, ig.make(4)[1]])
    action = ig.ServeAction(batch_size=128)
    rolled = ig.rollout(env, params, ig.policies.static(action), seeds)
    return np.asarray(rolled.outcome.on_time)[:, 0].sum(axis=-1)


@pytest.mark.ci
def test_a_log_tells_its_short_outputs_to_the_step() -> None:
    log = overloaded()
    assert sum(log.short_outputs) == pytest.approx(1.0)
    unknown = dataclasses.replace(log, short_outputs=(0.0,) * len(SHORT_OUTPUTS))
    assert log != unknown
    mine, other = on_time(log), on_time(unknown)
    assert not np.allclose(mine, other)
    np.testing.assert_allclose(on_time(log, mixed=True), mine, rtol=1e-5, atol=1e-5)

"""Lookups go on as their last nodes rise, as far as the step may ask: an engine that was measured with few requests and
short prompts does not serve more of them for nothing."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.live.trial.profile_engine import EngineTimes, ProfileEngine
from inferencegym_jax.models import KNOBS, EngineParams
from inferencegym_jax.physics.iteration import rough_iteration_ms
from inferencegym_jax.physics.kernels import Iterations
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.stack import stacked
from inferencegym_jax.table import EngineProfile, profile_of
from inferencegym_jax.table.latency_table import LatencyTable
from tests.live.test_trial import SLOW, ideal

MOST = int(KNOBS["batch_size"].high)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    """Of the slow engine, measured with at most 16 requests, prompts of 64 and 128 tokens, 32 of output."""
    return ideal(SLOW, 32, batch_sizes=(1, 4, 16), prompts=(64, 128))


@pytest.mark.ci
@pytest.mark.parametrize("running", [16, 36, 64, 200, MOST])
@pytest.mark.parametrize("context", [80.0, 2000.0])
def test_more_requests_than_were_measured_take_longer(table: LatencyTable, running: int, context: float) -> None:
    expected = pytest.approx(SLOW.a + SLOW.b * running, rel=5e-3)
    params = EngineParams(overhead_ms=np.float32(0.0), overhead_ms_per_sequence=np.float32(0.0))
    n, drafts = jnp.float32(running), jnp.float32(0.0)
    ms = rough_iteration_ms(iterations_of(table), n, jnp.float32(context), drafts, jnp.int32(0), params)
    assert float(ms) == expected
    assert EngineTimes(table).decode_ms(running, context) == expected


@pytest.mark.ci
@pytest.mark.parametrize("tokens", [128, 500, 1000, 2047, 8000])
def test_more_prompt_tokens_than_were_measured_take_longer(table: LatencyTable, tokens: int) -> None:
    grid, tier = iterations_of(table), jnp.int32(0)
    added = grid.products_ms(jnp.float32(1 + tokens), tier) - grid.products_ms(jnp.float32(1.0), tier)
    assert float(added) == pytest.approx(SLOW.c * tokens, rel=5e-3)
    chunks = [(0.0, 64.0)] * (tokens // 64)
    assert EngineTimes(table).added_ms(1, chunks) == pytest.approx(SLOW.c * 64 * len(chunks), rel=5e-3)


@pytest.mark.ci
@pytest.mark.parametrize("shipped", [False, True])
def test_a_lookup_rises_to_its_end_where_its_profile_does(table: LatencyTable, shipped: bool) -> None:
    profile = profile_of(ig.load_table() if shipped else table)
    grid = Iterations(profile)
    attention = grid.attention.reshape([len(axis) for axis in grid.attention_axes])
    lookups = {
        "products": (profile.products_ms, grid.products.reshape(-1, len(grid.tokens)), grid.tokens, 8192),
        "attention of sequences": (profile.decode_attention_ms.T, attention.T, grid.attention_axes[0], MOST),
        "attention of contexts": (profile.decode_attention_ms, attention, grid.attention_axes[1], 65536),
        "attention of prompts": (profile.prefill_attention_ms[None], grid.prefill[None], grid.prompt_axis, 65536),
    }
    for name, (given, looked_up, axis, reach) in lookups.items():
        rises = given[:, -1].max() > given[:, -2].max() + 1e-6
        assert axis[-1] >= reach, name
        assert (looked_up[:, -1].max() > looked_up[:, -2].max() + 1e-6) == rises, name


def test_a_budget_is_as_far_as_the_lookups_reach(table: LatencyTable) -> None:
    times = EngineTimes(table)
    assert ProfileEngine(times, token_budget=8192).token_budget == 8192
    for budget in (0, 8193):
        with pytest.raises(ValueError, match=rf"token_budget = {budget}: must be from 1 to 8192"):
            ProfileEngine(times, token_budget=budget)
    wide = dataclasses.replace(profile_of(table), tokens_per_iteration=20_000)
    assert Iterations(wide).tokens[-1] >= 20_000


def test_a_stack_reaches_as_far_as_the_engine_that_has_most(table: LatencyTable) -> None:
    narrow: EngineProfile = profile_of(table)
    wide = dataclasses.replace(narrow, tokens_per_iteration=20_000)
    stack = stacked([(narrow, 0), (wide, 0)])
    assert len(stack.products) == 2 * len(stack.tokens) and stack.tokens[-1] >= 20_000
    tokens, engines = jnp.full(2, 15_001.0), jnp.arange(2)
    added = stack.products_ms(tokens, engines) - stack.products_ms(jnp.ones(2), engines)
    np.testing.assert_allclose(np.asarray(added), SLOW.c * 15_000, rtol=5e-3)

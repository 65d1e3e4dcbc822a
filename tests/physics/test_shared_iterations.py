"""Prompts that share an iteration make its products' steps together, and a request ends in the midst of a second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.physics.iteration import Prompts, prompt_nodes, prompts_ms
from inferencegym_jax.physics.on_time import last_second, time_per_token
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.shared_iterations import shared_prompts
from inferencegym_jax.tasks.params import NOT_NORMALISED, make_params
from tests.reference.iteration import load_profile

BUDGET, DECODE_MS = 2048.0, 25.0
RATE = 0.0352  # requests a ms
PROMPT, CV = 171.0, 0.954


def prompts_of(
    beside: float, rate: float = RATE, cv: float = CV, mean: float = PROMPT, is_log: bool | None = True
) -> Prompts:
    """What prompts add beside so many decode tokens."""
    grid = iterations_of(ig.load_table())
    tier, cached = jnp.int32(0), jnp.float32(0.0)
    m, square = jnp.float32(beside), jnp.float32(cv * cv)
    lone = prompts_ms(grid, prompt_nodes(jnp.float32(mean), square), m, jnp.float32(BUDGET), cached, tier)
    inflow = cast(Any, SimpleNamespace(prompt=jnp.float32(mean), square_cv=square, beside=m))
    one = cast(Any, SimpleNamespace(gpus=jnp.float32(1.0), tier=tier))
    flag = None if is_log is None else jnp.bool_(is_log)
    return shared_prompts(
        grid, inflow, lone, jnp.float32(rate), jnp.float32(DECODE_MS), jnp.float32(BUDGET), cached, one, flag
    )


def iterations_one_by_one(beside: int, count: int = 20_000) -> float:
    """Mean ms of iterations that take in what came during the one before, from the profile and no formula."""
    profile = load_profile()
    nodes, times = profile["products_ms"]["tokens"], profile["products_ms"]["ms"][0]
    rng = np.random.default_rng(4)
    sigma = np.sqrt(np.log1p(CV * CV))
    lengths = np.maximum(np.rint(PROMPT * np.exp(sigma * rng.normal(size=4 * count) - sigma * sigma / 2)), 1)
    attention = np.interp(lengths, profile["prefill_attention_ms"]["tokens"], profile["prefill_attention_ms"]["ms"])
    base, last, total, first = np.interp(beside, nodes, times), DECODE_MS, 0.0, 0
    for _ in range(count):
        end = first + rng.poisson(RATE * last)
        products = np.interp(beside + lengths[first:end].sum(), nodes, times) - base
        last = DECODE_MS + products + attention[first:end].sum()
        total, first = total + last, end
    return total / count


def slowed(added_ms: Any) -> float:
    return DECODE_MS / (1.0 - RATE * float(added_ms))


@pytest.mark.parametrize("beside", (60, 100, 162, 186))
def test_iterations_with_several_prompts_take_what_they_take_one_by_one(beside: int) -> None:
    assert slowed(prompts_of(beside).shared_ms) == pytest.approx(iterations_one_by_one(beside), rel=0.025)


def test_beside_162_tokens_a_lone_prompt_is_nearly_free_and_the_second_is_not() -> None:
    """The products' step at 160 tokens is paid, the next is beyond 256."""
    assert slowed(prompts_of(162).mean_ms) < 0.96 * iterations_one_by_one(162)


def test_prompts_that_never_meet_add_what_they_add_alone() -> None:
    prompts = prompts_of(100, rate=1e-9, cv=0.0)
    np.testing.assert_allclose(float(cast(Any, prompts.shared_ms)), float(prompts.mean_ms), rtol=2e-3)


def test_where_products_rise_in_proportion_company_changes_nothing() -> None:
    prompts = prompts_of(900, rate=0.005, mean=800.0, cv=0.5)
    np.testing.assert_allclose(float(cast(Any, prompts.shared_ms)), float(prompts.mean_ms), rtol=0.01)


def test_tasks_own_traffic_pays_what_a_lone_prompt_adds() -> None:
    assert prompts_of(162, is_log=None).shared_ms is None
    other = prompts_of(162, is_log=False)
    assert float(cast(Any, other.shared_ms)) == float(other.mean_ms)


@pytest.mark.parametrize("cv", (0.0, 0.4, 0.724, 1.0))
@pytest.mark.parametrize("stay", (0.3, 1.0, 1.5, 4.0, 12.0))
def test_the_share_of_a_stay_in_its_last_second(stay: float, cv: float) -> None:
    rng = np.random.default_rng(1)
    sigma = np.sqrt(np.log1p(cv * cv))
    stays = stay * np.exp(sigma * rng.normal(size=200_000) - sigma * sigma / 2)
    shares = np.minimum(rng.random(len(stays)), stays) / stays
    last = last_second(jnp.float32(stay), jnp.float32(cv * cv))
    assert float(last.mean) == pytest.approx(shares.mean(), abs=0.02)
    assert float(last.variance) == pytest.approx(shares.var(), abs=0.02)


def tpot(now: float, before: float, is_log: bool | None) -> float:
    """Of constant outputs that stay for a second, after ``before`` ms a token."""
    return float(
        time_per_token(
            slowed_ms=jnp.float32(now),
            tokens=jnp.float32(1.0),
            had_ms=jnp.float32(100.0 * before),
            had_tokens=jnp.float32(100.0),
            output=jnp.float32(1.0 + 1000.0 / now),
            admission=jnp.float32(0.0),
            square_ms=jnp.float32(0.0),
            load=jnp.float32(0.0),
            cv_output=jnp.float32(0.0),
            running=jnp.float32(10.0),
            stiffness=jnp.float32(0.0),
            is_log=None if is_log is None else jnp.bool_(is_log),
        ).mean
    )


def test_half_a_stay_at_10_and_half_at_40_ms_is_16_ms_a_token() -> None:
    """A second of 100 and one of 25 tokens: 125 in two seconds."""
    assert tpot(40.0, 10.0, True) == pytest.approx(16.0, rel=1e-5)
    assert tpot(40.0, 40.0, True) == pytest.approx(40.0, rel=1e-5)
    assert tpot(40.0, 10.0, False) == tpot(40.0, 10.0, None)


@pytest.mark.ci
def test_a_task_beside_a_log_is_served_as_alone() -> None:
    """To 1e-6 as users compile; the suite's compiler flags round otherwise, by 2.4e-5 in one second."""
    rng = np.random.default_rng(2)
    time = np.sort(rng.random(3000)) * 300.0
    log = ig.RequestLog.from_arrays(time, rng.integers(100, 300, 3000), rng.integers(20, 200, 3000))
    table, seeds = ig.load_table(), np.arange(2)
    own = make_params(ig.get_task(4), table, NOT_NORMALISED)
    replayed = make_params(ig.get_task(4), table, NOT_NORMALISED, trace=log)
    policy = ig.policies.static(ig.ServeAction(batch_size=64))
    alone = ig.rollout(ig.Environment(table, own), own, policy, seeds)
    env = ig.Environment(table, replayed, log)
    mixed = ig.rollout(env, ig.stack_params([own, replayed]), policy, seeds)
    for name in ("on_time", "late", "gpu_seconds"):
        mine, other = (np.asarray(getattr(rolled.outcome, name))[:, 0] for rolled in (alone, mixed))
        np.testing.assert_allclose(other, mine, rtol=1e-4, atol=1e-4, err_msg=name)

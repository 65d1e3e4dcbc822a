"""A task that is drawn anew for each episode."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.encoding import box_from_action
from inferencegym_jax.environment import Environment
from inferencegym_jax.models import KNOBS
from inferencegym_jax.policies.engine_units import drawn_engine, engine_of
from inferencegym_jax.tasks import get_task
from inferencegym_jax.tasks.draws import TRAINING, Draws, drawn
from inferencegym_jax.verification import resimulate

TASK = "one-for-all"
SEEDS = np.arange(400, dtype=np.uint32) * 53


@pytest.fixture(scope="module")
def problem() -> ig.Problem:
    return ig.problem(TASK)


@pytest.fixture(scope="module")
def draws(problem: ig.Problem) -> Draws:
    assert problem.env.draws is not None
    return problem.env.draws


@pytest.fixture(scope="module")
def chosen(problem: ig.Problem, draws: Draws) -> dict[str, Any]:
    """Choices and params of held-out seeds and of as many of training."""
    every = jnp.asarray(np.concatenate([SEEDS, SEEDS + np.uint32(1 << 31)]))
    choice = jax.jit(jax.vmap(draws.choice))(every)
    params = jax.jit(jax.vmap(functools.partial(drawn, draws, problem.params)))(every)
    return {"choice": jax.tree.map(np.asarray, choice), "params": jax.tree.map(np.asarray, params)}


def test_training_draws_only_what_it_may_see_and_the_rest_all_there_is(draws: Draws, chosen: dict[str, Any]) -> None:
    counts = len(draws.days.rate), len(draws.stack.engines), len(draws.ttft_ms)
    for name, seen, count in zip(("pool", "engine", "objective"), draws.seen, counts, strict=True):
        column = getattr(chosen["choice"], name)
        assert set(column[: len(SEEDS)]) == set(range(count)), name
        assert set(column[len(SEEDS) :]) == set(range(seen)), name
    assert TRAINING == 1 << 30  # validation seeds, too, draw what training may see


def test_the_busiest_hour_needs_the_gpus_that_were_drawn(draws: Draws, chosen: dict[str, Any]) -> None:
    choice, day = chosen["choice"], chosen["params"].engine.day
    work = draws.work_ms[choice.engine, choice.pool]
    needed = (day.hours * (day.rate * work)[..., None]).sum(axis=1).max(axis=1) / 1000.0
    np.testing.assert_allclose(needed, choice.load, rtol=1e-4)
    low, high = draws.entry["load"]
    assert choice.load.min() < low + 0.1 and choice.load.max() > high - 0.1


def test_the_mean_demand_is_that_of_the_drawn_rates(chosen: dict[str, Any]) -> None:
    engine = chosen["params"].engine
    np.testing.assert_allclose(engine.demand_rps, engine.day.rate.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(engine.demand_tps, (engine.day.rate * engine.day.output_mean).sum(axis=1), rtol=1e-5)


def test_a_second_gpu_may_be_leased_in_the_stated_share_of_episodes(draws: Draws, chosen: dict[str, Any]) -> None:
    active = chosen["params"].active[:, list(KNOBS).index("prefill_disagg")]
    assert active.mean() == pytest.approx(draws.entry["lease_share"], abs=0.06)


@pytest.mark.slow
def test_a_drawn_episode_is_that_of_its_own_params(problem: ig.Problem, draws: Draws) -> None:
    """On the shipped GPU in 16 bits: the stack and the draw change nothing of the physics."""
    choice = jax.jit(jax.vmap(draws.choice))(jnp.asarray(SEEDS))
    seed = SEEDS[np.flatnonzero(np.asarray(choice.engine) == 0)[0]]
    own = jax.jit(functools.partial(drawn, draws, problem.params))(jnp.uint32(seed))
    plain = Environment(problem.table, own)
    action = ig.policies.static(ig.ServeAction(batch_size=128, kv_budget=0.75, spec_length=1, prefill_disagg=True))
    mine = ig.rollout(problem.env, problem.params, action, [seed], length=40)
    theirs = ig.rollout(plain, own, action, [seed], length=40)
    for name in ("reward", "metrics", "outcome"):
        for a, b in zip(jax.tree.leaves(getattr(mine, name)), jax.tree.leaves(getattr(theirs, name)), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_controller_is_told_of_a_drawn_gpu_what_it_reads_off_a_table(problem: ig.Problem, draws: Draws) -> None:
    choice = jax.jit(jax.vmap(draws.choice))(jnp.asarray(SEEDS))
    seed = jnp.uint32(SEEDS[np.flatnonzero(np.asarray(choice.engine) == 0)[0]])
    own = jax.tree.map(np.asarray, jax.jit(functools.partial(drawn, draws, problem.params))(seed))
    told = jax.jit(functools.partial(drawn_engine, draws, problem.params))(seed)
    read = engine_of(problem.table, own)
    assert float(told.pool) == pytest.approx(float(read.pool), rel=1e-3)
    mean = float(own.engine.prompt_mean)
    work = [float(x.work_base_ms + x.work_token_ms * mean) for x in (told, read)]
    assert work[0] == pytest.approx(work[1], rel=0.15)  # a mixture's work is not that of its mean request
    np.testing.assert_allclose(told.tpot_ms[:6], read.tpot_ms[:6], rtol=0.15)


def test_the_drawn_tasks_params_need_its_own_environment(problem: ig.Problem) -> None:
    env, _ = ig.make(7)
    with pytest.raises(ValueError, match="drawn for each episode"):
        ig.rollout(env, problem.params, ig.policies.baseline, [0], length=2)


def test_objectives_that_are_drawn_cannot_be_overruled() -> None:
    with pytest.raises(ValueError, match="draws its objectives"):
        ig.make(TASK, config={"slo_ttft_ms": 100.0})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("pools", ["nowhere"], "draws pools = 'nowhere'"),
        ("engines", ["b200 FP16"], "no engine profile of 'b200'"),
        ("engines", ["h100_sxm FP8"], "draws engine = 'h100_sxm FP8'"),
        ("load", [2.0, 1.0], "draws load = 1.0"),
        ("clock", [], "a list of at least one"),
        ("lease_share", float("nan"), "draws lease_share"),
        ("objectives", [{"ttft_ms": 100}], "tpot_ms"),
    ],
)
def test_bad_draws_are_refused_by_name(field: str, value: Any, said: str) -> None:
    spec = get_task(TASK)
    assert spec.draws is not None
    with pytest.raises((ValueError, TypeError), match=said):
        ig.TaskSpec(
            name="mine",
            id=900,
            arrivals=spec.arrivals,
            prompts=spec.prompts,
            slo_ttft_ms=spec.slo_ttft_ms,
            dynamics="open_loop",
            traffic=spec.traffic,
            draws={**spec.draws, field: value},
        )


@pytest.mark.slow
def test_a_drawn_episode_is_the_same_on_every_path(problem: ig.Problem) -> None:
    """A rollout's, simulated again from its actions, and through Gymnasium."""
    action = ig.ServeAction(batch_size=128, kv_budget=0.75, spec_length=2, prefill_disagg=True)
    seed, steps = 53, 6
    rolled = ig.rollout(problem.env, problem.params, ig.policies.static(action), [seed], length=steps)
    tokens = np.asarray(rolled.metrics.tokens_per_sec)[:, 0]
    log = resimulate(TASK, seed, None, [action.to_dict()] * steps)
    np.testing.assert_allclose([entry["metrics"]["tokens_per_sec"] for entry in log], tokens, rtol=1e-4)
    env = gymnasium.make("inferencegym_jax/OneforAll-v0")
    env.reset(seed=seed)
    rewards = [env.step(np.asarray(box_from_action(action)))[1] for _ in range(steps)]
    np.testing.assert_allclose(np.asarray(rewards, np.float32), np.asarray(rolled.reward)[:, 0], rtol=1e-3, atol=1e-4)

"""The replay decides: what is recommended, how many engines, and when a promise is not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.episodes.policy import act_at, init_carry, with_carry
from inferencegym_jax.recommend.candidates import fixed_knobs, holding, searched_actions, tiers_that_run
from inferencegym_jax.recommend.choice import CLOSEST, TRIED, choose
from inferencegym_jax.recommend.engine_replay import Replayed
from inferencegym_jax.recommend.quality import Objective, Quality
from inferencegym_jax.recommend.remedies import fewest_engines, remedies
from inferencegym_jax.table import LatencyTable, TableError
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params

GOAL = Objective(300.0, attainment=0.99)


def knobs(batch: int, apart: bool = False, tier: int = 0) -> dict[str, Any]:
    return {"kv_budget": 1.0, "spec_length": 0, "batch_size": batch, "prefill_disagg": apart, "quant_tier": tier}


def quality(attainment: list[float], gpus: list[float] | None = None) -> Quality:
    shares = np.asarray(attainment)
    blank = np.ones((1, len(shares)))
    numbers = np.ones(len(shares))
    return Quality(
        goodput=10.0 * shares,
        attainment=shares,
        ttft_p50_ms=numbers,
        ttft_p99_ms=numbers,
        tpot_ms=numbers,
        tokens_per_sec=100.0 * numbers,
        cost_per_1k=numbers,
        memory_gb=numbers,
        gpus=numbers if gpus is None else np.asarray(gpus),
        out_of_memory=0.0 * numbers,
        good=blank,
        requests=blank,
        tokens=blank,
        cost=blank,
    )


def replayed(attainment: float, engines: int = 1) -> Replayed:
    ttft = np.concatenate([np.full(round(1000 * attainment), 100.0), np.full(1000 - round(1000 * attainment), 700.0)])
    return Replayed(quality([attainment]), ttft, np.full(1000, 20.0), attainment, 0.0, 1000, engines)


def chosen(promised: list[float], kept: list[float], gpus: list[float] | None = None) -> Any:
    actions = [knobs(2**i, apart=gpus is not None and gpus[i] > 1) for i in range(len(promised))]
    allowed = np.ones(len(actions), bool)
    return choose(actions, quality(promised, gpus), allowed, GOAL, lambda i, least: replayed(kept[i]), actions[0])


def test_a_promise_that_is_kept_is_recommended_after_one_replay():
    found = chosen([0.90, 0.995, 0.992], [0.90, 0.994, 0.993])
    assert found.index == 1 and found.meets and found.agrees and len(found.replayed) == 1


def test_a_promise_that_is_broken_is_not_recommended():
    found = chosen([0.90, 0.998, 0.992], [0.90, 0.70, 0.991])
    assert found.index == 2 and found.meets and set(found.replayed) == {1, 2}


def test_what_misses_its_promise_by_little_may_still_be_found_to_meet():
    found = chosen([0.90, 0.97], [0.90, 0.995])
    assert found.index == 1 and found.meets


def test_promise_and_replay_more_than_three_points_apart_is_no_yes():
    found = chosen([0.90, 0.95], [0.90, 0.995])
    assert found.index == 1 and not found.agrees and not found.meets
    found = chosen([0.978], [0.913])  # a promise that the replay does not keep
    assert not found.agrees and not found.meets


def test_fewer_gpus_come_first_and_two_only_where_one_fails():
    assert chosen([0.992, 0.999], [0.991, 0.999], gpus=[1.0, 2.0]).index == 0
    assert chosen([0.992, 0.999], [0.980, 0.999], gpus=[1.0, 2.0]).index == 1


def test_a_replay_that_cannot_come_near_the_best_is_given_up_and_a_better_neighbour_is_found():
    asked: dict[int, float] = {}
    kept, promised = [0.2] * 11 + [0.5, 0.9, 0.95], [0.31 + 0.01 * i for i in range(11)] + [0.50, 0.30, 0.20]

    def replay(i: int, least: float) -> Replayed | None:
        asked[i] = least
        return replayed(kept[i]) if kept[i] > least else None

    actions = [knobs(2**i) for i in range(len(kept))]
    found = choose(actions, quality(promised), np.ones(len(kept), bool), GOAL, replay, actions[0])
    # slots of one step more than those of the closest were not promised as much, and are better
    assert found.index == 12 and set(found.replayed) == {11, 12}
    assert found.stopped == len(asked) - 2 and asked[11] == 0.0 and asked[10] == pytest.approx(0.99 * 0.5)


def test_where_nothing_meets_the_best_replay_is_the_closest():
    found = chosen([0.60, 0.50, 0.40], [0.30, 0.55, 0.40])
    assert found.index == 1 and not found.meets and len(found.replayed) <= CLOSEST + TRIED


def by_load(capacity: float) -> tuple[Callable[[int, int | None], Replayed], list[int]]:
    """An engine serves so much of the log in time; what is asked of it is kept."""
    asked: list[int] = []

    def replay(engines: int, looked_at: int | None) -> Replayed:
        asked.append(engines)
        return replayed(min(1.0, engines * capacity), engines)

    return replay, asked


@pytest.mark.parametrize("needed", [2, 3, 5, 8, 31])
def test_the_fewest_engines_are_found_by_replay(needed: int):
    replay, asked = by_load(0.995 / needed)
    found = fewest_engines(replay, GOAL)
    assert found is not None and found[0] == needed and found[1].engines == needed
    assert len(asked) < 14


def test_too_few_engines_are_said_to_be():
    assert fewest_engines(by_load(0.001)[0], GOAL, most=16) is None


def test_what_would_help_is_said_and_what_would_not_is_not():
    def replay(of: Any, engines: int, looked_at: int | None) -> Replayed:
        return replayed(min(1.0, engines * 0.4), engines)

    quick = (np.full(100, 50.0), np.full(100, 10.0))
    found = remedies(replayed(0.4), [knobs(64)], replay, lambda of: quick, GOAL, None)
    assert found.engines == found.gpus == 3 and found.attainment == 1.0
    assert found.ttft_ms == 700.0 and found.tpot_ms is None and found.idle_attainment == 1.0
    slow = (np.full(100, 350.0), np.full(100, 10.0))
    found = remedies(replayed(0.4), [knobs(64)], replay, lambda of: slow, GOAL, None)
    assert found.engines is None and found.idle_attainment == 0.0 and found.ttft_ms == 700.0
    # two GPUs an engine are only worth it where they need fewer in all
    found = remedies(replayed(0.4), [knobs(64), knobs(32, apart=True)], replay, lambda of: quick, GOAL, None)
    assert found.gpus == 3 and found.knobs == knobs(64)


@with_carry(lambda: jnp.int32(3))
def wants_int8_and_a_second_gpu(key: Any, observation: Any, carry: Any) -> Any:
    return ig.ServeAction(quant_tier=1, prefill_disagg=True, batch_size=99), carry + 1


def test_what_is_fixed_binds_a_controller_too():
    held = holding(wants_int8_and_a_second_gpu, {"quant_tier": 0, "prefill_disagg": False})
    action, carry = jax.jit(lambda c: act_at(held, jnp.uint32(0), jnp.int32(0), None, c))(init_carry(held))
    assert (int(action.quant_tier), bool(action.prefill_disagg), int(action.batch_size)) == (0, False, 99)
    assert int(init_carry(held)) == 3 and int(carry) == 4
    assert holding(wants_int8_and_a_second_gpu, {}) is wants_int8_and_a_second_gpu


def actions_within(memory_gb: float, **held: Any) -> list[dict[str, Any]]:
    table = ig.load_table()
    params = make_params(get_task(4), table, NOT_NORMALISED)
    params = params.replace(active=np.ones(5, bool))
    return searched_actions(ig.make(4)[0], params, held, memory_gb)


def test_a_share_of_the_pool_is_neither_searched_nor_fixed():
    assert {action["kv_budget"] for action in actions_within(40.0)} == {1.0}
    assert fixed_knobs(ig.load_table(), {"kv_budget": 1.0}) == {"kv_budget": 1.0}
    with pytest.raises(ValueError, match="no engine has a flag"):
        fixed_knobs(ig.load_table(), {"kv_budget": 0.5})


@pytest.mark.parametrize("memory_gb", [13.7, 15.0, 20.0, 79.0])
def test_more_memory_is_never_worse(memory_gb: float):
    # INT8 weights and the runtime need 11.6 GB; FP16 ones, which are not asked for, 18.6
    found = actions_within(memory_gb, quant_tier=1, batch_size=32, kv_budget=1.0)
    assert found and all(action["quant_tier"] == 1 for action in found)


@pytest.mark.parametrize(
    ("memory_gb", "held", "said"),
    [
        (8.0, {}, r"the INT4 weights of .* \(5.70006 GB\) .* must be above 8.20006"),
        (11.5, {"quant_tier": 1}, r"the INT8 weights of .* must be above 11.5807"),
        (18.0, {"quant_tier": 0}, r"the FP16 weights of .* must be above 18.56"),
    ],
)
def test_weights_are_what_does_not_fit_only_where_they_do_not(memory_gb: float, held: dict[str, Any], said: str):
    with pytest.raises(TableError, match=said):
        actions_within(memory_gb, **held)


def test_formats_that_no_engine_runs_on_the_gpu_are_not_searched():
    shipped = ig.load_table()
    assert tiers_that_run(shipped) == [0, 1, 2]
    weights = {**shipped.metadata, "weights": '{"INT8": "fp8 products"}'}
    fp8 = LatencyTable(shipped.axes, shipped.values, weights, engine=shipped.engine)
    assert tiers_that_run(fp8) == [0, 2]

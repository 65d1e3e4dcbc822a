"""Scoring by request: the formula worked out by hand, what it must not reward, and what a bad log is told."""

import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.episodes.static_search import follow
from inferencegym_jax.models import KNOBS
from inferencegym_jax.scoring.grader import score_aggregates

NORMS = {
    "optimal_tps": 1.0,
    "cost_normaliser": 1.0,
    "throughput_floor": 0.0,
    "demand_tps": 100.0,
    "demand_rps": 10.0,
    "static_gpus": 1.6,
    "static_on_time_share": 0.8,
}
METRICS = {
    "tokens_per_sec": 900.0,
    "ttft_p50_ms": 100.0,
    "gpu_memory_gb": 20.0,
    "slo_violations": 0,
    "cost_per_1k": 0.01,
}


def entry(action=None, **outcome):
    """A second in which 10 requests of 200 tokens come, all of them on time, on one GPU."""
    classes = {name: [0.0, 0.0, 0.0] for name in ("asked", "on_time", "late", "rejected", "failed", "present")}
    whole = classes | {"asked": [10.0, 0.0, 0.0], "on_time": [10.0, 0.0, 0.0]}
    whole |= {"tokens_asked": 200.0, "on_time_tokens": 200.0, "gpu_seconds": 1.0, "quality": 1.0}
    knobs = {name: knob.default for name, knob in KNOBS.items()} | (action or {})
    return {"action": knobs, "reward": 0.0, "metrics": dict(METRICS), "outcome": whole | outcome}


def task_with(**changes):
    """Task 4 with other knobs or class weights, a task of one's own."""
    return dataclasses.replace(ig.get_task(4), name="like-azure", id=44, title="Like Azure", **changes)


def test_a_log_of_three_seconds_scores_what_a_hand_computes():
    log = [
        entry(
            asked=[6.0, 4.0, 0.0],
            on_time=[1.0, 1.0, 0.0],
            late=[0.5, 0.0, 0.0],
            present=[4.5, 3.0, 0.0],
            tokens_asked=2000.0,
            on_time_tokens=300.0,
        ),
        entry(
            {"batch_size": 288, "prefill_disagg": True},
            asked=[2.0, 0.0, 2.0],
            on_time=[4.0, 2.0, 0.0],
            rejected=[0.0, 0.0, 1.0],
            failed=[0.0, 0.0, 0.5],
            present=[2.5, 1.0, 0.5],
            tokens_asked=400.0,
            on_time_tokens=1000.0,
            gpu_seconds=2.0,
        ),
        entry(
            {"batch_size": 288, "prefill_disagg": True},
            asked=[0.0, 0.0, 0.0],
            on_time=[1.0, 1.0, 0.0],
            late=[1.0, 0.0, 0.0],
            present=[0.5, 0.0, 0.5],
            tokens_asked=0.0,
            on_time_tokens=100.0,
            gpu_seconds=2.0,
        ),
    ]
    # asked 14, judged 13: on time 10, late 1.5, rejected 1, failed 0.5; tokens asked 2,400, on time 1,400
    goodput, on_time = 1400 / (2400 * 13 / 14), 10 / 13
    cost = 1.5 - 5 / (1.6 * 3)
    # changes of batch_size 256 and 0, of the switch 1 and 0: standard deviations 128 and 0.5
    stability = 1 - (128 / 512 + 0.5) / 0.5
    found = ig.grade(4, log, NORMS)
    parts = {"goodput_share": goodput, "on_time_share": on_time, "cost": cost, "stability": max(stability, 0)}
    assert found["breakdown"] == pytest.approx(parts)
    assert found["score"] == pytest.approx(0.40 * goodput + 0.20 * on_time + 0.30 * cost)
    sums = {"asked": 14, "on_time": 10, "late": 1.5, "rejected": 1, "failed": 0.5, "gpu_seconds": 5, "quality": 1}
    assert {name: found["outcome"][name] for name in sums} == pytest.approx(sums)
    assert not found["complete"] and "3 of 200 steps" in found["feedback"]
    assert "worth 0.30 of the score" in ig.grade(4, [entry(gpu_seconds=2.0)] * 3, NORMS)["feedback"]


def test_a_log_is_complete_with_the_last_second_of_the_episode():
    assert ig.grade(4, [entry()] * 200, NORMS)["complete"]
    assert not ig.grade(4, [entry()] * 199, NORMS)["complete"]


def test_fewer_gpus_count_only_while_requests_stay_on_time():
    def cost(share):
        late = [10 * (1 - share), 0.0, 0.0]
        return ig.grade(4, [entry(on_time=[10 * share, 0.0, 0.0], late=late)] * 4, NORMS)["breakdown"]["cost"]

    # 1 GPU where the best static action has 1.6 and 0.8 on time
    assert cost(1.0) == cost(0.79) == pytest.approx(1.5 - 1 / 1.6)
    assert cost(0.77) == cost(0.0) == 0.5
    dear = [entry(on_time=[0.0] * 3, late=[10.0, 0.0, 0.0], gpu_seconds=2.0)] * 4
    assert ig.grade(4, dear, NORMS)["breakdown"]["cost"] == pytest.approx(1.5 - 2 / 1.6)


def test_only_knobs_that_the_task_leaves_to_the_agent_are_asked_to_be_steady():
    restless = [entry({"quant_tier": tier}) for tier in (0, 2, 0, 2, 0)]
    assert ig.grade(4, restless, NORMS)["breakdown"]["stability"] == 1.0
    free = task_with(active_knobs=tuple(KNOBS))
    assert ig.grade(free, restless, NORMS)["breakdown"]["stability"] == 0.0
    for name, values in {
        "kv_budget": (1.0, 0.9),
        "spec_length": (0, 8),
        "batch_size": (512, 256),
        "prefill_disagg": (True, False),
    }.items():
        log = [entry({name: value}) for value in values * 2]
        change = abs(float(values[0]) - float(values[1])) / float(KNOBS[name].most)
        deviation = np.std([change, -change, change])
        expected = max(1 - deviation / 0.5, 0)
        assert ig.grade(4, log, NORMS)["breakdown"]["stability"] == pytest.approx(expected)


def test_quality_is_scored_where_the_weight_format_is_free():
    log = [entry(quality=0.97), entry(quality=1.0)]
    assert "quality_lost" not in ig.grade(4, log, NORMS)["breakdown"]
    found = ig.grade(task_with(active_knobs=tuple(KNOBS)), log, NORMS)
    assert found["breakdown"]["quality_lost"] == pytest.approx(0.015)
    assert found["score"] == pytest.approx(ig.grade(4, log, NORMS)["score"] - 0.015)


def test_a_class_counts_by_its_weight():
    log = [entry(asked=[8.0, 0.0, 2.0], on_time=[8.0, 0.0, 0.0], late=[0.0, 0.0, 2.0])]
    assert ig.grade(4, log, NORMS)["breakdown"]["on_time_share"] == pytest.approx(0.8)
    weighted = ig.grade(task_with(class_weights=(1.0, 1.0, 0.0)), log, NORMS)
    assert weighted["breakdown"]["on_time_share"] == 1.0
    weighted = ig.grade(task_with(class_weights=(1.0, 1.0, 4.0)), log, NORMS)
    assert weighted["breakdown"]["on_time_share"] == pytest.approx(0.5)


def test_quiet_seconds_neither_lower_nor_raise_the_share_on_time():
    busy = [entry(on_time=[7.0, 0.0, 0.0], late=[3.0, 0.0, 0.0], on_time_tokens=140.0)] * 10
    quiet = [entry(asked=[0.0] * 3, on_time=[0.0] * 3, tokens_asked=0.0, on_time_tokens=0.0)] * 30
    for log in (busy, busy + quiet):
        parts = ig.grade(4, log, NORMS)["breakdown"]
        assert parts["goodput_share"] == pytest.approx(0.7) and parts["on_time_share"] == pytest.approx(0.7)
    empty = ig.grade(4, quiet, NORMS)["breakdown"]
    assert empty["goodput_share"] == empty["on_time_share"] == 1.0  # whoever was asked nothing owes nothing
    waiting = [entry(on_time=[0.0] * 3, present=[10.0, 0.0, 0.0], on_time_tokens=0.0)]
    held = ig.grade(4, waiting, NORMS)["breakdown"]
    assert held["goodput_share"] == held["on_time_share"] == 0.0  # whoever was asked and served nobody has nothing


amounts = st.floats(0, 1e6, allow_nan=False)
classes = st.lists(amounts, min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    log=st.lists(
        st.builds(
            entry,
            action=st.fixed_dictionaries({"batch_size": st.integers(1, 512), "prefill_disagg": st.booleans()}),
            asked=classes,
            on_time=classes,
            late=classes,
            rejected=classes,
            failed=classes,
            tokens_asked=amounts,
            on_time_tokens=amounts,
            gpu_seconds=st.floats(0, 100),
            quality=st.floats(0, 1),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_component_and_the_score_stay_in_the_unit_interval_and_grading_is_pure(log):
    before = copy.deepcopy(log)
    first, second = ig.grade(4, log, NORMS), ig.grade(4, log, NORMS)
    assert first == second and log == before
    assert all(0 <= value <= 1 for value in (first["score"], *first["breakdown"].values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("outcome"), r"episode_log\[1\].outcome: missing \(task 4 is scored by request\)"),
        (lambda e: e.update(outcome=None), r"episode_log\[1\].outcome: missing"),
        (lambda e: e["outcome"].pop("late"), r"episode_log\[1\].outcome.late: missing"),
        (lambda e: e["outcome"].update(late=2.0), r"outcome.late = 2.0: must be 3 numbers, one a class"),
        (lambda e: e["outcome"].update(late=[1.0, 2.0]), r"outcome.late = \[1.0, 2.0\]: must be 3 numbers"),
        (lambda e: e["outcome"].update(late="abc"), r"outcome.late = 'abc': must be 3 numbers"),
        (lambda e: e["outcome"].update(late=[0.0, float("nan"), 0.0]), r"outcome.late\[1\] = nan: must be a finite"),
        (lambda e: e["outcome"].update(late=[0.0, -1.0, 0.0]), r"outcome.late\[1\] = -1.0: must be .* at least 0"),
        (lambda e: e["outcome"].update(gpu_seconds=float("inf")), r"outcome.gpu_seconds = inf: must be a finite"),
        (lambda e: e["outcome"].update(gpu_seconds=-1.0), r"outcome.gpu_seconds = -1.0: must be .* at least 0"),
        (lambda e: e["outcome"].update(quality="all"), r"outcome.quality = 'all': must be a finite"),
        (lambda e: e["action"].pop("prefill_disagg"), r"episode_log\[1\].action.prefill_disagg: missing"),
        (lambda e: e["action"].update(batch_size=True), r"action.batch_size = True: must be a finite number"),
    ],
)
def test_a_bad_outcome_names_its_place_and_field(change, message):
    log = [entry(), entry()]
    change(log[1])
    with pytest.raises(ValueError, match=message):
        ig.grade(4, log, NORMS)


@pytest.mark.ci
@pytest.mark.parametrize("task", (4, 5))
def test_log_statistics_and_a_second_simulation_score_alike(task):
    env, params = ig.make(task)
    seeds = np.arange(2)
    scores = score_aggregates(task, ig.evaluate(env, params, ig.policies.random, seeds))
    rolled = ig.rollout(env, params, ig.policies.random, seeds)
    for i, seed in enumerate(seeds):
        actions = [
            {name: np.asarray(getattr(rolled.action, name))[t, i].item() for name in KNOBS}
            for t in range(len(rolled.reward))
        ]
        checked = ig.verify(task, int(seed), None, actions)
        assert checked["complete"] and checked["score"] == pytest.approx(scores["score"][i], abs=2e-4)
        for name, value in checked["breakdown"].items():
            assert value == pytest.approx(scores[name][i], abs=2e-3), name
        forged = copy.deepcopy(checked["episode_log"])
        forged[30]["outcome"]["late"][0] += 1.0
        again = ig.verify(task, int(seed), None, actions, forged)
        assert not again["verified"]
        assert again["first_difference"]["step"] == 30 and again["first_difference"]["field"] == "outcome.late"
        assert ig.verify(task, int(seed), None, actions, checked["episode_log"])["verified"]


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    task=st.sampled_from((4, 5)),
    seed=st.integers(0, 2**31),
    batch=st.integers(8, 512),
    kv=st.floats(0.1, 1.0),
    spec=st.sampled_from(KNOBS["spec_length"].choices),
    second=st.booleans(),
    ttft=st.floats(50.0, 20_000.0),
    tpot=st.floats(5.0, 500.0),
    looser=st.floats(1.0, 4.0),
)
def test_a_stricter_objective_is_never_easier_to_meet(task, seed, batch, kv, spec, second, ttft, tpot, looser):
    action = ig.ServeAction(kv_budget=kv, batch_size=batch, spec_length=spec, prefill_disagg=second).as_arrays()

    def shares(ttft_ms, tpot_ms):
        env, params = ig.make(task, config={"slo_ttft_ms": ttft_ms, "slo_tpot_ms": tpot_ms})
        found = ig.evaluate(env, params, follow, np.array([seed]), carry=action)
        return np.array([found.on_time[0], found.on_time_share[0], found.goodput_share[0]], np.float64)

    strict = shares(ttft, tpot)
    for loose in (shares(ttft * looser, tpot), shares(ttft, tpot * looser)):
        assert (loose >= strict - 2e-3 * np.maximum(strict, 1.0)).all(), (strict, loose)

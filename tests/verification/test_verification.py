"""A score can be checked: the episode is regenerated from (task, seed, config, actions)."""

import json

import numpy as np
import pytest

import inferencegym_jax as ig


def play(task, seed, steps=200, config=None):
    env = ig.InferenceEnv(task, seed, config=config)
    rng = np.random.default_rng(seed)
    actions = []
    for _ in range(steps):
        action = ig.ServeAction(
            kv_budget=float(rng.uniform(0.1, 1)),
            batch_size=int(rng.integers(1, 513)),
            spec_length=int(rng.choice([0, 1, 2, 4, 8])),
            prefill_disagg=bool(rng.integers(2)),
            quant_tier=int(rng.integers(3)),
        )
        env.step(action)
        actions.append(action)
    return env.episode_log, actions


@pytest.mark.parametrize("task", (1, 2, 3))
def test_an_honest_log_is_verified_after_json(task):
    log, actions = play(task, 5)
    log = json.loads(json.dumps(log))
    result = ig.verify(task, 5, None, [entry["action"] for entry in log], log)
    assert result["verified"] and "first_difference" not in result
    assert result["score"] == pytest.approx(ig.grade(task, log)["score"], abs=1e-6)
    assert ig.verify(task, 5, None, actions)["score"] == pytest.approx(result["score"], abs=1e-6)


@pytest.mark.parametrize(
    "field, change",
    [
        (("metrics", "tokens_per_sec"), lambda x: x * 1.001 + 1),
        (("metrics", "slo_violations"), lambda x: x + 1),
        (("metrics", "ttft_p50_ms"), lambda x: "0"),
        (("metrics", "gpu_memory_gb"), lambda x: True),
        (("action", "batch_size"), lambda x: x % 512 + 1),
    ],
)
def test_a_forged_log_says_where_it_first_differs(field, change):
    log, actions = play(3, 8, steps=40)
    part, name = field
    log[17][part][name] = change(log[17][part][name])
    log[30][part][name] = change(log[30][part][name])
    result = ig.verify(3, 8, None, actions, log)
    assert not result["verified"]
    assert result["first_difference"]["step"] == 17
    assert result["first_difference"]["field"] == f"{part}.{name}"
    assert "step 17" in result["feedback"]


def test_what_became_of_requests_may_differ_by_a_hundred_thousandth_of_them_and_no_more():
    """A share that one processor rounds to 0 and another to a millionth is, of ten requests, more than 1e-5."""
    actions = [{}] * 40
    log = ig.verify(7, 1, None, actions)["episode_log"]
    step = max(range(40), key=lambda i: log[i]["outcome"]["asked"][0])
    whole = sum(map(sum, (log[step]["outcome"]["asked"], log[step]["outcome"]["present"])))
    assert whole > 5
    for share, is_same in ((0.8e-5, True), (3e-5, False)):
        claimed = json.loads(json.dumps(log))
        claimed[step]["outcome"]["late"][0] += share * whole
        assert ig.verify(7, 1, None, actions, claimed)["verified"] is is_same
    claimed = json.loads(json.dumps(log))
    claimed[step]["outcome"]["gpu_seconds"] += 0.8e-5 * whole + 1e-4  # no request
    found = ig.verify(7, 1, None, actions, claimed)
    assert found["first_difference"]["field"] == "outcome.gpu_seconds"


def test_a_forged_reward_and_a_shorter_log_are_found():
    log, actions = play(1, 2, steps=20)
    log[3]["reward"] += 0.01
    assert ig.verify(1, 2, None, actions, log)["first_difference"]["field"] == "reward"
    log, actions = play(1, 2, steps=20)
    assert ig.verify(1, 2, None, actions, log[:-1])["first_difference"] == {
        "step": 19,
        "field": "length",
        "claimed": 19,
        "simulated": 20,
    }


def test_seed_config_and_task_all_matter():
    log, actions = play(2, 4, steps=30, config={"gamma": 0.9})
    assert ig.verify(2, 4, {"gamma": 0.9}, actions, log)["verified"]
    assert not ig.verify(2, 4, None, actions, log)["verified"]
    assert not ig.verify(2, 5, {"gamma": 0.9}, actions, log)["verified"]
    assert not ig.verify(3, 4, {"gamma": 0.9}, actions, log)["verified"]


def test_no_actions_score_zero():
    assert ig.verify(1, 0, None, [])["score"] == 0.0


@pytest.mark.parametrize(
    "actions, message",
    [
        ([{"batch_size": 1}, {"batch_size": 0}], r"actions\[1\]: batch_size = 0: must be"),
        ([{"batchsize": 1}], r"actions\[0\]: action: unknown knob 'batchsize'"),
        ([{}] * 201, "actions: 201 given; an episode has at most 200 steps"),
        ([7], r"actions\[0\]: action: got int"),
        ("abc", "actions: got str; must be a list"),
    ],
)
def test_bad_actions_name_index_knob_and_range(actions, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ig.verify(1, 0, None, actions)


def test_a_bad_seed_is_told_the_range():
    with pytest.raises(ValueError, match="seed = -1: must be a whole number from 0"):
        ig.verify(1, -1, None, [{}])

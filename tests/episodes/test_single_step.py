"""One environment stepped from Python: bytes in, bytes and plain numbers out, and clear errors."""

from __future__ import annotations

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, plain


def test_reset_answers_what_the_environment_shows_first() -> None:
    env, params = ig.make(3)
    observation, _ = env.reset_seed(7, params)
    assert ig.SingleStep(env, params).reset(7).observation == plain(observation)


def test_an_episode_forks_from_the_bytes_of_its_state() -> None:
    step = ig.SingleStep(*ig.make(2))
    small, large = (step.pack_action(ig.ServeAction(batch_size=size)) for size in (8, 32))
    state = step.reset(1).state
    first = [step.step(state, action) for action in (small, large, small)]
    assert first[0] == first[2]
    assert first[0].info["workload"]["served"] < first[1].info["workload"]["served"]
    assert first[0].info["timestep"] == 1


def test_a_mapping_of_knobs_is_an_action() -> None:
    step = ig.SingleStep(*ig.make(1))
    action = ig.ServeAction(kv_budget=0.7, batch_size=64)
    assert step.pack_action({**action.to_dict(), "note": "not read"}) == step.pack_action(action)


@pytest.mark.parametrize(
    ("knobs", "error", "words"),
    [
        ({"batch_size": 0}, ValueError, "batch_size = 0: must be a whole number from 1 to 512"),
        ({"batch_size": 3.5}, ValueError, "batch_size = 3.5"),
        ({"kv_budget": float("nan")}, ValueError, "kv_budget = nan"),
        ({"kv_budget": True}, TypeError, "kv_budget = True"),
        ({"spec_length": 3}, ValueError, "spec_length = 3: must be one of 0, 1, 2, 4, 8"),
        ({"prefill_disagg": 1}, TypeError, "prefill_disagg = 1: must be true or false"),
    ],
)
def test_a_knob_out_of_range_is_named(knobs: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ig.SingleStep(*ig.make(1)).pack_action(ig.ServeAction(**knobs))  # type: ignore[arg-type]


def test_bytes_of_another_length_are_named() -> None:
    step = ig.SingleStep(*ig.make(1))
    with pytest.raises(ValueError, match=f"3 and {4 * len(KNOBS)} bytes"):
        step.step(b"abc", step.pack_action(ig.ServeAction()))
    with pytest.raises(ValueError, match="seed = -1"):
        step.reset(-1)


def test_floats_keep_their_bits() -> None:
    step = ig.SingleStep(*ig.make(3))
    outcome = step.step(step.reset(0).state, step.pack_action(ig.ServeAction()))
    values = [outcome.reward, *outcome.info["metrics"].values(), *outcome.observation["priority_distribution"]]
    assert all(float(np.float32(value)) == value for value in values)


def test_the_old_name_warns() -> None:
    with pytest.warns(DeprecationWarning, match="SingleStep"):
        assert ig.PackedStep is ig.SingleStep

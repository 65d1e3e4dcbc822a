"""The observation in units of capacity and objectives, the corrected controller, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.adapters.relative_views import CorrectedControl, RelativeObservation
from inferencegym_jax.models import OBSERVATION, ServeObservation
from inferencegym_jax.policies.corrected import CORRECTIONS, corrected_plan, corrected_policy, positions_policy
from inferencegym_jax.policies.engine_units import Engine, engine_of
from inferencegym_jax.policies.load_following import NEVER, LoadPlan, follow_load
from inferencegym_jax.policies.network import HEAD_SIZE, ObservationStatistics, PolicyNetwork
from inferencegym_jax.policies.policy_file import load_network, playable, save_network
from inferencegym_jax.policies.relative import FIELDS, RELATIVE_SIZE, Seen, acted, relative

PLAN = LoadPlan(up_load=0.6, hold_s=20.0, few=20.0, many=60.0, long_drafts=2, short_drafts=1, kv_budget=0.5)


@pytest.fixture(scope="module")
def problem() -> ig.Problem:
    return ig.problem(7)


@pytest.fixture(scope="module")
def engine(problem: ig.Problem) -> Engine:
    return engine_of(problem.table, problem.params)


def network(outputs: int = len(CORRECTIONS), bias: Any = 0.0, seed: int | None = None) -> PolicyNetwork:
    """One linear layer: its bias alone, or with a seed a dependence on what it reads."""
    weights = np.zeros((RELATIVE_SIZE, outputs))
    if seed is not None:
        weights = np.random.default_rng(seed).normal(0.0, 0.3, weights.shape)
    layer = (jnp.asarray(weights, jnp.float32), jnp.broadcast_to(jnp.asarray(bias, jnp.float32), (outputs,)))
    nothing = ObservationStatistics(jnp.zeros(()), jnp.zeros(RELATIVE_SIZE), jnp.ones(RELATIVE_SIZE))
    return PolicyNetwork((layer,), jnp.zeros(len(CORRECTIONS) if outputs == len(CORRECTIONS) else 2), nothing)


def observation(**values: float) -> ServeObservation:
    fields: dict[str, Any] = {name: np.float32(field.low) for name, field in OBSERVATION.items()}
    fields["priority_distribution"] = np.asarray([1.0, 0.0, 0.0], np.float32)
    return ServeObservation(**{**fields, **{name: np.float32(value) for name, value in values.items()}})


def numbers(engine: Engine, seen: ServeObservation) -> dict[str, float]:
    return dict(zip(FIELDS, np.asarray(relative(engine, seen, Seen.start())[0]).tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_relative_numbers_are_finite_and_within_their_box(data: st.DataObject, engine: Engine, problem: Any) -> None:
    values = {
        name: data.draw(st.floats(field.low, field.high, width=32), label=name)
        for name, field in OBSERVATION.items()
        if field.size == 1 and field.high < np.inf
    }
    found = np.asarray(relative(engine, observation(**values), Seen.start())[0])
    space = RelativeObservation(problem.env, problem.params).observation_space()
    assert np.isfinite(found).all() and (found >= space.low).all() and (found <= space.high).all()


def test_a_gpu_twice_as_fast_under_twice_the_requests_looks_the_same(engine: Engine) -> None:
    half = {name: np.asarray(getattr(engine, name)) / 2 for name in ("work_base_ms", "work_token_ms")}
    fast = Engine(**{**vars(engine), **half})
    slow_numbers = numbers(engine, observation(arrival_rate=8.0, mean_prompt_len=700.0, queue_depth=20.0))
    fast_numbers = numbers(fast, observation(arrival_rate=16.0, mean_prompt_len=700.0, queue_depth=40.0))
    assert fast_numbers == pytest.approx(slow_numbers, rel=1e-5)


def test_latencies_stand_over_their_objectives(engine: Engine) -> None:
    strict = Engine(**{**vars(engine), "slo_ttft_ms": np.asarray(engine.slo_ttft_ms) / 4})
    loose = numbers(engine, observation(ttft_p50=800.0))["ttft_over_objective"]
    assert numbers(strict, observation(ttft_p50=200.0))["ttft_over_objective"] == pytest.approx(loose)
    assert numbers(strict, observation(ttft_p50=800.0))["ttft_over_objective"] > loose


def test_slots_are_where_the_tpot_curve_meets_the_objective(engine: Engine) -> None:
    curve = np.asarray(engine.tpot_ms, np.float64)
    for wanted in (1.0, 5.0, 40.0, 300.0):
        at = float(np.interp(np.log2(wanted), np.arange(10), curve))
        own = Engine(**{**vars(engine), "slo_tpot_ms": np.full(3, at, np.float32)})
        assert float(own.slots(observation())) == pytest.approx(wanted, rel=1e-2)


def test_averages_and_what_was_asked_for_are_remembered(engine: Engine) -> None:
    seen, busy = Seen.start(), observation(arrival_rate=10.0, mean_prompt_len=700.0)
    load = float(engine.load(busy))
    for _ in range(5):
        _, seen = relative(engine, busy, seen)
        seen = acted(seen, ig.ServeAction(prefill_disagg=True, spec_length=4))
    assert float(seen.fast) == pytest.approx(load, rel=1e-5) and float(seen.drafts) == 4
    assert float(seen.second_gpu) == 1 and float(seen.second_gpu_s) == 4
    _, seen = relative(engine, observation(), seen)
    assert float(seen.fast) < load * 14 / 15 + 1e-4 < float(seen.slow) * 1.2


@pytest.mark.slow
def test_without_corrections_it_is_the_controller(problem: ig.Problem, engine: Engine) -> None:
    mine = corrected_policy(network(), PLAN, engine)
    theirs = jax.tree_util.Partial(follow_load, engine, PLAN.as_arrays())
    rolled = [
        ig.rollout(problem.env, problem.params, policy, np.arange(2), length=120).action for policy in (mine, theirs)
    ]
    for a, b in zip(jax.tree.leaves(rolled[0]), jax.tree.leaves(rolled[1]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_the_policy_does_what_training_saw_it_do(problem: ig.Problem, engine: Engine) -> None:
    """The view that trains, stepped with a network's positions, and the policy in the bare environment."""
    own = network(seed=3)
    view = CorrectedControl(problem.env, PLAN, problem.params)
    trained = ig.rollout(view, problem.params, positions_policy(own), np.arange(2), length=90)
    played = ig.rollout(problem.env, problem.params, corrected_policy(own, PLAN, engine), np.arange(2), length=90)
    assert len(np.unique(np.asarray(played.action.spec_length))) > 1
    for name in ("action", "reward"):
        for a, b in zip(jax.tree.leaves(getattr(trained, name)), jax.tree.leaves(getattr(played, name)), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def test_each_correction_moves_its_own_thresholds_the_stated_way() -> None:
    at = {name: corrected_plan(PLAN, jnp.eye(len(CORRECTIONS))[i]) for i, name in enumerate(CORRECTIONS)}
    assert float(at["lease"].up_load) < PLAN.up_load and float(at["release"].down_share) < PLAN.down_share
    assert float(at["drafts"].few) > PLAN.few and float(at["drafts"].many) > PLAN.many
    assert float(at["drafts"].up_load) == pytest.approx(PLAN.up_load) and float(at["lease"].few) == PLAN.few
    assert float(at["lease"].up_waiting) > NEVER / 4  # what is never reached stays so


@pytest.mark.slow
def test_a_file_keeps_the_form_and_says_where_it_can_act(tmp_path: Path, problem: ig.Problem) -> None:
    about = {
        "task": "second-gpu",
        "reads": "relative",
        "acts": "correction",
        "plan": {"up_load": 0.6, "batch_size": 64.0},
    }
    path = tmp_path / "mine.npz"
    save_network(path, network(bias=[0.2, 0, 0]), about)
    kept, metadata = load_network(path)
    assert metadata["plan"] == about["plan"] and list(metadata["observation"]) == list(FIELDS)
    np.testing.assert_array_equal(kept.layers[0][1], network(bias=[0.2, 0, 0]).layers[0][1])
    action = ig.rollout(problem.env, problem.params, playable(kept, metadata, problem), [0], length=3).action
    assert (np.asarray(action.batch_size) == 64).all()
    with pytest.raises(ValueError, match="in units of a GPU and a task"):
        ig.policies.load(path)
    with pytest.raises(ValueError, match="closed-loop"):
        ig.policies.load(path, problem=ig.problem(1))


def test_a_file_of_other_numbers_is_refused(tmp_path: Path) -> None:
    about = {"reads": "relative", "acts": "correction", "plan": {}}
    save_network(tmp_path / "wide.npz", network(outputs=HEAD_SIZE), about)
    with pytest.raises(ValueError, match=f"must be {RELATIVE_SIZE} and {len(CORRECTIONS)}"):
        load_network(tmp_path / "wide.npz")


def test_the_general_policy_acts_where_it_was_never_trained(problem: ig.Problem) -> None:
    runner = ig.policies.PolicyRunner(ig.policies.policy_of("general", problem))
    quiet, busy = (
        observation(arrival_rate=1.0, mean_prompt_len=700.0),
        observation(arrival_rate=40.0, mean_prompt_len=900.0),
    )
    for _ in range(60):
        calm = runner.ask(quiet)
    for _ in range(120):
        action = runner.ask(busy)
    assert not calm.prefill_disagg and action.prefill_disagg  # more than one GPU can do: it leases
    with pytest.raises(ValueError, match="closed-loop"):
        ig.policies.policy_of("general", ig.problem(1))
    with pytest.raises(ValueError, match="drawn for each episode"):
        ig.policies.policy_of("general", ig.problem(8))

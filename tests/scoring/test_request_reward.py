"""The reward of an open-loop second: worked out by hand, and what a quiet second is paid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import MetricsSnapshot, RequestOutcome, WorkloadState
from inferencegym_jax.scoring.reward import request_reward
from inferencegym_jax.tasks import NOT_NORMALISED, make_params


def params_of(**changes):
    task = ig.get_task(4)
    params = make_params(task, ig.load_table(), {**NOT_NORMALISED, "demand_tps": 1000.0, "static_gpus": 2.0})
    return jax.tree.map(jnp.asarray, params.replace(**changes))


def second(ttft, tpot, on_time_tokens, gpus, violated, params, shares=(1.0, 0.0, 0.0)):
    zero = jnp.float32(0)
    metrics = MetricsSnapshot(jnp.float32(ttft), zero, jnp.float32(tpot), zero, zero, zero, zero, zero, zero)
    workload = WorkloadState(zero, zero, zero, zero, jnp.asarray(shares, jnp.float32), zero, zero, zero, zero, zero)
    nobody = jnp.zeros(3)
    outcome = RequestOutcome(
        nobody, nobody, nobody, nobody, nobody, nobody, zero, jnp.float32(on_time_tokens), jnp.float32(gpus), zero + 1
    )
    return float(request_reward(metrics, workload, outcome, jnp.float32(violated), params))


def test_the_reward_is_what_a_hand_computes():
    params = params_of()
    # TTFT at 0.4 of its 500 ms, TPOT at 0.5 of its 50 ms: the worse is 0.5
    assert second(200, 25, 800, 1, 0.25, params) == pytest.approx(0.4 * 0.8 - 0.1 * 0.5 - 0.2 * 0.25 - 0.3 * 0.5)
    assert second(400, 25, 800, 2, 0.0, params) == pytest.approx(0.4 * 0.8 - 0.1 * 0.8 - 0.3 * 1.0)
    assert second(1e6, 25, 0, 1, 1.0, params) == -1.0


def test_classes_without_an_objective_cost_no_latency():
    free = params_of(
        slo_ms=np.asarray([500.0, np.inf, np.inf], np.float32), class_shares=np.asarray([0.0, 0.5, 0.5], np.float32)
    )
    free = free.replace(engine=free.engine.replace(slo_tpot_ms=jnp.asarray([50.0, np.inf, np.inf], jnp.float32)))
    assert second(9e5, 9e5, 1000, 2, 0.0, free, (0.0, 0.5, 0.5)) == pytest.approx(0.4 - 0.3)


def test_a_quiet_second_pays_its_gpus_and_its_latency_and_nothing_else():
    params = params_of()
    assert second(50, 10, 0, 1, 0.0, params) == pytest.approx(-0.1 * 0.2 - 0.3 * 0.5)
    # and what finishes in it is earned as in any other
    earned = second(50, 10, 600, 1, 0.0, params) - second(50, 10, 0, 1, 0.0, params)
    assert earned == pytest.approx(0.4 * 0.6)


@pytest.mark.parametrize("task", (4, 5))
def test_the_step_pays_what_its_own_outcome_and_observation_say(task):
    env, params = ig.make(task)
    t = ig.rollout(env, params, ig.policies.random, np.arange(3))
    paid = jax.vmap(jax.vmap(request_reward, (0, 0, 0, 0, None)), (0, 0, 0, 0, None))(
        t.metrics, t.workload, t.outcome, t.next_observation.slo_violation_rate, params
    )
    np.testing.assert_allclose(paid, t.reward, rtol=1e-5, atol=1e-6)
    lost = np.asarray(t.outcome.late + t.outcome.rejected + t.outcome.failed).sum(-1)
    asked = np.asarray(t.outcome.asked).sum(-1)
    violated = np.clip(lost / np.maximum(asked, 1.0), 0.0, 1.0)
    np.testing.assert_allclose(t.next_observation.slo_violation_rate, violated, rtol=1e-5, atol=1e-6)
    assert (violated == 0).any() and (violated > 0).any()

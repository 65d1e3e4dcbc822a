"""The best static action that costs are measured by: no other one beats it by its own measure."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.scoring.aggregates import EpisodeStatistics
from inferencegym_jax.scoring.grader import score_aggregates
from inferencegym_jax.scoring.static_reference import with_static_reference

BASE = {"optimal_tps": 1.0, "cost_normaliser": 1.0, "throughput_floor": 0.0}


def statistics(goodput, on_time, gpus, seeds=2):
    """Of actions whose every episode is the same, 200 s with 10 requests of 100 tokens a second."""
    shape = (len(goodput), seeds)
    one: dict[str, Any] = {f.name: np.zeros(shape) for f in dataclasses.fields(EpisodeStatistics)}
    columns = {"goodput_share": goodput, "on_time_share": on_time, "gpu_seconds": 200.0 * np.asarray(gpus)}
    one |= {name: np.repeat(np.asarray(values)[:, None], seeds, axis=1) for name, values in columns.items()}
    one |= {"steps": np.full(shape, 200.0), "asked": np.full(shape, 2000.0), "tokens_asked": np.full(shape, 2e5)}
    one |= {"quality": np.ones(shape)}
    return EpisodeStatistics(**one)


@pytest.mark.parametrize(
    ("goodput", "on_time", "gpus", "best"),
    [
        ((0.70, 0.90), (0.70, 0.90), (1, 1), 1),
        ((0.90, 0.93), (0.90, 0.91), (1, 2), 0),  # a second GPU for 1 % more on time is not worth its price
        ((0.50, 0.99), (0.50, 0.99), (1, 2), 1),  # where one GPU loses half of the requests it is
        ((0.50, 0.60, 0.99), (0.50, 0.60, 0.99), (1, 1, 2), 2),
        ((0.90, 0.95), (0.90, 0.95), (1, 2), 1),  # late requests buy no GPUs: 0.05 fewer on time are no saving
    ],
)
def test_the_reference_is_beaten_by_no_other_action(goodput, on_time, gpus, best):
    found = statistics(goodput, on_time, gpus)
    norms, scores = with_static_reference(ig.get_task(4), found, BASE)
    assert int(np.argmax(scores)) == best
    assert (norms["static_gpus"], norms["static_on_time_share"]) == pytest.approx((gpus[best], on_time[best]))
    assert (norms["demand_tps"], norms["demand_rps"]) == pytest.approx((1000.0, 10.0))
    parts = score_aggregates(4, found, norms)
    assert parts["cost"][best] == pytest.approx(0.5)
    np.testing.assert_allclose(parts["score"].mean(axis=1), scores)


def test_closed_loop_statistics_keep_their_normalisers():
    found = statistics((0.0, 0.0), (0.0, 0.0), (0, 0))
    found = dataclasses.replace(found, mean_tps=np.array([[0.2, 0.2], [0.6, 0.4]]))
    norms, scores = with_static_reference(ig.get_task(1), found, BASE)
    assert norms == BASE and scores == pytest.approx([0.2, 0.5])


@pytest.mark.ci
@pytest.mark.parametrize("task", (4, pytest.param(5, marks=pytest.mark.slow)))
def test_the_shipped_reference_is_the_best_static_actions_own(task):
    entry = ig.problem(task)
    env, params, norms = entry.env, entry.params, entry.normalisers
    found = ig.evaluate(env, params, ig.policies.static(entry.best_static), np.arange(64))
    assert np.mean(found.gpu_seconds) / 200 == pytest.approx(norms["static_gpus"], rel=1e-4)
    assert np.mean(found.on_time_share) == pytest.approx(norms["static_on_time_share"], rel=1e-4)
    assert np.mean(found.asked) / 200 == pytest.approx(norms["demand_rps"], rel=1e-4)
    assert np.mean(found.tokens_asked) / 200 == pytest.approx(norms["demand_tps"], rel=1e-4)

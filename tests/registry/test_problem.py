"""``problem``: a task on a table and a traffic, with what its rewards and scores are measured by."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.registry import problems
from inferencegym_jax.tasks import NOT_NORMALISED, calibration


@pytest.mark.parametrize("task", [spec.id for spec in ig.task_specs().values()])
def test_the_shipped_tables_problem_is_that_of_the_calibration(task: int) -> None:
    problem, entry = ig.problem(task), calibration()["tasks"][ig.get_task(task).name]
    env, params = ig.make(task)
    assert problem.env == env and problem.spec is ig.get_task(task)
    for a, b in zip(*map(jax.tree.leaves, (problem.params, params)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {name: entry[name] for name in problem.normalisers} == problem.normalisers
    assert problem.best_static.to_dict() == entry["best_static"]["action"]
    assert (problem.trace, problem.dynamics, problem.config) == (None, problem.spec.dynamics, {})


@pytest.mark.slow
def test_other_dynamics_and_a_config_are_kept_and_change_what_they_should() -> None:
    plain, opened = ig.problem(2), ig.problem(2, dynamics="open_loop", config={"gamma": 2, "slo_ttft_ms": 150})
    assert (plain.dynamics, opened.dynamics) == ("closed_loop", "open_loop")
    assert opened.config == {"gamma": 2.0, "slo_ttft_ms": 150.0} and float(opened.params.gamma) == 2.0
    assert opened.normalisers["optimal_tps"] != plain.normalisers["optimal_tps"]
    assert float(opened.params.optimal_tps) == np.float32(opened.normalisers["optimal_tps"])
    assert opened.best_static.batch_size in opened.table.axes["batch_size"]


@pytest.mark.slow
def test_its_score_is_the_graders_with_its_own_normalisers() -> None:
    problem = ig.problem(2, dynamics="open_loop")
    played = ig.evaluate(problem.env, problem.params, ig.policies.baseline, np.arange(4))
    own = ig.grader.score_aggregates(2, played, problem.normalisers)["score"]
    np.testing.assert_array_equal(problem.score(played), own)


def test_a_table_with_another_engine_is_searched_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ig.load_table().engine
    assert engine is not None
    other = dataclasses.replace(ig.load_table(), engine=dataclasses.replace(engine, memory_gb=engine.memory_gb / 2))
    assert other.digest == ig.load_table().digest and other != ig.load_table()
    entry = NOT_NORMALISED | {"optimal_tps": 4321.0, "throughput_floor": 0.0}
    monkeypatch.setattr(problems, "search", lambda *_: entry)
    assert ig.problem(4, table=other).normalisers == entry
    assert ig.problem(4).normalisers != entry


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        (99, {}, "task = 99: no such task"),
        (1, {"dynamics": "steady"}, "dynamics = 'steady': must be one of closed_loop, open_loop"),
        (1, {"dynamics": ""}, "dynamics = ''"),
        (4, {"dynamics": "closed_loop"}, "fitted to a log, is served open_loop only"),
        (1, {"config": {"alpha": -1}}, "alpha = -1"),
    ],
)
def test_what_cannot_be_made_is_named(task: int, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ig.problem(task, **options)  # type: ignore[arg-type]

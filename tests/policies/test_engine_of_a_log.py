"""What a controller is told of a GPU and a replayed log: the work of the log's own requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.physics.capacity import work_ms
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.policies.engine_units import engine_of

LOG = Path(__file__).resolve().parents[2] / "data" / "example_requests.csv"


@pytest.mark.slow
def test_the_engine_of_a_log_is_told_its_prompts() -> None:
    problem = ig.problem(4, trace=LOG)
    log = problem.trace
    assert log is not None and float(problem.params.engine.prompt_mean) == pytest.approx(log.mean_prompt)
    engine = engine_of(problem.table, problem.params)
    wanted = work_ms(iterations_of(problem.table), problem.params.engine, log.mean_prompt, log.mean_output)
    told = float(engine.work_base_ms) + float(engine.work_token_ms) * log.mean_prompt
    assert told == pytest.approx(float(np.asarray(wanted)), rel=0.05)

"""A second GPU that takes the prompts: asked for where the prompts of a second stall those that decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import OBSERVATION, ServeObservation
from inferencegym_jax.physics.capacity import work_ms
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.policies.engine_units import Engine, engine_of
from inferencegym_jax.policies.prefill_lease import KEPT_S, Stalls, prefill_lease, stall

LOG = Path(__file__).resolve().parents[2] / "data" / "example_requests.csv"


@pytest.fixture(scope="module")
def engine() -> Engine:
    problem = ig.problem(4)
    return engine_of(problem.table, problem.params)


def observed(**values: float) -> ServeObservation:
    fields: dict[str, Any] = {name: np.float32(field.low) for name, field in OBSERVATION.items()}
    fields["priority_distribution"] = np.asarray([1.0, 0.0, 0.0], np.float32)
    return ServeObservation(**{**fields, **{name: np.float32(value) for name, value in values.items()}})


def block_of(engine: Engine, share: float, prompt: float = 2000.0) -> ServeObservation:
    """A second whose prompts add a share of what the objective leaves to each of a request's tokens."""
    left = float(engine.slo_tpot_ms[0]) - float(engine.tpot_ms[0])
    prompts = share * left * (float(engine.output) - 1.0) / (float(engine.work_token_ms) * prompt)
    return observed(arrival_rate=prompts, mean_prompt_len=prompt)


def changed(engine: Engine, **values: Any) -> Engine:
    return Engine(**{**vars(engine), **values})


def test_a_stall_is_the_prompts_time_over_what_the_objective_leaves(engine: Engine) -> None:
    assert float(stall(engine, block_of(engine, 0.7))) == pytest.approx(0.7, rel=1e-4)
    assert float(stall(engine, observed())) == 0.0
    short = changed(engine, output=np.float32((float(engine.output) - 1.0) / 2.0 + 1.0))
    assert float(stall(short, block_of(engine, 0.7))) == pytest.approx(1.4, rel=1e-4)  # half the tokens, twice the time
    hopeless = changed(engine, slo_tpot_ms=np.full(3, 1.0, np.float32))
    assert float(stall(hopeless, block_of(engine, 9.0))) == 0.0
    single = changed(engine, output=np.float32(1.0))
    assert 1.0 < float(stall(single, block_of(engine, 0.7))) < np.inf


def test_it_is_asked_for_at_a_stall_and_kept_while_they_come_back(engine: Engine) -> None:
    quiet, blocked = block_of(engine, 0.99), block_of(engine, 1.01)
    stalls, asked = Stalls.start(), []
    for second in [quiet, quiet, blocked, *[quiet] * 60, blocked, *[quiet] * int(KEPT_S + 5)]:
        wanted, stalls = prefill_lease(engine, second, stalls)
        asked.append(bool(wanted))
    assert asked[:3] == [False, False, True] and asked[2 : 63 + int(KEPT_S)] == [True] * (61 + int(KEPT_S))
    assert asked[-5:] == [False] * 5


def test_it_is_not_asked_for_where_the_second_gpu_is_a_replica_or_locked(engine: Engine) -> None:
    assert float(engine.may_prefill) == 1.0 and float(engine.may_lease) == 0.0
    replica = ig.problem(7)
    own = engine_of(replica.table, replica.params)
    assert float(own.may_prefill) == 0.0 and float(own.may_lease) == 1.0
    assert not prefill_lease(own, block_of(own, 5.0), Stalls.start())[0]
    locked = ig.problem(6)
    assert float(engine_of(locked.table, locked.params).may_prefill) == 0.0


def test_the_engine_of_a_log_is_told_its_prompts() -> None:
    problem = ig.problem(4, trace=LOG)
    log = problem.trace
    assert log is not None and float(problem.params.engine.prompt_mean) == pytest.approx(log.mean_prompt)
    engine = engine_of(problem.table, problem.params)
    wanted = work_ms(iterations_of(problem.table), problem.params.engine, log.mean_prompt, log.mean_output)
    assert float(engine.work(observed(mean_prompt_len=log.mean_prompt))) == pytest.approx(float(wanted), rel=0.05)

"""Knobs left out of an action take the baseline's value on every path alike, on a table that lacks it too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.gymnasium_env import InferenceGymEnv
from inferencegym_jax.registry import problems
from inferencegym_jax.table.latency_table import DISCRETE, KEYS
from inferencegym_jax.tasks import known_calibration
from inferencegym_jax.verification import resimulate

GIVEN = {"batch_size": 64}


@pytest.fixture(scope="module")
def fewer_drafts() -> ig.LatencyTable:
    """The shipped table without its rows of 0 and 1 drafts: the baseline's value there is 2."""
    shipped = ig.load_table()
    kept = [i for i, node in enumerate(shipped.axes["spec_length"]) if node >= 2]
    axes = {**shipped.axes, "spec_length": tuple(shipped.axes["spec_length"][i] for i in kept)}
    assert KEYS[0] == DISCRETE[0] == "spec_length"
    return ig.LatencyTable(axes, np.ascontiguousarray(shipped.values[kept]), shipped.metadata, "fewer", shipped.engine)


@pytest.mark.ci
@pytest.mark.parametrize("usual", [True, False])
def test_on_every_path(usual: bool, fewer_drafts: ig.LatencyTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_calibration", lambda *_: known_calibration(ig.get_task(2)))
    table = None if usual else fewer_drafts
    env, params = ig.make(2, table=table)
    whole = {**env.table.knob_defaults, **GIVEN}
    assert whole["spec_length"] == (0 if usual else 2)
    step = ig.SingleStep(env, params)
    start = step.reset(5).state
    expected = step.step(start, step.pack_action(ig.ServeAction(**whole)))
    partial = step.step(start, step.pack_action(GIVEN))
    assert partial == expected and partial.action == whole
    single = InferenceGymEnv(2, table=table)
    single.reset(seed=5)
    assert single.step(GIVEN)[1] == expected.reward
    entry: Any = resimulate(2, 5, None, [GIVEN], table)[0]
    assert entry["action"] == whole and entry["reward"] == pytest.approx(expected.reward, abs=1e-5)
    assert env.action_of(GIVEN) == ig.ServeAction(**whole)
    with pytest.raises(ValueError, match="knob 'batch' is unknown"):
        env.action_of({"batch": 1})

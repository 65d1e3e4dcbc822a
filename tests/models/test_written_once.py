"""What is written once: the dataclasses name the knobs and fields that the tables of their room describe, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, METRICS, OBSERVATION, REWARD_WEIGHTS, WORKLOAD, Quantity, check_action


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (ig.ServeAction, KNOBS),
        (ig.ServeObservation, OBSERVATION),
        (ig.MetricsSnapshot, METRICS),
        (ig.WorkloadState, WORKLOAD),
    ],
)
def test_a_pytree_has_the_fields_of_its_table_in_order(kind: type, table: Mapping[str, Any]) -> None:
    assert [field.name for field in dataclasses.fields(kind)] == list(table)


def test_every_knob_is_described_and_its_default_allowed() -> None:
    check_action(ig.ServeAction())
    for name, knob in KNOBS.items():
        assert knob.kind in ("float", "int", "choice", "bool") and knob.scale in ("linear", "log"), name
        assert knob.description and knob.title, name
        assert not knob.labels or len(knob.labels) == len(knob.options), name
        for value in knob.options:
            check_action(ig.ServeAction(**{name: value}))
            assert knob.title in knob.text(value)


def test_what_a_step_reports_has_the_kind_and_size_that_is_said_of_it() -> None:
    env, params = ig.make(3)
    _, state = env.reset_seed(1, params)
    observation, *_, info = env.step(None, state, ig.ServeAction(), params)
    dtypes = {"float": np.float32, "int": np.int32, "bool": np.bool_}
    reported: list[tuple[Any, Mapping[str, Quantity]]] = [
        (observation, OBSERVATION),
        (info["metrics"], METRICS),
        (info["workload"], WORKLOAD),
    ]
    for tree, table in reported:
        for name, quantity in table.items():
            value = np.asarray(getattr(tree, name))
            assert value.dtype == dtypes[quantity.kind], name
            assert value.shape == (() if quantity.size == 1 else (quantity.size,)), name


def test_actions_become_arrays_and_python_numbers_by_their_kind() -> None:
    action = ig.ServeAction(kv_budget=0.3, batch_size=64, prefill_disagg=True)
    arrays = action.as_arrays()
    assert [np.asarray(getattr(arrays, name)).dtype for name in KNOBS] == [knob.dtype for knob in KNOBS.values()]
    assert arrays.to_dict() == action.to_dict() == {**ig.ServeAction().to_dict(), **vars(action)}
    assert [type(value) for value in action.to_dict().values()] == [float, int, int, bool, int]


def test_every_weight_of_the_reward_is_a_param() -> None:
    params = ig.make(1)[1]
    assert [float(getattr(params, key)) for key in REWARD_WEIGHTS] == pytest.approx(
        list(ig.get_task(1).reward.values())
    )

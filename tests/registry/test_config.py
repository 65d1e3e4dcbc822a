"""Tasks and the overrides of a reset: what is allowed, and what a wrong one is told."""

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.tasks import CONFIG_KEYS


def test_ids_and_names_make_the_same_task():
    for spec in ig.task_specs().values():
        by_id, by_name = ig.make(spec.id)[1], ig.make(spec.name)[1]
        for a, b in zip(*map(jax.tree.leaves, (by_id, by_name)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("task", [0, 99, "nope", None, True, 1.5, -1])
def test_an_unknown_task_lists_the_known(task):
    with pytest.raises(ValueError, match=r"no such task.*static-uniform.*bursty-sharegpt.*adversarial-multi-tenant"):
        ig.make(task)


def test_config_changes_weights_and_slo():
    _, params = ig.make(3, config={"alpha": 1, "beta": 0.0, "gamma": 2.5, "delta": 0.5, "slo_ttft_ms": 150})
    assert (params.alpha, params.beta, params.gamma, params.delta) == (1, 0, 2.5, 0.5)
    np.testing.assert_array_equal(params.slo_ms, np.array([150, 2000, np.inf], np.float32))


@pytest.mark.parametrize("key", CONFIG_KEYS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, "0.5", None, True, [1.0], 10**400])
def test_a_bad_value_names_key_value_and_what_is_allowed(key, value):
    with pytest.raises(ValueError, match=rf"config {key} = .*must be a finite number"):
        ig.make(1, config={key: value})


def test_a_zero_slo_is_refused_and_a_zero_weight_is_not():
    with pytest.raises(ValueError, match="slo_ttft_ms = 0"):
        ig.make(1, config={"slo_ttft_ms": 0})
    with pytest.raises(ValueError, match="slo_tpot_ms = 0"):
        ig.make(4, config={"slo_tpot_ms": 0})
    with pytest.raises(ValueError, match="task 1 has no objective on TPOT"):
        ig.make(1, config={"slo_tpot_ms": 50})
    assert ig.make(1, config={"alpha": 0})[1].alpha == 0


def test_an_unknown_key_lists_the_known():
    with pytest.raises(ValueError, match="'alhpa' is unknown; allowed are alpha, beta, gamma, delta, slo_ttft_ms"):
        ig.make(1, config={"alhpa": 1.0})
    with pytest.raises(TypeError, match="must be a mapping"):
        ig.make(1, config=[("alpha", 1.0)])  # type: ignore[arg-type]

"""An engine that cannot serve is refused before its first step, in a sentence that says what would do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS
from inferencegym_jax.physics.engine_checks import ALLOWED, SWITCHING
from inferencegym_jax.table import EngineProfile, TableError, profile_of

NAN, INF = float("nan"), float("inf")


def with_engine(**changes):
    env, params = ig.make(4)
    values = {k: np.asarray(v, np.asarray(getattr(params.engine, k)).dtype) for k, v in changes.items()}
    return env, params.replace(engine=params.engine.replace(**values))


@pytest.mark.parametrize("name", SWITCHING)
@pytest.mark.parametrize("value", [-1.0, NAN, INF])
def test_a_switching_time_is_finite_and_not_negative(name, value):
    env, params = with_engine(**{name: value})
    _, state = env.reset_seed(0, params)
    with pytest.raises(ValueError, match=rf"engine {name} = {value!r}: must be a finite number of at least 0, in sec"):
        env.step(None, state, ig.ServeAction(), params)
    with pytest.raises(ValueError, match=name):
        ig.rollout(env, params, ig.policies.baseline, np.arange(2), length=2)
    with pytest.raises(ValueError, match=name):
        env.suited_to(ig.stack_params([ig.make(4)[1], params]))
    assert env.suited_to(with_engine(**{name: 0.0})[1]).dynamics == "open_loop"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("second_gpu", 2),
        ("prefix_share", 1.5),
        ("link_gb_s", 0.0),
        ("token_budget", 0.0),
        ("token_budget", 8193.0),  # past the lookups, where more tokens would cost nothing
        ("prompt_cv", NAN),
        ("output_cv", -0.1),
        ("arrival_scv", INF),
        ("length_correlation", -1.5),
        ("overhead_ms", NAN),
        ("draft_share", -1.0),
        ("queue_capacity", -1),
        ("slo_tpot_ms", [0.0, 50.0, 50.0]),
    ],
)
def test_every_number_of_the_engine_has_its_range(name, value):
    env, params = with_engine(**{name: value})
    with pytest.raises(ValueError, match=rf"engine {name} = .*: must be "):
        env.suited_to(params)
    assert name in ALLOWED


def test_weights_that_do_not_fit_are_refused_and_what_would_fit_is_said():
    profile = profile_of(ig.load_table())
    env, params = with_engine(memory_gb=12.0)
    least = profile.weights_gb[0] + profile.runtime_gb
    with pytest.raises(TableError, match=rf"memory_gb = 12: the FP16 weights .* must be above {least:g}"):
        ig.rollout(env, params, ig.policies.baseline, np.arange(2), length=2)
    # where the agent may choose the format, all of them have to fit
    chooses = params.replace(active=np.ones(len(KNOBS), bool))
    with pytest.raises(TableError, match="lock quant_tier at a format that fits: INT8, INT4"):
        env.suited_to(with_memory(chooses, 12.0))
    assert env.suited_to(with_memory(params, least + 1)).dynamics == "open_loop"
    with pytest.raises(TableError, match="memory_gb = nan"):
        env.suited_to(with_memory(params, NAN))


def with_memory(params, memory_gb):
    return params.replace(engine=params.engine.replace(memory_gb=np.float32(memory_gb)))


def test_acceptance_lengths_that_fall_are_refused_in_a_task_and_in_a_table():
    env, params = with_engine(acceptance_lengths=[1.0, 1.8, 1.7, 2.4, 2.9])
    with pytest.raises(ValueError, match=r"acceptance_lengths\[2\] = 1.7 \(2 drafts\): must be from 1.8 .* to 3"):
        env.suited_to(params)
    with pytest.raises(ValueError, match=r"acceptance_lengths\[1\] = 2.5 \(1 drafts\): must be from 1 .* to 2"):
        env.suited_to(with_engine(acceptance_lengths=[1.0, 2.5, 2.6, 2.7, 2.9])[1])
    table = ig.load_table()
    content = profile_of(table).to_dict()
    content["acceptance_lengths"] = {"chat": [1, 1.8, 1.7, 2.4, 2.9]}
    with pytest.raises(TableError, match=r"acceptance_lengths.chat\[2\] = 1.7: must be from 1.8"):
        EngineProfile.from_dict(content)


def test_a_table_without_the_metadata_of_the_pool_names_what_to_add():
    table = ig.load_table()
    bare = dataclasses.replace(table, engine=None, metadata={"reference_output_length": "128"}, name="bare")
    with pytest.raises(TableError, match="memory_gb") as found:
        ig.make(4, table=bare)
    for field in ("memory_gb", "weights_gb", "kv_bytes_per_token"):
        assert field in str(found.value)


def test_traced_params_are_not_inspected():
    env, params = ig.make(4)

    @jax.jit
    def first(memory_gb):
        own = params.replace(engine=params.engine.replace(memory_gb=memory_gb))
        return env.step_env(None, env.reset_seed(0, own)[1], ig.ServeAction().as_arrays(), own)[4]["metrics"].tpot_ms

    assert np.isfinite(first(jnp.float32(60.0)))

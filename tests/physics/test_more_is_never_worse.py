"""What must hold of any engine: more memory makes nobody wait longer, more GPUs serve no fewer, tokens are
conserved, and no pool is overfull."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, REPLICA, EngineParams, EngineState
from inferencegym_jax.physics.inflow import Arrivals
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.serving import serve_second
from inferencegym_jax.table import profile_of
from inferencegym_jax.tasks import engine_params
from tests.reference.iteration import load_profile
from tests.reference.serving import serve
from tests.reference.settings import Settings
from tests.reference.traffic import requests_at

SECONDS, QUIET = 120, 240  # with requests, and without, until the last has left
VARIANTS = 4
WIDE = 1e6  # ms
TOLERANCE = 0.01  # who is admitted earlier slows the others for a moment
GPU_GB = np.array([22.0, 30.0, 45.0, 80.0], np.float32)

TRAFFIC = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "rate": st.floats(0.3, 14.0),
        "prompt": st.floats(40.0, 4000.0),
        "output": st.floats(8.0, 500.0),
        "burst": st.floats(1.0, 3.0),
    }
)
KNOBS_OF = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 512),
        "kv_budget": st.floats(0.1, 1.0),
        "spec_length": st.sampled_from(KNOBS["spec_length"].choices),
    }
)


def arrivals(traffic):
    """[seconds] of counts, mean prompts and outputs: a burst in the middle third, then silence."""
    random = np.random.default_rng(traffic["seed"])
    rate = np.full(SECONDS, traffic["rate"])
    rate[SECONDS // 3 : 2 * SECONDS // 3] *= traffic["burst"]
    count = np.concatenate([random.poisson(rate), np.zeros(QUIET)]).astype(np.float32)
    spread = np.exp(random.normal(0, 0.2, (2, SECONDS + QUIET))).astype(np.float32)
    prompt, output = (np.float32(traffic[name]) * spread[i] for i, name in enumerate(("prompt", "output")))
    return count, prompt, np.maximum(output, 2.0)


def base_params():
    return engine_params(ig.get_task(4), ig.load_table(), "open_loop").replace(
        second_gpu=np.int32(REPLICA), slo_tpot_ms=np.full(3, np.inf, np.float32), queue_capacity=np.int32(10**6)
    )


@functools.cache
def program():
    grid = iterations_of(ig.load_table())

    @jax.jit
    def play(columns, actions, params, slo_ttft_ms):
        def one(action, own, objective):
            def body(engine, x):
                count, prompt, output, first = x
                second, after = serve_second(
                    grid,
                    engine,
                    action,
                    Arrivals(count, prompt, output),
                    first,
                    jnp.array([1.0, 0.0, 0.0]),
                    jnp.full(3, objective),
                    own,
                )
                return after, (second, after.waiting)

            first = jnp.arange(columns[0].shape[0]) == 0
            return jax.lax.scan(body, EngineState.empty(), (*columns, first))[1]

        return jax.vmap(one)(actions, params, slo_ttft_ms)

    return play


def play(traffic, knobs, changes=None, second_gpu=(False,) * VARIANTS, objective=(WIDE,) * VARIANTS):
    """The seconds of ``VARIANTS`` engines with the same traffic, [variants, seconds, ...], float64."""
    each = base_params()
    rows: list[EngineParams] = []
    for i in range(VARIANTS):
        values = {name: np.broadcast_to(value, (VARIANTS,))[i] for name, value in (changes or {}).items()}
        rows.append(each.replace(**{k: np.asarray(v, np.asarray(getattr(each, k)).dtype) for k, v in values.items()}))
    params = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *rows)
    actions = [ig.ServeAction(**knobs, prefill_disagg=bool(second)) for second in second_gpu]
    action = jax.tree.map(lambda *x: jnp.stack(x), *(a.as_arrays() for a in actions))
    found = program()(arrivals(traffic), action, params, np.asarray(objective, np.float32))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def on_time(outcome):
    """Requests on time, [variants]."""
    return outcome.on_time.sum(axis=(1, 2))


@settings(max_examples=15, deadline=None)
@given(
    traffic=TRAFFIC, batch_size=st.integers(1, 128), kv_budget=st.floats(0.1, 1.0), objective=st.floats(150.0, 5000.0)
)
def test_more_memory_never_makes_anybody_wait_longer(traffic, batch_size, kv_budget, objective):
    knobs = {"batch_size": batch_size, "kv_budget": kv_budget, "spec_length": 0}
    seconds, waiting = play(traffic, knobs, {"memory_gb": GPU_GB}, objective=(objective,) * VARIANTS)
    waited = waiting.sum(axis=(1, 2))  # request-seconds
    assert (np.diff(waited) <= 1e-3 * waited[:-1] + 1.0).all(), waited
    asked = max(seconds.outcome.asked[0].sum(), 1.0)
    good = on_time(seconds.outcome)
    assert (np.diff(good) >= -2 * TOLERANCE * asked).all(), good / asked


@pytest.mark.slow
def test_preemptions_are_no_measure_of_worse_for_they_rise_with_memory_in_the_reference_too():
    """A larger pool holds more requests that can be preempted; nobody waits longer for it."""
    traffic = {"seed": 2869, "rate": 4.5, "prompt": 2500.0, "output": 300.0, "burst": 1.7}
    count, prompt, output = arrivals(traffic)
    random = np.random.default_rng(1)
    at = np.concatenate([np.sort(second + random.uniform(0, 1, int(n))) for second, n in enumerate(count)])
    of_second = np.repeat(np.arange(len(count)), count.astype(int))
    requests = requests_at(1000 * at, np.maximum(prompt[of_second].round(), 1), output[of_second].round())
    settings = [Settings(memory_gb=memory_gb, batch_size=45) for memory_gb in (22.0, 24.0, 27.0)]
    served = [serve(requests, one, load_profile()) for one in settings]
    waited = [float(np.sum(result.ttft_ms)) for result in served]
    assert waited == sorted(waited, reverse=True)
    preempted = [int(result.preemptions.sum()) for result in served]
    assert preempted != sorted(preempted, reverse=True)


@settings(max_examples=15, deadline=None)
@given(traffic=TRAFFIC, knobs=KNOBS_OF, objective=st.floats(150.0, 5000.0))
def test_a_second_gpu_never_serves_fewer(traffic, knobs, objective):
    both = (False, True, False, True)
    objectives = (objective, objective, WIDE, WIDE)
    second, _ = play(traffic, knobs, second_gpu=both, objective=objectives)
    tokens, outcome = second.tokens, second.outcome
    asked = max(outcome.asked[0].sum(), 1.0)
    good = on_time(outcome)
    assert good[1] >= good[0] - TOLERANCE * asked and good[3] >= good[2] - TOLERANCE * asked, good / asked
    made = tokens[:, :SECONDS].sum(axis=1)
    assert made[1] >= made[0] * (1 - TOLERANCE)


@settings(max_examples=15, deadline=None)
@given(traffic=TRAFFIC, knobs=KNOBS_OF)
def test_tokens_are_conserved_and_the_pool_is_never_overfull(traffic, knobs):
    second, waiting = play(traffic, knobs, {"memory_gb": GPU_GB})
    outcome, held = second.outcome, second.flow.held
    profile = profile_of(ig.load_table())
    pool = np.array([profile.pool_tokens(0, float(memory)) for memory in GPU_GB])
    assert (held <= pool[:, None] * (1 + 1e-5)).all() and (held >= 0).all()
    asked = outcome.tokens_asked.sum(axis=1)
    gone = waiting[:, -1].sum(axis=-1) + sum(phase[:, -1] for phase in second.flow.phases) < 1e-2
    made = second.tokens.sum(axis=1)
    for i in np.flatnonzero(gone):
        np.testing.assert_allclose(made[i], asked[i], rtol=0.02)
        np.testing.assert_allclose(second.completed[i].sum(), outcome.asked[i].sum(), rtol=1e-3)

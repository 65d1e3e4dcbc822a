"""The open loop: Little's law, nobody made or lost, never more than was asked for, and the closed loop left alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.episodes.static_search import follow
from inferencegym_jax.models import KNOBS, EngineParams, EngineState, plain
from inferencegym_jax.physics.first_token import met
from inferencegym_jax.physics.fluid import serve_second
from inferencegym_jax.table.iterations import engine_grid
from inferencegym_jax.tasks import make_params

ONE = jnp.float32(1.0)
STEPS = 60


@functools.cache
def seconds():
    """Play constant traffic: (per-second results, engines) of STEPS seconds, one compilation for all cases."""
    grid = engine_grid(ig.load_table())

    @jax.jit
    def play(action, arrivals, prompt, output, params):
        def body(engine, a):
            second, engine = serve_second(grid, engine, action, a, prompt, output, ONE, ONE, jnp.float32(40.0), params)
            return engine, (second, engine)

        return jax.lax.scan(body, jax.tree.map(jnp.float32, EngineState()), arrivals)[1]

    return play


def engine_params(overhead=2.0, **changes):
    return jax.tree.map(jnp.float32, EngineParams(open_loop=1, overhead_ms=overhead, **changes))


def constant(rate):
    return jnp.full((STEPS,), rate, jnp.float32)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(0.5, 8.0),
    prompt=st.floats(64, 1024),
    output=st.floats(16, 300),
    overhead=st.floats(0, 5),
    kv=st.floats(0.1, 1.0),
)
def test_steady_state_obeys_littles_law_and_the_closed_form(rate, prompt, output, overhead, kv):
    action = ig.ServeAction(batch_size=512, kv_budget=kv).as_arrays()
    second, engine = seconds()(
        action, constant(rate), jnp.float32(prompt), jnp.float32(output), engine_params(overhead)
    )
    running = np.asarray(engine.concurrency)
    if abs(running[-1] / running[-10] - 1) > 1e-4 or engine.waiting[-1] > 0:
        return  # not settled in a minute, or over capacity
    assert running[-1] == pytest.approx(rate * output * float(second.tpot_ms[-1]) / 1000, rel=2e-3)
    assert float(second.tokens[-1]) == pytest.approx(rate * output, rel=2e-3)


@pytest.mark.parametrize(("rate", "batch"), [(4.0, 512), (12.0, 512), (30.0, 512)])
def test_steady_state_is_the_tables_tpot_at_the_running_batch(rate, batch):
    table = ig.load_table()
    grid = ig.Environment(table, ig.make(1)[1]).grid
    prompt, output, overhead = 96.0, table.output_length, 2.0
    second, engine = seconds()(
        ig.ServeAction(batch_size=batch).as_arrays(), constant(rate), jnp.float32(prompt), jnp.float32(output),
        engine_params(overhead),
    )  # fmt: skip
    n = float(engine.concurrency[-1])
    below, above = (
        float(grid.lookup(ig.ServeAction(batch_size=int(b)).as_arrays(), jnp.float32(prompt))["tpot_ms"])
        for b in (np.floor(n), np.floor(n) + 1)
    )
    tpot = below + (n - np.floor(n)) * (above - below)
    assert float(second.tpot_ms[-1]) == pytest.approx(tpot + overhead, rel=2e-3)
    assert n == pytest.approx(rate * output * float(second.tpot_ms[-1]) / 1000, rel=2e-3)


@settings(max_examples=40, deadline=None)
@given(
    arrivals=st.lists(st.integers(0, 60), min_size=STEPS, max_size=STEPS),
    prompt=st.floats(32, 8192),
    output=st.floats(1, 600),
    batch=st.integers(1, 512),
    disagg=st.booleans(),
)
def test_throughput_never_exceeds_demand_and_limits_hold(arrivals, prompt, output, batch, disagg):
    action = ig.ServeAction(batch_size=batch, prefill_disagg=disagg).as_arrays()
    second, engine = seconds()(
        action, jnp.asarray(arrivals, jnp.float32), jnp.float32(prompt), jnp.float32(output), engine_params()
    )
    served, asked = np.cumsum(np.asarray(second.tokens, np.float64)), np.cumsum(arrivals) * output
    assert (served <= asked * (1 + 1e-4) + 0.1).all()
    owed = (np.asarray(engine.waiting) * np.asarray(engine.waiting_output)) + np.asarray(engine.owed)
    np.testing.assert_allclose(served + owed, asked, rtol=2e-3, atol=1.0)
    assert (np.asarray(engine.concurrency) <= batch * (1 + 1e-5)).all()
    assert (
        (np.asarray(second.memory_gb) <= 40.0 * 1.01).all() or batch == 1 or np.asarray(engine.concurrency).max() <= 1.1
    )
    for leaf in jax.tree.leaves((second, engine)):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()
    assert (second.ttft_p99_ms >= second.ttft_p50_ms - 1e-3).all()


def test_a_slower_engine_keeps_more_requests_and_answers_later():
    action = ig.ServeAction(batch_size=256).as_arrays()
    play = seconds()
    fast, slow = (play(action, constant(6.0), jnp.float32(512), jnp.float32(128), engine_params(c)) for c in (0.0, 5.0))
    assert slow[1].concurrency[-1] > fast[1].concurrency[-1]
    assert slow[0].ttft_p50_ms[-1] > fast[0].ttft_p50_ms[-1]
    assert slow[0].tokens[-1] == pytest.approx(float(fast[0].tokens[-1]), rel=1e-3)


def test_an_overloaded_engine_serves_its_capacity_and_the_queue_takes_the_rest():
    action = ig.ServeAction(batch_size=16).as_arrays()
    second, engine = seconds()(action, constant(40.0), jnp.float32(96), jnp.float32(128), engine_params())
    assert float(engine.concurrency[-1]) == pytest.approx(16, rel=1e-3)
    growth = float(engine.waiting[-1] - engine.waiting[-2])
    assert growth == pytest.approx(40 - float(second.tokens[-1]) / 128, rel=1e-2)
    expected = 1000 * float(engine.waiting[-1]) / (float(second.tokens[-1]) / 128)
    assert float(second.ttft_mean_ms[-1]) == pytest.approx(expected, rel=0.05)


ACTIONS = st.builds(
    lambda kv, spec, batch, disagg, quant: ig.ServeAction(kv, spec, batch, disagg, quant),
    st.floats(0.1, 1.0),
    st.sampled_from(KNOBS["spec_length"].choices),
    st.integers(1, 512),
    st.booleans(),
    st.sampled_from(KNOBS["quant_tier"].choices),
)


def open_params(task):
    """Params of any task under open-loop dynamics, without the search for normalisers."""
    return make_params(
        ig.get_task(task), ig.load_table(), {"optimal_tps": 1.0, "cost_normaliser": 1.0}, None, "open_loop"
    )


@functools.cache
def player():
    env, _ = ig.make(1)

    @jax.jit
    def play(seed, actions, params):
        def body(state, action):
            _, state, _, _, info = env.step_env(None, state, action, params)
            return state, (info["workload"], info["oom"])

        _, state = env.reset_seed(seed, params)
        return jax.lax.scan(body, state, actions)[1]

    return play


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    task=st.sampled_from([1, 2, 3, 4, 5]),
    actions=st.lists(ACTIONS, min_size=8, max_size=8),
)
def test_every_request_is_accounted_for(seed, task, actions):
    params = open_params(task).replace(active=np.ones(5, bool))
    columns = {name: np.repeat([getattr(a, name) for a in actions], 25) for name in KNOBS}
    traffic, _ = player()(jnp.uint32(seed), ig.ServeAction(**columns).as_arrays(), params)
    arrived, finished, rejected, waiting, running = (
        np.asarray(x, np.int64)
        for x in (traffic.arrivals, traffic.served, traffic.rejected, traffic.queue_depth, traffic.running)
    )
    assert min(x.min() for x in (arrived, finished, rejected, waiting, running)) >= 0
    np.testing.assert_array_equal(np.cumsum(arrived), np.cumsum(finished + rejected) + waiting + running)
    assert waiting.max() <= 512


def test_raising_the_kv_budget_under_a_full_engine_runs_out_of_memory_and_loses_the_running():
    _, params = ig.make(5)
    columns = {name: np.repeat(knob.default, 200) for name, knob in KNOBS.items()}
    columns["batch_size"] = np.full(200, 512)
    columns["kv_budget"] = np.where(np.arange(200) < 100, 0.1, 1.0)
    params = params.replace(engine=params.engine.replace(rate=np.float32(8.0)))
    traffic, oom = player()(jnp.uint32(0), ig.ServeAction(**columns).as_arrays(), params)
    assert not oom[:100].any() and oom[100]
    assert traffic.running[99] > 20 and traffic.running[100] == 0
    assert traffic.rejected[100] >= traffic.running[99] and traffic.served[100] == 0


def test_a_mixed_batch_gives_each_task_the_trajectory_it_has_alone():
    env, _ = ig.make(1)
    tasks = [ig.make(t)[1] for t in (1, 4, 3, 5)] + [open_params(2)]
    seeds = np.array([3, 4, 5, 6, 7])
    action = ig.ServeAction(batch_size=48).as_arrays()
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (5,)), action)
    mixed = ig.rollout(env, ig.stack_params(tasks), follow, seeds, carry=carry, carry_axis=0)
    for i, task in enumerate(tasks):
        alone = ig.rollout(env, task, follow, seeds[i : i + 1], carry=action)
        for name in ("metrics", "workload"):
            for a, b in zip(*(jax.tree.leaves(getattr(t, name)) for t in (mixed, alone)), strict=True):
                np.testing.assert_allclose(np.asarray(a)[:, i], np.asarray(b)[:, 0], rtol=2e-4, atol=1e-3)


def test_auto_reset_starts_with_an_empty_engine():
    env, params = ig.make(4)
    trajectory = ig.rollout(env, params, ig.policies.baseline, np.array([0]), length=201)
    last, first = (np.asarray(trajectory.workload.running)[i, 0] for i in (199, 200))
    assert last > 10 and first < 10


def test_the_closed_loop_never_touches_the_engine():
    env, params = ig.make(2)
    state = env.reset_seed(0, params)[1]
    for _ in range(3):
        _, state, *_ = env.step(None, state, ig.ServeAction(), params)
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(state.engine))


def test_other_dynamics_and_impossible_ones_are_refused():
    with pytest.raises(ValueError, match=r"dynamics = 'fluid': must be one of closed_loop, open_loop"):
        ig.make(1, dynamics="fluid")
    with pytest.raises(ValueError, match="served open_loop only"):
        ig.make(4, dynamics="closed_loop")


def test_the_general_grader_scores_a_log_as_it_scores_statistics():
    env, params = ig.make(4)
    for policy in (ig.policies.random,):
        seeds = np.array([0])
        statistics = ig.evaluate(env, params, policy, seeds)
        t = ig.rollout(env, params, policy, seeds)
        log = [
            {
                "action": plain(jax.tree.map(lambda x, i=i: x[i, 0], t.action)),
                "reward": float(t.reward[i, 0]),
                "metrics": plain(jax.tree.map(lambda x, i=i: x[i, 0], t.metrics)),
            }
            for i in range(200)
        ]
        graded = ig.grade(4, log)
        assert graded["score"] == pytest.approx(float(ig.grader.score_aggregates(4, statistics)["score"][0]), abs=2e-3)
        assert set(graded["breakdown"]) == {"goodput", "slo", "cost", "stability"}
        assert all(0 <= x <= 1 for x in graded["breakdown"].values())


def test_goodput_counts_only_what_meets_both_objectives():
    metrics = {
        "ttft_p50_ms": 100.0, "ttft_p99_ms": 200.0, "tpot_ms": 20.0, "tokens_per_sec": 1000.0, "gpu_memory_gb": 20.0,
        "cost_per_1k": 0.01, "slo_violations": 0,
    }  # fmt: skip
    entry = {"action": dataclasses.asdict(ig.ServeAction()), "reward": 0.0, "metrics": metrics}
    slow = {**entry, "metrics": {**metrics, "tpot_ms": 60.0}}
    late = {**entry, "metrics": {**metrics, "ttft_p99_ms": 600.0}}
    norms = {"optimal_tps": 1000.0, "cost_normaliser": 0.01}
    parts = ig.grade(4, [entry, slow, late, entry], norms)["breakdown"]
    assert parts == {"goodput": 0.75, "slo": 0.5, "cost": 0.5, "stability": 1.0}


def met_by_hand(others, r):
    """sum over k of m (m - 1) ... (m - k + 1) r^k."""
    term = total = 0.0
    for k in range(1, others + 1):
        term = others * r if k == 1 else term * (others - k + 1) * r
        total += term
    return total


@pytest.mark.parametrize("others", [0, 1, 2, 3, 5, 10, 40, 300])
@pytest.mark.parametrize("load", [0.1, 0.5, 0.9, 1.0])
def test_what_a_request_meets_is_the_sum_over_those_of_its_second(others, load):
    service = 1000 * load / max(others, 1)
    assert float(met(jnp.float32(others), jnp.float32(service))) == pytest.approx(
        met_by_hand(others, service / 1000), rel=0.04
    )


@pytest.mark.parametrize(("service", "load"), [(5.0, 0.2), (5.0, 0.8), (50.0, 0.7), (200.0, 0.2), (200.0, 0.5)])
def test_over_the_counts_of_many_seconds_it_is_the_ratio_at_their_rate(service, load):
    # Poisson counts as the requests see them: n requests see n - 1 others
    rng = np.random.default_rng(1)
    counts = rng.poisson(1000 * load / service, 200_000).astype(np.float32)
    found = np.asarray(met(jnp.maximum(counts - 1, 0), jnp.float32(service)))
    assert np.average(found, weights=counts) == pytest.approx(load / (1 - load), rel=0.06)


def test_a_request_alone_in_its_second_meets_nobody():
    # the prefill, the decode iteration that goes with it, and nothing else: the engine is idle
    grid = engine_grid(ig.load_table())
    action = ig.ServeAction(batch_size=512).as_arrays()
    second, _ = seconds()(action, constant(1), jnp.float32(8192), jnp.float32(1), engine_params(0.0))
    prefill = float(grid.stand_alone_ms(jnp.int32(0), jnp.float32(8192)))
    assert 1.0 < float(second.ttft_mean_ms[0]) / prefill < 1.15

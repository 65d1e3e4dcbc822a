"""The reactive controller: planned from table and params, never out of memory, better than the best static action."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import OBSERVATION, ServeObservation
from inferencegym_jax.policies.reactive_control import SIZES, ReactivePlan, act
from inferencegym_jax.policies.reactive_plans import plan_for
from inferencegym_jax.scoring.grader import score_aggregates
from inferencegym_jax.table.latency_table import METRICS, LatencyTable

TASKS = (1, 2, 3)
HELD_OUT = np.arange(256) + 10_000


def observation(**fields):
    values = {name: jnp.float32(spec.low) for name, spec in OBSERVATION.items() if spec.size == 1}
    shares = jnp.asarray((1.0, 0.0, 0.0), jnp.float32)
    numbers = {name: jnp.float32(value) for name, value in fields.items()}
    return ServeObservation(**{**values, "priority_distribution": shares, **numbers})


def memory_of(table, action, prompt):
    """GB by the table's own values, without the library's lookup."""
    from scipy.interpolate import RegularGridInterpolator

    axes = [table.axes[name] for name in ("batch_size", "kv_budget", "prompt_len_bucket")]
    discrete = [table.axes[name].index(float(getattr(action, name))) for name in ("spec_length", "quant_tier")]
    values = table.values[discrete[0], discrete[1], 0, ..., METRICS.index("gpu_mem_gb")]
    return float(RegularGridInterpolator(axes, values)([float(action.batch_size), float(action.kv_budget), prompt])[0])


@pytest.mark.ci
@pytest.mark.parametrize("controller", ["plain", "planned"])
@pytest.mark.parametrize("task", (2, 3))
def test_reactive_beats_the_best_static_action_and_is_never_out_of_memory(task, controller):
    problem = ig.problem(task)
    policy = ig.policies.reactive if controller == "plain" else ig.policies.policy_of("reactive", problem)
    best = ig.policies.best_static(task)
    mine, theirs = (ig.evaluate(problem.env, problem.params, one, HELD_OUT) for one in (policy, best))
    difference = score_aggregates(task, mine)["score"] - score_aggregates(task, theirs)["score"]
    assert difference.mean() - 1.96 * difference.std() / np.sqrt(len(difference)) > 0
    assert float(mine.oom_share.max()) == 0.0
    assert float(mine.peak_memory_gb.max()) < float(problem.params.memory_limit_gb)
    assert float(mine.total_reward.mean()) > float(theirs.total_reward.mean())


def test_planned_for_task_1_it_keeps_the_best_static_actions_score():
    problem = ig.problem(1)
    policies = (ig.policies.policy_of("reactive", problem), ig.policies.best_static(1))
    mine, best = (problem.score(ig.evaluate(problem.env, problem.params, one, HELD_OUT)).mean() for one in policies)
    assert mine > 0.99 * best


@pytest.mark.parametrize("task", TASKS)
def test_every_action_it_can_take_holds_the_longest_prompts_in_memory(task):
    problem = ig.problem(task)
    plan = plan_for(problem.table, problem.params)
    longest = float(max(problem.params.short_high, problem.params.long_high))
    limit = float(problem.params.memory_limit_gb)
    peak = 0.0
    for queue in (0, 3, 40, 512):
        for rate in (0, 1, 10, 30, 80, 400):
            action = act(plan, jax.random.key(0), observation(queue_depth=queue, arrival_rate=rate))
            assert plan.least_batch <= action.batch_size <= plan.most_batch
            used = memory_of(problem.table, action, longest)
            assert used <= limit
            peak = max(peak, used)
    assert peak > 0.95 * limit  # and it uses what there is


def test_more_load_never_gets_fewer_slots():
    plan = plan_for(ig.load_table(), ig.make(3)[1])
    sizes = [
        int(act(plan, jax.random.key(0), observation(queue_depth=queue, arrival_rate=30)).batch_size)
        for queue in range(0, 513, 4)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_more_memory_allows_more_slots_and_none_that_fits_is_said():
    table, params = ig.load_table(), ig.make(3)[1]

    def most(memory):
        return float(plan_for(table, params.replace(memory_limit_gb=memory, oom_limit_gb=memory)).most_batch)

    sizes = [most(np.float32(memory)) for memory in (15.0, 20.0, 38.0, 80.0)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    with pytest.raises(ValueError, match=r"no action fits into 4.97 GB .* least that one needs is 8\.\d+ GB"):
        most(np.float32(5.0))


@pytest.mark.ci
def test_another_table_gives_another_plan():
    """Twice the memory a slot: about half the slots, without a word from the user."""
    table, params = ig.load_table(), ig.make(3)[1]
    heavy = table.values.copy()
    base = np.asarray(table.base_memory_gb)[None, :, None, None, None, None]
    memory = METRICS.index("gpu_mem_gb")
    heavy[..., memory] = base + 2.0 * (heavy[..., memory] - base)
    other = LatencyTable(table.axes, heavy, dict(table.metadata), "heavy")
    first, second = (float(plan_for(one, params).most_batch) for one in (table, other))
    assert second == pytest.approx(first / 2, abs=2)


def test_a_locked_knob_stays_at_its_default():
    plan = plan_for(ig.load_table(), ig.make(2)[1])
    assert int(plan.quant_tier) == 0
    assert set(np.unique(np.asarray(plan_for(ig.load_table(), ig.make(1)[1]).spec_length))) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("task", (4, 5))
def test_the_open_loop_plan_keeps_an_iteration_within_the_objective(task):
    problem = ig.problem(task)
    plan = plan_for(problem.table, problem.params)
    policy = ig.policies.policy_of("reactive", problem)
    rolled = ig.evaluate(problem.env, problem.params, policy, np.arange(16))
    assert float(rolled.mean_tpot_ms.max()) < min(ig.get_task(task).tpot_objectives_ms)
    assert plan.least_batch == plan.most_batch and 0.9 < float(plan.kv_budget[0]) <= 1.0
    assert int(plan.spec_length[0]) >= int(plan.spec_length[-1])  # drafts where few run


def test_an_empty_plan_has_a_plans_shapes():
    empty, real = ReactivePlan.empty(), plan_for(ig.load_table(), ig.make(1)[1])
    for field in dataclasses.fields(ReactivePlan):
        mine, theirs = getattr(empty, field.name), getattr(real, field.name)
        assert np.shape(mine) == np.shape(theirs) and np.asarray(mine).dtype == np.asarray(theirs).dtype
    assert SIZES == len(empty.kv_budget)


def test_a_plan_is_made_while_a_caller_is_traced():
    from inferencegym_jax.policies import builtin

    builtin._shipped_plans.cache_clear()
    action = jax.jit(lambda load: ig.policies.reactive(jax.random.key(0), load))(observation(arrival_rate=30))
    assert int(action.batch_size) > 0

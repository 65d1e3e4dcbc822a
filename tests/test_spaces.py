"""Spaces: finite, sampled, usable under jit and vmap, and gymnax's own where gymnax is loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.wrappers import DiscreteAction, FiveValueStep, FlatAction, FlatObservation
from inferencegym_jax.encoding import normalise
from inferencegym_jax.models import KNOBS, OBSERVATION, ServeObservation
from inferencegym_jax.spaces import Box, Discrete


def test_every_field_has_finite_bounds_and_is_normalised_to_at_most_one() -> None:
    assert all(np.isfinite([field.low, field.high]).all() for field in OBSERVATION.values())
    highest = ServeObservation(
        **{
            name: np.full((field.size,) if field.size > 1 else (), field.high, np.float32)
            for name, field in OBSERVATION.items()
        }
    )
    box = FlatObservation(None).observation_space()
    numbers = np.asarray(normalise(highest))
    assert box.low.min() == 0.0 and box.high.max() == 1.0 and box.contains(numbers)
    assert numbers[list(OBSERVATION).index("timestep") + 2] == 1.0


def test_the_dearest_episode_of_the_shipped_table_is_within_the_bound() -> None:
    worst = float(ig.load_table().values[..., -1].max()) * 200
    assert worst < OBSERVATION["cost_so_far"].high


def test_observations_are_sampled_within_their_space() -> None:
    env, params = ig.make(1)
    space = env.observation_space(params)
    sampled = jax.jit(jax.vmap(space.sample))(jax.random.split(jax.random.key(0), 16))
    assert all(space.contains(jax.tree.map(lambda x, i=i: np.asarray(x)[i], sampled)) for i in range(16))
    assert np.unique(sampled.queue_depth).size > 8 and sampled.priority_distribution.shape == (16, 3)


def test_action_spaces_under_jit_and_vmap() -> None:
    env, params = ig.make(1)
    tasks = ig.stack_params([ig.make(i)[1] for i in (1, 3)])
    keys = jax.random.split(jax.random.key(0), 2)

    def draw(key: Any, task: Any) -> Any:
        space = env.action_space(task)
        return space.sample(key), space.active

    actions, active = jax.jit(jax.vmap(draw))(keys, tasks)
    assert all(
        env.action_space(params).contains(jax.tree.map(lambda x, i=i: np.asarray(x)[i], actions)) for i in (0, 1)
    )
    np.testing.assert_array_equal(active, tasks.active)
    assert env.action_space(params).locked == ("spec_length", "prefill_disagg", "quant_tier")


@pytest.mark.parametrize("space", [Box(-1.0, 1.0, (3,)), Discrete(4)], ids=["box", "discrete"])
def test_members_are_known_under_jit_too(space: Any) -> None:
    inside = space.sample(jax.random.key(0))
    outside = inside + 10
    assert space.contains(np.asarray(inside)) and not space.contains(np.asarray(outside))
    contains = jax.jit(space.contains)
    assert bool(contains(inside)) and not bool(contains(outside))


def test_a_fleets_spaces_are_what_it_takes_and_shows() -> None:
    fleet, params = ig.make_fleet("fleet-elastic")
    assert fleet.action_space(params).locked == ("prefill_gpus",) and fleet.action_space().num_spaces == 4
    few = params.replace(gpus=np.int32(3))
    both = jax.tree.map(lambda *leaves: np.stack(leaves), params, few)
    keys = jax.random.split(jax.random.key(0), 32)

    def draw(task: Any) -> Any:
        return jax.vmap(fleet.action_space(task).sample)(keys)

    drawn = jax.jit(jax.vmap(draw))(both)
    for i, task in enumerate((params, few)):
        space = fleet.action_space(task)
        rows = [jax.tree.map(lambda x, i=i, j=j: np.asarray(x)[i, j], drawn) for j in range(32)]
        assert all(space.contains(row) for row in rows)
        assert {int(row.gpus) for row in rows} == set(range(1, int(task.gpus) + 1))
    assert not fleet.action_space(few).contains(ig.FleetAction(gpus=4))
    seen, _ = fleet.reset_seed(3, params)
    space = fleet.observation_space(params)
    assert space.contains(seen) and space.contains(jax.jit(space.sample)(keys[0])) and space.shape == (26,)
    assert not space.contains(dataclasses.replace(seen, kv_use=1.5)) and not space.contains(3)


def test_gymnax_is_not_loaded_by_the_library() -> None:
    code = "import sys, inferencegym_jax as ig; ig.make(1)[0].action_space(); assert 'gymnax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def gymnax() -> Any:
    pytest.importorskip("gymnax", reason="needs gymnax")
    import gymnax.environments.spaces
    import gymnax.wrappers

    return gymnax


def test_spaces_are_gymnaxs(gymnax: Any) -> None:
    env, params = ig.make(1)
    spaces = gymnax.environments.spaces
    assert isinstance(FlatAction(env).action_space(params), spaces.Box)
    assert isinstance(FlatObservation(env).observation_space(params), spaces.Box)
    assert isinstance(DiscreteAction(env).action_space(params), spaces.Discrete)
    assert isinstance(env.action_space(params), spaces.Dict) and isinstance(env.observation_space(params), spaces.Dict)
    fleet, fleet_params = ig.make_fleet("fleet-elastic")
    for space in (fleet.action_space(fleet_params), fleet.observation_space(fleet_params)):
        assert isinstance(space, spaces.Dict) and space.num_spaces == len(space.spaces)
    assert env.action_space(params).num_spaces == len(KNOBS)
    ours = DiscreteAction(env).action_space(params)
    assert spaces.gymnax_space_to_gym_space(ours).n == ours.n
    box = spaces.gymnax_space_to_gym_space(FlatObservation(env, normalised=False).observation_space(params))
    assert box.shape == (14,) and np.isfinite(box.high).all()


@pytest.fixture(scope="module")
def discrete(gymnax: Any) -> tuple[Any, Any]:
    """A discrete action and a flat observation, with as many values a step as this gymnax has (five before 1.0)."""
    env, params = ig.make(1)
    view = DiscreteAction(FlatObservation(env.suited_to(params)), batch_sizes=(32, 256))  # one dynamics compiles sooner
    return FiveValueStep(view) if metadata.version("gymnax").startswith("0.") else view, params


def test_gymnaxs_wrappers_take_the_environment(gymnax: Any, discrete: Any) -> None:
    env, params = discrete
    logged = gymnax.wrappers.LogWrapper(gymnax.wrappers.FlattenObservationWrapper(env))
    assert logged.observation_space(params).shape == (14,)
    _, state = logged.reset(jax.random.key(0), params)
    observation, state, reward, *done, info = logged.step(jax.random.key(1), state, 3, params)
    assert observation.shape == (14,) and not any(done) and "returned_episode_returns" in info
    assert float(state.episode_returns) == float(reward)
    single = gymnax.wrappers.GymnaxToGymWrapper(env, params)
    first, _ = single.reset(seed=0)
    assert single.observation_space.contains(np.asarray(first)) and single.action_space.n == 8
    assert np.isfinite(float(single.step(3)[1]))
    many = gymnax.wrappers.GymnaxToVectorGymWrapper(env, 2, params)
    seen, _ = many.reset(seed=0)
    assert many.observation_space.contains(np.asarray(seen))
    assert many.step(jnp.asarray([3, 4]))[1].shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DQN", "PQN", "PPO"])
def test_rejax_trains_on_a_discrete_action(discrete: Any, name: str) -> None:
    rejax = pytest.importorskip("rejax", reason="needs the extra rejax")
    env, params = discrete
    common = {"num_envs": 4, "total_timesteps": 1024, "eval_freq": 512, "skip_initial_evaluation": True}
    own: dict[str, Any] = {
        "DQN": {"buffer_size": 512, "fill_buffer": 64, "batch_size": 32},
        "PQN": {"num_steps": 32, "num_minibatches": 2},
        "PPO": {"num_steps": 32, "num_minibatches": 2, "num_epochs": 1},
    }
    learner = getattr(rejax, name).create(env=env, env_params=params, **common, **own[name])
    _, (lengths, returns) = jax.jit(learner.train)(jax.random.key(0))
    assert np.isfinite(np.asarray(returns)).all() and (np.asarray(lengths) <= 200).all()

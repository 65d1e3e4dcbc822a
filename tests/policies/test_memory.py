"""Policies that remember: one interface, one trajectory whoever runs the episode, and a file that keeps them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.gymnasium_env import InferenceGymEnv
from inferencegym_jax.encoding import History
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS, OBSERVATION, ServeObservation
from inferencegym_jax.numerics.draws import episode_seed
from inferencegym_jax.physics.observation import initial_observation
from inferencegym_jax.policies import PolicyRunner, init_carry, with_carry
from inferencegym_jax.policies.engine_units import engine_of
from inferencegym_jax.policies.load_following import LoadPlan, follow_load
from inferencegym_jax.policies.memory import GRU, gru_inputs, gru_sequence, gru_step
from inferencegym_jax.policies.network import (
    HEAD_SIZE,
    ObservationStatistics,
    PolicyNetwork,
    decode,
    forward,
    mode,
    network_policy,
)
from inferencegym_jax.policies.policy_file import load_network, save_network

HIDDEN = 6
SEEDS = np.arange(4)
LENGTH = 40


def random_gru(features: int, seed: int = 0) -> GRU:
    draw = np.random.default_rng(seed)
    shapes = (features, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN), (3 * HIDDEN,), (HIDDEN,)
    return GRU(*(jnp.asarray(draw.normal(0, 0.5, shape), jnp.float32) for shape in shapes))


def random_network(gru: bool = True, history: History | None = None, seed: int = 0) -> PolicyNetwork:
    draw = np.random.default_rng(seed)
    features = FLAT_OBSERVATION_SIZE * (1 if history is None else history.copies)
    sizes = (features + HIDDEN * gru, 8, HEAD_SIZE)
    layers = tuple(
        (jnp.asarray(draw.normal(0, 0.6, (a, b)), jnp.float32), jnp.asarray(draw.normal(0, 0.3, b), jnp.float32))
        for a, b in zip(sizes, sizes[1:], strict=False)
    )
    mean, variance = (jnp.asarray(draw.uniform(0.1, 0.5, features), jnp.float32) for _ in range(2))
    statistics = ObservationStatistics(jnp.float32(100.0), mean, variance)
    return PolicyNetwork(layers, jnp.full(2, -1.0), statistics, random_gru(features) if gru else None, history)


MEMORIES = {
    "gru": random_network(),
    "history": random_network(gru=False, history=History((15.0, 120.0), 2)),
    "both": random_network(history=History((15.0,), 1)),
}
BOTH = MEMORIES["both"]


@pytest.fixture(scope="module")
def task() -> Any:
    return ig.make(3)


@pytest.fixture(scope="module")
def remembered(task: Any) -> tuple[Policy, Any]:
    """A policy with both kinds of memory, and the trajectory of four episodes."""
    env, params = task
    policy = network_policy(BOTH)
    return policy, ig.rollout(env, params, policy, SEEDS, length=LENGTH)


def same(actions: list[ig.ServeAction], trajectory: Any, episode: int) -> None:
    """The actions are those of an episode of a rollout."""
    for name, knob in KNOBS.items():
        mine = np.asarray([getattr(action, name) for action in actions])
        theirs = np.asarray(getattr(trajectory.action, name))[: len(mine), episode]
        np.testing.assert_allclose(mine, theirs, rtol=1e-5 if knob.kind == "float" else 0, err_msg=name)


def test_a_recurrent_layer_step_by_step_is_the_scanned_one_with_the_same_gradient() -> None:
    gru, draw = random_gru(3), np.random.default_rng(1)
    x, hidden = jnp.asarray(draw.normal(size=(12, 5, 3)), jnp.float32), jnp.asarray(draw.normal(size=(5, HIDDEN)))
    is_first = jnp.asarray(draw.random((12, 5)) < 0.2)

    def one_by_one(gru: GRU) -> jax.Array:
        states, now = [], hidden
        for t in range(12):
            now = jnp.where(is_first[t][:, None], 0.0, now)
            now = gru_step(gru, gru_inputs(gru, x[t]), now)
            states.append(now)
        return jnp.stack(states)

    def scanned(gru: GRU) -> jax.Array:
        return gru_sequence(gru, gru_inputs(gru, x), hidden, is_first)

    np.testing.assert_allclose(scanned(gru), one_by_one(gru), rtol=1e-5, atol=1e-6)
    weights = jnp.asarray(draw.normal(size=(12, 5, HIDDEN)))
    mine, slow = (jax.grad(lambda g, f=f: (f(g) * weights).sum())(gru) for f in (scanned, one_by_one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), mine, slow)


def test_the_recurrent_layer_is_the_textbook_one() -> None:
    gru, draw = jax.tree.map(lambda x: np.asarray(x, np.float64), random_gru(3)), np.random.default_rng(2)
    x, h = draw.normal(size=3), draw.normal(size=HIDDEN)
    w, u, b = np.split(gru.inputs, 3, 1), np.split(gru.recurrent, 3, 1), np.split(gru.bias, 3)

    def logistic(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    r, z = (logistic(x @ w[i] + h @ u[i] + b[i]) for i in (0, 1))
    n = np.tanh(x @ w[2] + b[2] + r * (h @ u[2] + gru.candidate_bias))
    found = gru_step(random_gru(3), gru_inputs(random_gru(3), jnp.asarray(x, jnp.float32)), jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(found, (1 - z) * n + z * h, rtol=1e-4, atol=1e-5)


def test_averages_and_last_observations_are_those_of_the_definition() -> None:
    history, rng = History((2.0, 15.0), 3), np.random.default_rng(0)
    rows = rng.random((30, 4)).astype(np.float32)
    carry, averages = history.start(4), np.zeros((2, 4))
    for t, row in enumerate(rows):
        features, carry = history.extend(carry, jnp.asarray(row))
        for i, constant in enumerate(history.averages_s):
            averages[i] = rows[: t + 1].mean(axis=0) if t < constant else averages[i] + (row - averages[i]) / constant
        past = [rows[t - k] if t >= k else np.zeros(4) for k in (1, 2, 3)]
        np.testing.assert_allclose(features, np.concatenate([row, *averages, *past]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"averages_s": (1.0,)}, "averages_s = 1.0"),
        ({"averages_s": ("x",)}, "averages_s"),
        ({"last": 121}, "last = 121"),
    ],
)
def test_a_history_that_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        History(**fields)


def test_memory_changes_what_a_policy_does(remembered: Any) -> None:
    """No test below would fail of a policy that forgets: this one does."""
    trajectory = remembered[1]
    seen = jax.tree.map(lambda x: x[LENGTH - 1], trajectory.observation)
    fresh = forward(BOTH, seen)[0]
    knobs = jax.tree.map(lambda x: x[LENGTH - 1], trajectory.action)
    assert not np.allclose(decode(mode(fresh)).kv_budget, knobs.kv_budget, atol=1e-3)


def test_an_episode_alone_is_that_of_the_batch(task: Any, remembered: Any) -> None:
    policy, trajectory = remembered
    env, params = task
    alone = ig.rollout(env, params, policy, SEEDS[2:3], length=LENGTH)
    for name in KNOBS:
        mine, theirs = getattr(alone.action, name)[:, 0], getattr(trajectory.action, name)[:, 2]
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(alone.reward[:, 0], trajectory.reward[:, 2], rtol=1e-4, atol=1e-5)


def test_a_python_loop_over_single_steps_is_the_rollout(task: Any, remembered: Any) -> None:
    policy, trajectory = remembered
    single, runner = ig.SingleStep(*task), PolicyRunner(policy)
    for episode in (1, 3):  # the second finds nothing left of the first
        outcome, actions = single.reset(episode), []
        runner.reset(episode)
        for _ in range(LENGTH):
            actions.append(runner.ask(ServeObservation(**outcome.observation)))
            outcome = single.step(outcome.state, single.pack_action(actions[-1]))
        same(actions, trajectory, episode)


def test_a_gymnasium_loop_is_the_rollout(task: Any, remembered: Any) -> None:
    policy, trajectory = remembered
    env, runner = InferenceGymEnv(3, normalised=False), PolicyRunner(policy)
    observation, _ = env.reset(seed=2)
    runner.reset(2)
    actions = []
    for _ in range(LENGTH):
        actions.append(runner.ask(ServeObservation.from_array(observation)))
        observation, *_ = env.step(actions[-1])
    same(actions, trajectory, 2)


def test_memory_is_empty_at_an_episodes_start_also_after_auto_reset(task: Any) -> None:
    env, params = task
    params, policy = params.replace(episode_length=jnp.int32(15)), network_policy(BOTH)
    long = ig.rollout(env, params, policy, SEEDS, length=LENGTH)
    assert bool(np.all(np.asarray(long.truncated)[14]))
    seeds = np.asarray(episode_seed(jnp.uint32(SEEDS), jnp.ones(len(SEEDS), jnp.int32)))
    second = ig.rollout(env, params, policy, seeds, length=LENGTH)
    for name in KNOBS:
        np.testing.assert_allclose(getattr(long.action, name)[15:30], getattr(second.action, name)[:15], rtol=1e-5)


@with_carry(lambda pace: jnp.int32(10 * pace))
def counting(pace: int, key: jax.Array, observation: ServeObservation, carry: jax.Array) -> Any:
    """A policy of one's own: more slots every second."""
    del key, observation
    return ig.ServeAction(batch_size=carry), carry + pace


def test_a_policy_of_ones_own_says_what_it_starts_with(task: Any) -> None:
    env, params = task
    params, policy = params.replace(episode_length=jnp.int32(4)), jax.tree_util.Partial(counting, 3)
    assert init_carry(ig.policies.baseline) is None and init_carry(policy) == 30
    steps = ig.rollout(env, params, policy, SEEDS, length=6)
    assert np.asarray(steps.action.batch_size)[:, 0].tolist() == [30, 33, 36, 39, 30, 33]
    given = ig.rollout(env, params, policy, SEEDS, length=6, carry=jnp.int32(7))
    assert np.asarray(given.action.batch_size)[:, 1].tolist() == [7, 10, 13, 16, 30, 33]


@pytest.mark.parametrize("name", list(MEMORIES))
def test_a_file_keeps_a_network_with_memory(tmp_path: Path, name: str) -> None:
    path, network = tmp_path / "policy.npz", MEMORIES[name]
    save_network(path, network, {"task": "adversarial-multi-tenant"})
    found, about = load_network(path)
    assert about["format"] == 2 and found.history == network.history
    jax.tree.map(np.testing.assert_array_equal, found, network)
    policy = ig.policies.policy_of(str(path), ig.problem(3))
    jax.tree.map(np.testing.assert_array_equal, init_carry(policy), init_carry(network_policy(network)))


def test_a_network_without_memory_is_in_the_format_that_older_versions_read(tmp_path: Path) -> None:
    save_network(tmp_path / "policy.npz", random_network(gru=False), {})
    found, about = load_network(tmp_path / "policy.npz")
    assert about["format"] == 1 and not found.has_memory and found.gru is None


def test_a_file_of_a_later_format_or_with_a_layer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_network(tmp_path / "policy.npz", MEMORIES["gru"], {})
    with np.load(tmp_path / "policy.npz") as archive:
        arrays = dict(archive)
    metadata = json.loads(arrays["metadata"].tobytes())
    later = np.frombuffer(json.dumps(metadata | {"format": 6}).encode(), np.uint8)
    np.savez(tmp_path / "later.npz", **(arrays | {"metadata": later}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format 6; this version reads 1 to 5"):
        load_network(tmp_path / "later.npz")
    np.savez(tmp_path / "narrow.npz", **(arrays | {"gru_inputs": arrays["gru_inputs"][:, 3:]}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="recurrent layer has shapes"):
        load_network(tmp_path / "narrow.npz")
    np.savez(tmp_path / "none.npz", **{name: x for name, x in arrays.items() if not name.startswith("gru")})
    with pytest.raises(ValueError, match=r"takes 20 numbers .* must be 14"):
        load_network(tmp_path / "none.npz")


@pytest.mark.parametrize("name", ["both", "history"])
def test_a_network_with_memory_from_before_a_field_does_not_see_it(tmp_path: Path, name: str, remembered: Any) -> None:
    field, network = "cost_so_far", MEMORIES[name]
    names = np.repeat(list(OBSERVATION), [f.size for f in OBSERVATION.values()])
    keep = np.tile(names != field, network.history.copies)  # type: ignore[union-attr]
    save_network(tmp_path / "policy.npz", network, {})
    with np.load(tmp_path / "policy.npz") as archive:
        arrays = dict(archive)
    metadata = json.loads(arrays["metadata"].tobytes())
    del metadata["observation"][field]
    rest = len(arrays["weights_0"]) - len(keep)
    for entry in ("mean", "variance", "gru_inputs"):
        if entry in arrays:
            arrays[entry] = arrays[entry][keep]
    arrays["weights_0"] = arrays["weights_0"][np.append(keep, np.ones(rest, bool))]
    arrays["metadata"] = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    np.savez(tmp_path / "older.npz", **arrays)
    older, _ = load_network(tmp_path / "older.npz")
    seen = jax.tree.map(lambda x: x[5], remembered[1].observation)
    changed = ServeObservation(**{**vars(seen), field: seen.cost_so_far + 50.0})
    np.testing.assert_array_equal(forward(older, seen)[0], forward(older, changed)[0])
    assert not np.array_equal(forward(network, seen)[0], forward(network, changed)[0])


def test_the_load_following_controller_carries_what_it_averages() -> None:
    problem = ig.problem(4)
    engine, plan = engine_of(problem.table, problem.params), LoadPlan().as_arrays()
    policy = jax.tree_util.Partial(follow_load, engine, plan)
    carry, averages = init_carry(policy), []
    for rate in (2.0, 2.0, 8.0):
        seen = dataclasses.replace(
            initial_observation(), arrival_rate=np.float32(rate), mean_prompt_len=np.float32(800)
        )
        _, carry = policy(jax.random.key(0), seen, carry)
        averages.append(float(carry.load))
    assert averages[0] == pytest.approx(averages[1]) and averages[1] < averages[2] < 4 * averages[1]

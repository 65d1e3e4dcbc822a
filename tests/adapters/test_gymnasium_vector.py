"""The vector environment: every id, every entry point, each auto-reset mode, arguments obeyed or refused by name."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import inferencegym_jax as ig
from inferencegym_jax.adapters.gymnasium_env import IDS, InferenceGymEnv, InferenceGymVectorEnv
from inferencegym_jax.models import KNOBS
from inferencegym_jax.registry import problems
from inferencegym_jax.tasks import known_calibration

BURSTY = "inferencegym_jax/BurstyShareGPT-v0"
AZURE = "inferencegym_jax/AzureConversation-v0"
N = 2


def rows(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, N, len(KNOBS))).astype(np.float32)


def still() -> np.ndarray:
    return np.zeros((N, len(KNOBS)), np.float32)


@pytest.mark.ci
@pytest.mark.parametrize("mode", [None, "sync"])
@pytest.mark.parametrize("name", IDS)
def test_every_id_steps_as_single_environments_do(name: str, mode: str | None) -> None:
    envs = gymnasium.make_vec(name, num_envs=N, vectorization_mode=mode)
    singles = [InferenceGymEnv(IDS[name]) for _ in range(N)]
    flat, _ = envs.reset(seed=5)
    expected = np.stack([single.reset(seed=5 + i)[0] for i, single in enumerate(singles)])
    for row in rows(4):
        np.testing.assert_allclose(flat, expected, rtol=1e-4, atol=1e-5)
        flat, rewards, _, _, infos = envs.step(row)
        stepped = [single.step(one) for single, one in zip(singles, row, strict=True)]
        expected = np.stack([one[0] for one in stepped])
        np.testing.assert_allclose(rewards, [one[1] for one in stepped], rtol=1e-4, atol=1e-5)
        for field in infos["workload"].values():
            assert np.shape(field)[0] == N
        np.testing.assert_array_equal(
            infos["workload"]["queue_depth"], [one[4]["workload"]["queue_depth"] for one in stepped]
        )
    assert envs.spec is not None and envs.spec.max_episode_steps == ig.get_task(IDS[name]).episode_length


@pytest.fixture(scope="module")
def envs() -> InferenceGymVectorEnv:
    return InferenceGymVectorEnv(N, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"normalized": False}, "normalized"),
        ({"normalised": "no"}, "normalised = 'no'"),
        ({"trace": "/nonexistent.csv"}, "/nonexistent.csv"),
        ({"trace": 5}, "trace = 5"),
        ({"table": ["a"]}, "table = "),
        ({"views": 3}, "views = 3"),
        ({"views": "DiscreteAction"}, "views = 'DiscreteAction'"),
        ({"views": [ig.wrappers.FlatAction, 3]}, "views = "),
        ({"table": "/nonexistent.parquet"}, "/nonexistent.parquet"),
        ({"dynamics": "fluid"}, "dynamics = 'fluid'"),
        ({"config": {"omega": 1}}, "omega"),
        ({"render_mode": "ascii"}, "render_mode = 'ascii'"),
    ],
)
@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_an_argument_that_cannot_be_obeyed_is_named(make: Any, words: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        make(BURSTY, **words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"autoreset_mode": "Never"}, "autoreset_mode = 'Never'"),
        ({"max_episode_steps": 500}, "max_episode_steps = 500.*200"),
        ({"max_episode_steps": 0}, "max_episode_steps = 0"),
        ({"num_envs": 0}, "num_envs = 0"),
        ({"whatever": 1}, "whatever"),
    ],
)
def test_so_is_one_of_the_vector_environment(words: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        gymnasium.make_vec(BURSTY, **{"num_envs": N, **words})


def test_arguments_are_obeyed() -> None:
    made: Any = gymnasium.make_vec(BURSTY, num_envs=N, normalised=False, config={"gamma": 0.5}, render_mode="ansi")
    assert not made.normalised and float(made.params.gamma) == 0.5 and made.render_mode == "ansi"


@pytest.fixture
def known_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalisers of task 4 for any table and traffic: the search for them is tested elsewhere."""
    monkeypatch.setattr(problems, "_calibration", lambda *_: known_calibration(ig.get_task(4)))


@pytest.mark.slow
@pytest.mark.usefixtures("known_scales")
def test_ones_own_log_is_replayed_under_gymnasium() -> None:
    assert int(gymnasium.make(BURSTY, dynamics="open_loop").unwrapped.params.engine.open_loop) == 1  # type: ignore[attr-defined]
    log = ig.RequestLog.from_arrays(np.arange(0, 300, 0.25), np.full(1200, 200), np.full(1200, 60))
    env: Any = gymnasium.make(AZURE, trace=log)
    vector: Any = gymnasium.make_vec(AZURE, num_envs=N, trace=log)
    assert env.unwrapped.inference_env.trace == vector.inference_env.trace == log
    env.reset(seed=0)
    vector.reset(seed=0)
    assert env.step(still()[0])[4]["workload"]["arrivals"] == 4
    np.testing.assert_array_equal(vector.step(still())[4]["workload"]["arrivals"], 4)


def test_max_episode_steps_truncates_there() -> None:
    made = gymnasium.make_vec(BURSTY, num_envs=N, max_episode_steps=3)
    assert made.spec is not None and made.spec.max_episode_steps == 3
    made.reset(seed=0)
    single = gymnasium.make(BURSTY, max_episode_steps=3)
    single.reset(seed=0)
    for t in range(3):
        flat, _, terminated, truncated, infos = made.step(still())
        last, _, _, cut, _ = single.step(still()[0])
        assert truncated.all() == cut == (t == 2) and not terminated.any()
    np.testing.assert_allclose(infos["final_obs"][0], last, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(infos["final_info"]["timestep"], 3)
    assert flat[0, 12] == 0.0  # the next episode's first observation


def test_the_next_step_resets_in_that_mode() -> None:
    made: Any = gymnasium.make_vec(BURSTY, num_envs=N, max_episode_steps=3, autoreset_mode="NextStep")
    assert made.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    reference = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(BURSTY, max_episode_steps=3)] * N)
    made.reset(seed=0)
    reference.reset(seed=0)
    for row in rows(9):
        mine, theirs = made.step(row), reference.step(row)
        for ours, its in zip(mine[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(ours, its, rtol=1e-4, atol=1e-5)


def test_disabled_waits_for_a_masked_reset() -> None:
    made: Any = gymnasium.make_vec(
        BURSTY, num_envs=N, max_episode_steps=3, autoreset_mode=AutoresetMode.DISABLED, vector_kwargs=None
    )
    made.reset(seed=0)
    made.step(still())
    made.reset(seed=[None, 9], options={"reset_mask": np.array([False, True])})
    for _ in range(2):
        truncated = made.step(still())[3]
    np.testing.assert_array_equal(truncated, [True, False])
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"\[0\] are over"):
        made.step(still())
    made.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(made.step(still())[4]["timestep"], [1, 3])


def test_a_masked_reset_leaves_the_others_where_they_are(envs: InferenceGymVectorEnv) -> None:
    envs.reset(seed=0)
    for _ in range(5):
        flat = envs.step(still())[0]
    seen, infos = envs.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(seen[1], flat[1])
    assert seen[0, 12] == 0 and infos["_seed"].tolist() == [True, False]
    np.testing.assert_array_equal(envs.step(still())[4]["timestep"], [1, 6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": 1}, "'mask' is unknown; there is reset_mask"),
        (5, "options = 5"),
        ({"reset_mask": np.array([1, 0])}, "reset_mask"),
        ({"reset_mask": np.zeros(N, bool)}, "at least one true"),
    ],
)
def test_bad_options_are_named(envs: InferenceGymVectorEnv, options: Any, message: str) -> None:
    envs.reset(seed=0)
    with pytest.raises((TypeError, ValueError), match=message):
        envs.reset(options=options)
    with pytest.raises(ValueError, match="'reset_mask' is unknown; there are none"):
        InferenceGymEnv(2).reset(options={"reset_mask": 1})


def test_a_reset_without_a_seed_goes_on_as_single_environments_do(envs: InferenceGymVectorEnv) -> None:
    single = InferenceGymEnv(2)
    envs.reset(seed=3)
    single.reset(seed=3)
    for _ in range(2):
        assert envs.reset()[1]["seed"][0] == single.reset()[1]["seed"]


def test_views_are_exposed_in_both(envs: InferenceGymVectorEnv) -> None:
    del envs
    views = [ig.wrappers.DiscreteAction, ig.wrappers.FlatObservation]
    single: Any = gymnasium.make(BURSTY, views=views)
    vector: Any = gymnasium.make_vec(BURSTY, num_envs=N, views=views)
    assert single.action_space == gymnasium.spaces.Discrete(140) and vector.single_action_space == single.action_space
    first, _ = single.reset(seed=1)
    vector.reset(seed=1)
    assert single.observation_space.contains(first)
    one, reward, *_ = single.step(17)
    many, rewards, *_ = vector.step(np.array([17, 17]))
    np.testing.assert_allclose(many[0], one, rtol=1e-4, atol=1e-5)
    assert rewards[0] == pytest.approx(reward, abs=1e-5)
    for bad in (140, -1, 0.5, np.nan):
        with pytest.raises(ValueError, match="action = "):
            single.unwrapped.step(bad)
    with pytest.raises(ValueError, match="normalised = False"):
        gymnasium.make(BURSTY, views=views, normalised=False)

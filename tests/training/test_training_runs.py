"""Runs as a user meets them: resume, devices, processes, bad input, NaN, interruption, policy files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.policies.network import network_policy
from inferencegym_jax.policies.policy_file import load_network
from inferencegym_jax.traffic.days import SEED_STRIDE
from training.checkpoint import CheckpointError
from training.cli import app
from training.config import CONFIGS, TrainConfig, load_config, task_config
from training.devices import LEAST_SAMPLES, usual
from training.evaluation import evaluate
from training.runner import NonFiniteLoss, Result, run
from training.trainer import TRAINING_BIT, VALIDATION_SEED, initial_state, make_update, training_seeds

ROOT = Path(__file__).resolve().parents[2]
SMALL = TrainConfig(
    task=2,
    environments=8,
    rollout_length=8,
    minibatches=2,
    epochs=2,
    hidden=(16,),
    total_steps=256,
    evaluate_every=2,
    evaluation_episodes=4,
)
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def parameters(result: Result) -> np.ndarray:
    return np.concatenate(
        [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves((result.state.variables, result.state.statistics))]
    )


@pytest.fixture(scope="module")
def whole() -> Result:
    return run(SMALL)


@pytest.mark.slow
def test_a_resumed_run_reaches_the_parameters_of_an_uninterrupted_one(tmp_path: Path, whole: Result) -> None:
    class Stop(Exception):
        pass

    def once(report: Any) -> None:
        raise KeyboardInterrupt

    half = run(SMALL, tmp_path, report=once)
    assert half.interrupted and int(half.state.update) == 2
    assert (tmp_path / "policy.npz").is_file()
    again = run(SMALL, tmp_path, resume=True)
    assert int(again.state.update) == int(whole.state.update) == 4
    np.testing.assert_array_equal(parameters(again), parameters(whole))
    assert not np.array_equal(parameters(half), parameters(whole))
    with (tmp_path / "metrics.csv").open() as file:
        assert [float(row["update"]) for row in csv.DictReader(file)] == [2.0, 4.0]


PROGRAM = """
import sys, json, numpy as np, jax
from training import devices
from training.config import TrainConfig
from training.runner import run
devices.prepare(int(sys.argv[2]))
if len(sys.argv) > 3:
    devices.join(sys.argv[3], 2, int(sys.argv[4]))
found = run(TrainConfig().replace(**json.loads(sys.argv[1])), devices=2)
leaves = jax.tree.leaves((found.state.variables, found.state.statistics))
if jax.process_index() == 0:
    values = np.concatenate([np.ravel(np.asarray(x)) for x in leaves]).tolist()
    print(json.dumps({"devices": jax.device_count(), "values": values}))
"""


def start(*arguments: str, config: TrainConfig = SMALL) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", PROGRAM, json.dumps(config.to_dict()), *arguments]
    return subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def values(process: subprocess.Popen[str]) -> np.ndarray:
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    found = json.loads(out.splitlines()[-1])
    assert found["devices"] == 2
    return np.asarray(found["values"], np.float32)


@pytest.mark.slow
def test_two_devices_reach_the_parameters_of_one(whole: Result) -> None:
    np.testing.assert_allclose(values(start("2")), parameters(whole), rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_two_processes_reach_the_parameters_of_one_device(whole: Result) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    first, second = start("1", address, "0"), start("1", address, "1")
    try:
        np.testing.assert_allclose(values(first), parameters(whole), rtol=2e-3, atol=2e-4)
        assert second.wait(60) == 0
    finally:
        first.kill()
        second.kill()


@pytest.mark.slow
def test_no_training_episode_has_an_evaluation_seed() -> None:
    seeds = np.asarray(training_seeds(jnp.uint32(3), 4096))
    assert (seeds >= TRAINING_BIT).all() and len(np.unique(seeds)) > 4090
    env, params = ig.make(2)
    config = SMALL.replace(rollout_length=200, minibatches=1)
    state = initial_state(env, params, config, 0, config.hyper)
    after, _ = jax.jit(make_update(env, params, config))(state, config.hyper)
    assert (
        np.asarray(after.env_state.episode) > np.asarray(state.env_state.episode)
    ).all()  # all were reset in between
    assert (np.asarray(after.env_state.seed) >= TRAINING_BIT).all()
    assert 1 << 30 <= VALIDATION_SEED < TRAINING_BIT


def test_staggered_environments_start_all_over_the_episode() -> None:
    env, params = ig.make(2)
    state = initial_state(env, params, SMALL, 0, SMALL.hyper)
    np.testing.assert_array_equal(np.asarray(state.env_state.time), np.arange(8) * 25)


@pytest.mark.slow
def test_networks_of_many_seeds_are_made_one_after_another() -> None:
    """JAX's batched QR, twice in a program, can wait for its own threads for ever."""
    env, params = ig.make(2)
    seeds = np.arange(3, dtype=np.uint32)

    def fresh(seed: Any) -> Any:
        return initial_state(env, params, SMALL, seed, SMALL.hyper).variables

    program = str(jax.make_jaxpr(jax.vmap(fresh))(seeds))
    assert " = qr[" in program
    assert not re.search(r"f32\[3,\d+,\d+\] = qr\[", program)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[1], jax.vmap(fresh)(seeds)), fresh(seeds[1]))


@pytest.mark.slow
def test_training_learns_task_1() -> None:
    config = task_config(1).replace(total_steps=50_000)
    score = [row["score"] for row in run(config).rows]
    assert score[-1] >= 0.65


@pytest.mark.slow
def test_nan_stops_the_run_names_the_update_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"update \d+.*not finite.*kept in"):
        run(SMALL.replace(learning_rate=1e30, max_gradient_norm=1e30), tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_another_task_or_network_or_a_truncated_one_is_refused(tmp_path: Path) -> None:
    run(SMALL.replace(total_steps=128), tmp_path)
    with pytest.raises(CheckpointError, match="task 2; the run is of task 3"):
        run(SMALL.replace(task=3), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="hidden"):
        run(SMALL.replace(hidden=(8,)), tmp_path, resume=True)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and "state" in file.parts and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(SMALL, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run(SMALL, tmp_path / "empty", resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environments": 0}, "environments = 0"),
        ({"total_steps": -5}, "total_steps = -5"),
        ({"hidden": ()}, "hidden"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"discount": 1.5}, "discount = 1.5"),
        ({"rollout_length": 201, "minibatches": 1}, "rollout_length = 201"),
        ({"minibatches": 3}, "minibatches = 3"),
        ({"learning_rat": 1}, "'learning_rat' is unknown"),
        ({"task": 9}, "task = 9"),
        ({"start": "end"}, "start = 'end'"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_a_bad_config_names_field_and_value(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig().replace(**changes)


def test_environments_must_divide_by_devices_and_devices_must_exist() -> None:
    with pytest.raises(ValueError, match="devices = 99: there are"):
        run(SMALL, devices=99)


def test_devices_by_default_are_as_many_as_have_work_enough() -> None:
    assert usual(task_config(3), 2) == 2
    assert usual(SMALL, 2) == 1
    assert usual(task_config(3).replace(environments=511), 2) == 1
    assert usual(task_config(3), 1024) == task_config(3).environments * 32 // 8 // LEAST_SAMPLES


def test_tensorboard_without_its_extra_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="tensorboardX is not installed"):
        run(SMALL, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_every_shipped_config_loads() -> None:
    files = sorted(CONFIGS.glob("task*.yaml"))
    assert files
    for file in files:
        config = load_config(file)
        assert file.stem == f"task{config.task_id}" and task_config(config.task) == config


def test_a_yaml_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("learning_rate: fast\n")
    with pytest.raises(ValueError, match="bad.yaml: learning_rate = 'fast'"):
        load_config(path)


@pytest.mark.ci
def test_a_policy_file_acts_as_the_network_that_was_evaluated(tmp_path: Path, whole: Result) -> None:
    run(SMALL, tmp_path)
    network, metadata = load_network(tmp_path / "policy.npz")
    assert metadata["task"] == "bursty-sharegpt" and metadata["config"]["hidden"] == [16]
    env, params = ig.make(2)
    seeds = VALIDATION_SEED + SEED_STRIDE * np.arange(4)
    found = ig.evaluate(env, params, network_policy(network), seeds)
    assert float(found.total_reward.mean()) == pytest.approx(whole.rows[-1]["return"], rel=1e-4)
    with pytest.raises(ValueError, match="trained for task 'bursty-sharegpt'"):
        ig.policies.policy_of(str(tmp_path), ig.problem(1))
    broken = tmp_path / "broken.npz"
    broken.write_bytes((tmp_path / "policy.npz").read_bytes()[:500])
    with pytest.raises(ValueError, match="broken.npz.*truncated"):
        load_network(broken)


@pytest.mark.ci
def test_evaluate_prints_what_the_issue_asks_for() -> None:
    answer = CliRunner().invoke(app, ["evaluate", "--task", "3", "--policy", "reactive", "--episodes", "64", "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert (found["task"], found["policy"], found["episodes"]) == (3, "reactive", 64)
    for interval in (found["score"], found["return"], found["paired"]["best_static"]["score"]):
        assert interval["low"] < interval["mean"] < interval["high"]
    assert found["paired"]["reactive"]["score"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.slow
def test_paired_intervals_are_narrower_than_unpaired_ones() -> None:
    found = evaluate(3, "reactive", 128)
    width = {
        name: value["high"] - value["low"]
        for name, value in (("paired", found["paired"]["best_static"]["return"]), ("alone", found["return"]))
    }
    assert 0 < width["paired"] < width["alone"] * 1.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--policy", "nobody"], "policy = 'nobody'"),
        (["evaluate", "--policy", "random", "--episodes", "0"], "episodes = 0"),
        (["train", "--set", "nothing=1"], "'nothing' is unknown"),
        (["train", "--task", "9"], "task = 9"),
        (["sweep", "--grid", "task=1,2"], "'task' is no hyperparameter"),
        (["plot", "pie"], "plot 'pie'"),
        (["export", "/nowhere"], "no such run"),
        (["headroom", "--rounds", "-1", "--episodes", "0"], "episodes = 0"),
    ],
)
def test_the_command_line_says_what_is_wrong(words: list[str], message: str) -> None:
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 2
    assert message in answer.output.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_saves_what_was_learned(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [sys.executable, "-m", "training", "train", "--task", "1", "--steps", "500000000", "--out", str(out)]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a job that a shell put in the background has its children ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for _ in range(600):
            if (out / "metrics.csv").is_file() and len((out / "metrics.csv").read_text().splitlines()) > 2:
                break
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors[-2000:]
    assert "Interrupted" in errors and "Traceback" not in errors
    assert load_network(out / "policy.npz")[1]["updates"] > 0
    shutil.rmtree(out)

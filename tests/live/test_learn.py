"""A policy learned on a measured table and a trial's own scenario is one that the trial takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import inferencegym_jax as ig
from benchmarks.live.learn import CONFIG, learn, training_params
from benchmarks.live.learn_second import config_of, learn_second
from benchmarks.live.learn_second import training_params as second_params
from inferencegym_jax.live.measure.table import write_table
from inferencegym_jax.live.scenarios.described import SecondInstance, scenario_of
from inferencegym_jax.live.scenarios.rivals import second_instance_rivals
from inferencegym_jax.live.scenarios.second_instance import second_instance
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.request import TrialRequest, scenario
from inferencegym_jax.live.trial.runs import TrialSettings
from inferencegym_jax.physics.observation import initial_observation
from inferencegym_jax.policies.policy_file import load_network
from inferencegym_jax.policies.policy_runner import PolicyRunner
from inferencegym_jax.table.latency_table import load_table
from inferencegym_jax.tasks import calibration
from tests.live.fake_engine import Times

pytestmark = pytest.mark.slow  # searches normalisers on the table, and trains
TIMES = Times(a=13.0, b=1.2, c=0.86)
OUTPUT = 32


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """The table that a perfect measurement of ``TIMES`` gives."""
    columns: dict[str, list[float]] = {}
    for n in (1, 8, 32):
        for bucket, prompt in enumerate((64, 128, 256)):
            tpot = TIMES.iteration_ms(n, prompt, OUTPUT)
            first = TIMES.a + TIMES.b * n + TIMES.c * prompt
            row = {"batch_size": n, "prompt_len_bucket": bucket, "ttft_p50_ms": first, "ttft_p99_ms": 2 * first}
            row |= {"tpot_ms": tpot, "tps": 1000 * n / tpot, "gpu_mem_gb": 2.0 + 0.01 * n}
            row["cost_per_1k"] = calibration()["cost_scale"] * tpot / n
            for name, value in row.items():
                columns.setdefault(name, []).append(float(value))
    prefill = json.dumps([TIMES.c * prompt for prompt in (64, 128, 256)])
    metadata = {"reference_output_length": str(OUTPUT), "prefill_ms": prefill}
    metadata |= {"kv_cache_gb": "4.0", "kv_bytes_per_token": "131072"}
    write_table(columns, metadata, tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


@pytest.fixture
def request_of(measured: Path) -> TrialRequest:
    """A trial on that table."""
    return TrialRequest(
        Endpoint("http://127.0.0.1:9", "none"),
        ["baseline"],
        measured,
        prompt_scale=0.3,
        seconds=20,
        slo_ttft_ms=(2000.0, 20000.0, float("inf")),
        slo_itl_ms=100.0,
        class_shares=(0.2, 0.5, 0.3),
        settings=TrialSettings(repeats=1),
    )


def test_the_environment_is_the_trials_scenario_on_this_engine(request_of: TrialRequest) -> None:
    table = load_table(request_of.table)
    params = training_params(request_of, table)
    problem, _, how = scenario(request_of, table)
    scaled = problem.params
    assert int(params.engine.open_loop) == 1 and np.asarray(params.engine.slo_tpot_ms).tolist() == [100.0] * 3
    assert float(params.rate) == pytest.approx(float(scaled.rate)) and float(params.rate) < 10
    assert np.asarray(params.class_shares) == pytest.approx([0.2, 0.5, 0.3]) and how["class_shares"][0] < 0.21
    assert np.asarray(params.slo_ms).tolist() == [20000.0] * 3  # the one queue's: of the class that can wait longest
    assert float(params.oom_limit_gb) == pytest.approx(6.01, abs=0.01)  # least memory, and the pool


def test_what_is_learned_is_a_policy_of_the_trial_and_the_best_of_its_seeds(request_of: TrialRequest) -> None:
    said: list[str] = []
    config = CONFIG.replace(total_steps=1, environments=8, rollout_length=8, evaluate_every=1, evaluation_episodes=2)
    path = learn(request_of, request_of.table.with_name("learned.npz"), said.append, config, seeds=2)
    _, metadata = load_network(path)
    found = [float(text.rpartition(" goodput ")[2].split()[0]) for text in said]
    assert len(found) == 2 and metadata["predicted_goodput"] == pytest.approx(max(found), abs=0.01)
    assert metadata["table_digest"] == load_table(request_of.table).digest
    action = PolicyRunner(ig.policies.load(path)).ask(initial_observation())
    assert 1 <= int(action.batch_size) <= 512


def test_what_is_learned_for_a_second_instance_is_a_rival_of_it_and_the_best_of_its_seeds(measured: Path) -> None:
    said: list[str] = []
    small = {"total_steps": 1, "environments": 8, "rollout_length": 8, "evaluate_every": 1, "evaluation_episodes": 2}
    config, times, path = config_of().replace(**small), SpareTimes(1.0, 0.5, 10.0, 1.1), measured.with_name("two.npz")
    found = learn_second(measured, times, 60, 64, path, said.append, config, seeds=2)
    scores = found["scores"]
    assert set(scores) == {"one always", "two always", "load-following", "general", "seed 0", "seed 1"}
    assert found["chosen"] == max(("seed 0", "seed 1"), key=lambda name: scores[name])
    assert sum(text.startswith("trained seed") for text in said) == 2
    _, metadata = load_network(path)
    assert metadata["table_digest"] == load_table(measured).digest and metadata["spare"]["slowdown"] == 1.1
    scenario_now = scenario_of("second-instance")
    assert isinstance(scenario_now, SecondInstance)
    setting = second_instance(scenario_now, load_table(measured), times, 60, [0])
    settings = TrialSettings(repeats=1, spare=times, max_num_seqs=64)
    rivals = second_instance_rivals(scenario_now, setting, settings, 60, ("two always", str(path)), said.append)
    assert set(rivals.policies) == {"two always", str(path)} and rivals.fixed == ("two always",)


def test_it_is_trained_on_the_scenarios_own_traffic_objectives_and_pool(measured: Path) -> None:
    table, times = load_table(measured), SpareTimes(1.0, 0.5, 10.0, 1.1)
    scenario_now = scenario_of("second-instance")
    assert isinstance(scenario_now, SecondInstance)
    setting = second_instance(scenario_now, table, times, 60, [5, 6])
    params, unscaled = second_params(setting, table), setting.problem.params
    scale = np.mean([day["rate_scale"] for day in setting.how["stretches"]])
    assert np.asarray(params.engine.day.rate) == pytest.approx(np.asarray(unscaled.engine.day.rate) * scale, rel=1e-5)
    assert float(params.slo_ms[0]) == pytest.approx(setting.objective.ttft_ms)
    assert float(params.engine.static_gpus) == 2.0 and float(params.engine.start_s) == 1.0
    assert float(params.engine.demand_tps) == pytest.approx(float(params.engine.demand_rps) * OUTPUT, rel=1e-5)
    assert float(params.oom_limit_gb) == pytest.approx(6.01, abs=0.01)  # least memory, and the pool

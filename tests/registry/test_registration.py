"""A registered task is known everywhere, and what it lacks is searched, taken from the defaults or said."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.cli.app import run
from inferencegym_jax.episodes.static_search import optimal_throughput, search_static, static_actions
from inferencegym_jax.models import KNOBS
from inferencegym_jax.registry.problems import search
from inferencegym_jax.scoring.grader import score_aggregates
from inferencegym_jax.tasks import known
from server.app import create_app
from server.settings import Settings
from training.config import TrainConfig, task_config

ENTRY: dict[str, Any] = {
    "id": 60,
    "description": "Short prompts by night.",
    "arrivals": {"rate": 20.0},
    "prompts": {"kind": "uniform", "low": 64, "high": 512},
    "slo_ttft_ms": [400.0],
    "active_knobs": ["batch_size"],
}


def spec_of(**changes: Any) -> ig.TaskSpec:
    fields: dict[str, Any] = {"name": "night-shift", **ENTRY, **changes}
    return ig.TaskSpec(**fields)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"night-shift": ENTRY}))
    return str(path)


def test_it_is_made_by_id_name_and_as_it_is() -> None:
    spec = ig.register(spec_of())
    assert ig.get_task(60) is ig.get_task("night-shift") is spec and list(ig.task_specs())[-1] == "night-shift"
    made = [ig.make(task) for task in (60, "night-shift", spec)]
    assert {int(params.task_id) for _, params in made} == {60}
    assert float(made[0][1].rate) == 20.0 and float(made[0][1].optimal_tps) > 1000
    ig.unregister(60)
    with pytest.raises(ValueError, match=r"task = 'night-shift': no such task; there are .*ig.register"):
        ig.make("night-shift")


def test_its_normalisers_are_those_of_an_exhaustive_search() -> None:
    problem = ig.problem(spec_of())
    seeds = np.arange(16)
    actions = static_actions(problem.env, problem.params)
    statics = search_static(problem.env, problem.params, actions, seeds)
    base = search_static(problem.env, problem.params, [problem.table.knob_defaults], seeds)
    best = optimal_throughput(statics, 400.0)
    assert problem.normalisers["optimal_tps"] == pytest.approx(statics.means.mean_tps[best])
    assert problem.normalisers["cost_normaliser"] == pytest.approx(base.means.total_cost[0] / 200)
    scores = score_aggregates(problem.spec, statics.per_seed, problem.normalisers)["score"].mean(axis=1)
    found = search_static(problem.env, problem.params, [problem.best_static.to_dict()], seeds)
    of_found = score_aggregates(problem.spec, found.per_seed, problem.normalisers)["score"].mean()
    assert of_found >= scores.max() and found.worst_oom_share[0] == 0  # it is refined between the grid's nodes


def test_graders_without_normalisers_search_them_on_the_shipped_table() -> None:
    spec = ig.register(spec_of())
    episode = ig.InferenceEnv("night-shift", seed=3)
    for _ in range(5):
        episode.step(ig.ServeAction())
    own = ig.grade(60, episode.episode_log, ig.problem(60).normalisers)
    assert ig.grade(60, episode.episode_log) == own == ig.GraderModule().score(60, episode.episode_log)
    assert ig.verify(60, 3, None, [ig.ServeAction()] * 5, episode.episode_log)["verified"]
    played = ig.evaluate(*ig.make(60), ig.policies.baseline, np.arange(2))
    np.testing.assert_array_equal(ig.grader.score_aggregates(spec, played)["score"], ig.problem(60).score(played))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": 2}, r"task 'night-shift': id = 2: task 2 \('bursty-sharegpt'\) has it; the next free id is"),
        ({"name": "static-uniform"}, "name = 'static-uniform': task 1"),
        ({"title": "Static-uniform"}, None),
        ({"title": "Static Uniform"}, "title = 'Static Uniform': task 1"),
    ],
)
def test_a_task_whose_name_id_or_title_is_taken_is_refused(changes: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert ig.register(spec_of(**changes))
        return
    with pytest.raises(ValueError, match=said):
        ig.register(spec_of(**changes))
    assert "night-shift" not in ig.task_specs()


def test_the_same_task_may_be_registered_again_and_another_of_its_name_after_it_is_forgotten() -> None:
    ig.register(spec_of())
    ig.register(spec_of())
    with pytest.raises(ValueError, match=r"has it; ig.unregister\('night-shift'\) forgets that one"):
        ig.register(spec_of(memory_limit_gb=20))
    ig.unregister("night-shift")
    assert ig.register(spec_of(memory_limit_gb=20)).memory_limit_gb == 20
    with pytest.raises(ValueError, match="'static-uniform': is not registered"):
        ig.unregister(1)
    with pytest.raises(TypeError, match="register: got dict"):
        ig.register({"id": 61})  # type: ignore[arg-type]


def test_a_variant_of_a_shipped_task_has_normalisers_of_its_own() -> None:
    long = {"kind": "uniform", "low": 4096, "high": 8192}
    variant = dataclasses.replace(ig.get_task(1), prompts=long, active_knobs=("batch_size",))
    assert ig.problem(variant).normalisers["optimal_tps"] < 0.8 * ig.problem(1).normalisers["optimal_tps"]


@pytest.mark.slow
def test_an_open_loop_task_of_ones_own_is_served_by_continuous_batching() -> None:
    traffic = {
        "rate": 3.0,
        "sigma": [0.1, 0.1, 0.1],
        "periods": [100, 20, 2],
        "prompt": {"mean": 500.0, "cv": 1.0},
        "output": {"mean": 200.0, "cv": 1.0},
    }
    problem = ig.problem(spec_of(dynamics="open_loop", traffic=traffic, slo_tpot_ms=50.0))
    found = ig.evaluate(problem.env, problem.params, ig.policies.baseline, np.arange(8))
    assert problem.dynamics == "open_loop" and int(problem.params.engine.open_loop) == 1
    assert found.arrivals.mean() == pytest.approx(600, rel=0.15)
    assert 0.0 < problem.score(found).mean() <= 1.0


def test_a_calibration_file_is_written_read_and_made_anew_when_the_task_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.json"
    ig.register(spec_of(), calibration=path)
    entry = json.loads(path.read_text())["tasks"]["night-shift"]
    assert entry["task_digest"] == spec_of().digest and entry["table_digest"] == ig.load_table().digest
    assert ig.problem(60).normalisers["optimal_tps"] == entry["optimal_tps"]
    entry["optimal_tps"] = 4321.0
    path.write_text(json.dumps({"tasks": {"night-shift": entry}}))
    ig.unregister(60)
    search.cache_clear()
    monkeypatch.setattr(known, "_searches", [lambda spec: pytest.fail("searched, though the file has it")])
    ig.register(spec_of(), calibration=path)
    assert ig.problem(60).normalisers["optimal_tps"] == 4321.0
    ig.unregister(60)
    ig.register(spec_of(slo_ttft_ms=(100.0,)), calibration=path)
    entry = json.loads(path.read_text())["tasks"]["night-shift"]
    assert entry["optimal_tps"] != 4321.0 and ig.problem(60).normalisers["optimal_tps"] == entry["optimal_tps"]


@pytest.mark.parametrize("text", ["no json", "[]", '{"tasks": 3}', None])
def test_a_calibration_file_that_is_none_is_refused_and_the_task_is_not_registered(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "bad.json"
    if text is None:
        text = json.dumps(
            {
                "tasks": {
                    "night-shift": {
                        "task_digest": spec_of().digest,
                        "table_digest": ig.load_table().digest,
                        "version": ig.__version__,
                        "optimal_tps": None,
                    }
                }
            }
        )
    path.write_text(text)
    with pytest.raises(ValueError, match=r"calibration = .*bad.json"):
        ig.register(spec_of(), calibration=path)
    assert "night-shift" not in ig.task_specs()


def test_files_of_tasks_are_json_or_python(tmp_path: Path, file: str) -> None:
    (spec,) = ig.register_file(file)
    assert spec == spec_of()
    script = tmp_path / "mine.py"
    script.write_text(
        "import inferencegym_jax as ig\n"
        "for rate in (10.0, 20.0):\n"
        "    ig.register(ig.TaskSpec(name=f'steady-{rate:.0f}', id=100 + int(rate), arrivals={'rate': rate},\n"
        "                            prompts={'kind': 'uniform', 'low': 64, 'high': 512}, slo_ttft_ms=[300]))\n"
    )
    assert [one.name for one in ig.register_file(script)] == ["steady-10", "steady-20"]
    assert [one.name for one in ig.register_file(script)] == ["steady-10", "steady-20"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("no.json", None, "no such file; give a Python or JSON file of tasks"),
        ("a.json", "{", "not a JSON file"),
        ("a.json", "[]", "must be a JSON object"),
        ("a.json", "{}", "registers no task"),
        ("a.json", '{"mine": 3}', "task 'mine' = 3: must be an object"),
        ("a.json", '{"mine": {"id": 1}}', "field 'arrivals' is missing"),
        ("a.py", "x = 1", "registers no task; a Python file calls ig.register"),
        ("a.py", "raise RuntimeError('no idea')", "RuntimeError: no idea"),
        ("a.py", "import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)
def test_a_file_that_is_none_of_tasks_is_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=f"tasks = '.*{name}': .*{said}"):
        ig.register_file(path)


@pytest.mark.ci
def test_the_command_line_compares_policies_on_it(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = "baseline random reactive best_static"
    arguments = ["--tasks-from", file, "compare", "--task", "night-shift", "--policies", names, "-n", "4", "--json"]
    assert run(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["task"] == "night-shift" and list(answer["policies"]) == names.split()
    means = {name: entry["score"]["mean"] for name, entry in answer["policies"].items()}
    assert means["best_static"] == max(means[name] for name in ("baseline", "random", "best_static"))
    assert run(["--tasks-from", file, "tasks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["name"] == "night-shift"
    assert run(["--tasks-from", file, "rollout", "--task", "60", "--policy", "trained", "-n", "2"]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "no trained policy ships for task 60 ('night-shift')" in said and "python -m training train" in said


def test_the_command_line_says_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--tasks-from", str(tmp_path / "absent.json"), "tasks"]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.ci
def test_the_server_lists_plays_and_grades_it(file: str) -> None:
    app = create_app(Settings(redis_url=None, rate_limit="off", tasks_from=(file,), warm_rollouts=False))

    async def ask() -> dict[str, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            reset = await http.post("/reset", json={"task_id": "night-shift", "seed": 1})
            session = reset.json()["session_id"]
            stepped = await http.post("/step", json={"session_id": session, "action": {"batch_size": 64}})
            entry = {"action": {"batch_size": 64, "kv_budget": 1.0}, "metrics": stepped.json()["info"]["metrics"]}
            log = {"task_id": 60, "episode_log": [entry]}
            trained = {"task_id": 60, "seeds": [0], "policy": "trained"}
            return {
                "tasks": await http.get("/tasks"),
                "info": await http.get("/info"),
                "openapi": await http.get("/openapi.json"),
                "session": await http.post("/grader", json={"session_id": session}),
                "log": await http.post("/grader", json=log),
                "best": await http.post("/rollout", json=trained | {"policy": "best_static"}),
                "trained": await http.post("/rollout", json=trained),
            }

    answers = asyncio.run(ask())
    assert "night-shift" in [task["name"] for task in answers["tasks"].json()["tasks"]]
    info = answers["info"].json()
    assert info["trained_policies"]["night-shift"] is False
    assert info["best_static"]["night-shift"] == ig.problem(60).best_static.to_dict()
    schema = answers["openapi"].json()["components"]["schemas"]["ResetRequest"]["properties"]["task_id"]
    assert {60, "night-shift", 1, "static-uniform"} <= set(schema["enum"])
    assert answers["session"].json()["verified"] and answers["log"].json()["score"] > 0
    assert answers["best"].json()["mean_score"] > 0.3
    assert answers["trained"].status_code == 422 and "no trained policy ships" in answers["trained"].json()["detail"]


@pytest.mark.slow
def test_training_takes_the_default_config_and_its_policy_is_one_of_the_task(file: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from training.cli import app

    small = "environments=8 rollout_length=8 minibatches=2 epochs=1 evaluate_every=1 evaluation_episodes=4 hidden=[8]"
    options = [word for pair in small.split() for word in ("--set", pair)]
    words = ["--tasks-from", file, "train", "--task", "night-shift", "--steps", "64", "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [*words, *options])
    assert shown.exit_code == 0, shown.output
    assert task_config(60) == TrainConfig(task="night-shift")
    words = ["--tasks-from", file, "evaluate", "--task", "60", "--policy", str(tmp_path / "run"), "--episodes", "4"]
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert shown.exit_code == 0, shown.output
    answer = json.loads(shown.stdout)
    assert answer["task"] == 60 and 0 <= answer["score"]["mean"] <= 1 and set(answer["paired"]) >= {"best_static"}
    shown = CliRunner().invoke(app, ["--tasks-from", file, "policies", "--task", "60"])
    assert shown.exit_code == 2 and "does not ship" in shown.output.replace("\n", " ")


def test_gymnasium_has_its_id_from_the_moment_it_is_registered() -> None:
    import gymnasium

    import inferencegym_jax.adapters.gymnasium_env  # noqa: F401

    ig.register(spec_of(title="Night Shift (EU)"))
    env = gymnasium.make("inferencegym_jax/NightShiftEU-v0")
    env.reset(seed=1)
    reward = float(env.step(np.zeros(len(KNOBS), np.float32))[1])
    envs = gymnasium.make_vec("inferencegym_jax/NightShiftEU-v0", num_envs=2)
    assert envs.num_envs == 2 and np.isfinite(reward)
    assert env.unwrapped.task_id == 60  # type: ignore[attr-defined]

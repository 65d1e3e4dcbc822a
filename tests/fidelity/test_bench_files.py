"""Results of benchmark tools as people have them: read, or refused by the tool's name, and every field looked at."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from inferencegym_jax.cli.app import app
from inferencegym_jax.fidelity.engine_defaults import engine_defaults, with_defaults
from inferencegym_jax.fidelity.gpu_names import gpu_name
from inferencegym_jax.fidelity.measured_runs import MeasuredRun, RunError, read_measured, read_runs

kernels = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="the measured kernels are not installed"
)

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
VLLM: dict[str, Any] = {
    "date": "20260301-101112", "backend": "vllm", "model_id": MODEL, "num_prompts": 600, "request_rate": 5.0,
    "burstiness": 1.0, "max_concurrency": None, "duration": 122.0, "completed": 600, "failed": 0,
    "total_input_tokens": 307200, "total_output_tokens": 76800, "request_throughput": 4.92, "mean_ttft_ms": 31.0,
    "median_ttft_ms": 29.0, "p99_ttft_ms": 62.0, "mean_tpot_ms": 8.6, "mean_itl_ms": 8.6,
}  # fmt: skip
SGLANG: dict[str, Any] = {
    "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": 5.0, "max_concurrency": None,
    "random_input_len": 512, "duration": 122.0, "completed": 600, "total_input_tokens": 307200,
    "total_output_tokens": 76800, "total_output_tokens_retokenized": 76790, "mean_e2e_latency_ms": 1130.0,
    "mean_ttft_ms": 31.0, "median_ttft_ms": 29.0, "p99_ttft_ms": 62.0, "mean_tpot_ms": 8.6, "mean_itl_ms": 8.7,
    "accept_length": None,
    "server_info": {"model_path": MODEL, "tp_size": 1, "chunked_prefill_size": 8192, "max_running_requests": 512},
}  # fmt: skip


def statistic(unit: str, average: float, **more: float) -> dict[str, Any]:
    return {"unit": unit, "avg": average, **more}


NVIDIA: dict[str, Any] = {
    "request_throughput": statistic("requests/sec", 4.9), "request_latency": statistic("ms", 1130.0),
    "time_to_first_token": statistic("ms", 31.0, p50=29.0, p90=40.0, p99=62.0),
    "inter_token_latency": statistic("ms", 8.6), "request_count": statistic("requests", 600),
    "output_sequence_length": statistic("tokens", 128.0), "input_sequence_length": statistic("tokens", 512.0),
}  # fmt: skip
GENAI_PERF = NVIDIA | {"input_config": {"model": [MODEL], "perf_analyzer": {"stimulus": {"request_rate": 5}}}}
AIPERF = NVIDIA | {
    "input_config": {
        "endpoint": {"model_names": [MODEL]},
        "loadgen": {"request_rate": 5, "request_rate_mode": "poisson"},
    }
}
INFERENCE_PERF: dict[str, Any] = {
    "load_summary": {"count": 600, "requested_rate": 5.0, "achieved_rate": 4.9},
    "successes": {
        "count": 600, "latency": {"request_latency": {"mean": 1.13}, "time_to_first_token": {"mean": 0.031}},
        "prompt_len": {"mean": 512.0}, "output_len": {"mean": 128.0},
    },
    "failures": {"count": 0},
}  # fmt: skip


def written(tmp_path: Path, *reports: Any, name: str = "run.json") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(report) for report in reports))
    return path


@pytest.mark.parametrize(
    ("report", "arrivals", "model"),
    [
        (VLLM, "poisson", MODEL), (SGLANG, "poisson", MODEL), (GENAI_PERF, "constant", MODEL),
        (AIPERF, "poisson", MODEL), (INFERENCE_PERF, "constant", None),
    ],
    ids="vllm sglang genai-perf aiperf inference-perf".split(),
)  # fmt: skip
def test_the_same_run_by_every_tool(tmp_path: Path, report: dict[str, Any], arrivals: str, model: str | None) -> None:
    run = read_runs(written(tmp_path, report))[0]
    assert (run.rate_rps, run.requests, run.mean_prompt_tokens, run.mean_output_tokens) == (5.0, 600, 512.0, 128.0)
    assert (run.arrivals, run.model, run.ttft_mean_ms, run.tp) == (arrivals, model, 31.0, 1)
    assert run.latency_mean_ms == pytest.approx(1130, abs=8) and run.itl_mean_ms == pytest.approx(8.65, abs=0.06)


def test_sglang_says_what_its_server_was_given_and_units_are_read(tmp_path: Path) -> None:
    run = read_runs(written(tmp_path, SGLANG, SGLANG, name="online.jsonl"))[1]
    assert (run.engine, run.max_num_seqs, run.max_num_batched_tokens, run.assumed) == ("sglang", 512, 8192, ())
    seconds = GENAI_PERF | {"request_latency": statistic("s", 1.13)}
    assert read_runs(written(tmp_path, seconds))[0].latency_mean_ms == 1130.0


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"metadata": {}, "benchmarks": [{"metrics": {}}]}, "a result of guidellm"),
        (
            {"results_ttft_s_mean": 0.031, "num_concurrent_requests": 4},
            "a result of llmperf: keeps a number of requests",
        ),
        ([{"hw": "h200", "tp": 8, "conc": 16, "tput_per_gpu": 900.0}], "a result of InferenceX: keeps a number"),
        (INFERENCE_PERF | {"load_summary": {"count": 600}}, "inference-perf without load_summary.requested_rate"),
        (
            NVIDIA | {"input_config": {"perf_analyzer": {"stimulus": {"concurrency": 8}}}},
            "genai-perf without a request rate",
        ),
        (NVIDIA | {"input_config": {"loadgen": {"concurrency": 8}}}, "a result of aiperf without a request rate"),
        ({"hello": 1}, "completed is None and it is no result of a known tool; read are vllm bench serve, SGLang"),
        ([7], "got int; wanted: an object"),
    ],
)
def test_other_tools_are_refused_by_their_name(tmp_path: Path, report: Any, said: str) -> None:
    with pytest.raises(RunError, match=said):
        read_runs(written(tmp_path, report))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"request_rate": 20.0, "max_concurrency": 8}, "max_concurrency is 8, and 20 requests/s of 1.12 s are 22.5"),
        ({"completed": 60, "failed": 540, "total_input_tokens": 30720, "total_output_tokens": 7680}, "90% of its"),
        ({"completed": 60, "total_input_tokens": 30720, "total_output_tokens": 7680}, "90% of its requests failed"),
        ({"burstiness": 0.5}, "burstiness is 0.5; wanted: 1 .Poisson., or at least 100"),
        ({"ramp_up_strategy": "linear"}, "ramp_up_strategy is 'linear'"),
        ({"acceptance_length": 2.4}, "acceptance_length is 2.4: the engine drafted tokens"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2; wanted: 1"),
        ({"dp_size": "4"}, "dp_size is 4; wanted: 1"),
        ({"tp": 4, "tensor_parallel_size": 2}, "tensor_parallel_size is 2, tp is 4; wanted: one number of GPUs"),
        ({"tp": "two"}, "tp is 'two'; wanted: a number above 0"),
        ({"mean_ttft_ms": 0}, "mean_ttft_ms is 0; wanted"),
        ({"request_rate": "trace"}, "request_rate is 'trace'; wanted"),
    ],
)  # fmt: skip
def test_what_contradicts_the_prediction_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        read_runs(written(tmp_path, VLLM | change))


def test_a_cap_that_does_not_bind_and_a_rare_failure_are_no_reason(tmp_path: Path) -> None:
    runs, said = read_measured(
        written(tmp_path, VLLM | {"max_concurrency": 64}, VLLM | {"completed": 598, "failed": 2})
    )
    assert len(runs) == 2 and said == ["note: run.json run 2: 0.33% of its requests failed"]


def test_gaps_between_chunks_are_not_gaps_between_tokens(tmp_path: Path) -> None:
    runs, said = read_measured(written(tmp_path, VLLM | {"mean_itl_ms": 34.4}))
    assert runs[0].itl_mean_ms == pytest.approx(8.6)
    assert "mean_itl_ms is 34.4 a chunk of about 4.0 tokens; mean_tpot_ms, 8.6 a token, is used" in said[0]


@pytest.mark.parametrize("name", ["tp", "tensor_parallel_size", "tp_size", "num_gpus"])
def test_the_number_of_gpus_under_any_of_its_names(tmp_path: Path, name: str) -> None:
    assert read_runs(written(tmp_path, VLLM | {name: "4"}))[0].tp == 4


def test_a_bad_run_leaves_the_others(tmp_path: Path) -> None:
    path = written(tmp_path, VLLM, VLLM | {"completed": 0}, VLLM, name="runs.jsonl")
    path.write_text(path.read_text() + '\n\n{"completed": 6,\n')
    runs, said = read_measured(path)
    assert len(runs) == 2 and len(said) == 2
    assert said[0].startswith("left out: runs.jsonl run 2: completed is 0") and "line 5: not JSON" in said[1]
    header = "model,gpu,rate_rps,mean_prompt_tokens,mean_output_tokens,ttft_mean_ms,latency_mean_ms"
    good, bad = (
        "llama3-8b,H100,5,512,128,31,1130",
        ("llama3-8b,H100,-5,512,128,31,1130", "llama3-8b,H100,5", "a,b,5,1,2,x,4"),
    )
    packed = gzip.compress("\n".join([header, good, *bad, "", good]).replace(",", ";").encode("utf-16"))
    (tmp_path / "runs.csv.gz").write_bytes(packed)
    runs, said = read_measured(tmp_path / "runs.csv.gz")
    assert [run.source for run in runs] == ["runs.csv.gz line 2", "runs.csv.gz line 7"]
    assert [
        "line 3: rate_rps is '-5'" in said[0],
        "line 4: 3 cells" in said[1],
        "line 5: ttft_mean_ms is 'x'" in said[2],
    ]
    assert all("left out" in sentence for sentence in said)
    (tmp_path / "twice.csv").write_text(header + ",rate_rps\n" + good + ",6\n")
    with pytest.raises(RunError, match="the column rate_rps is there twice"):
        read_runs(tmp_path / "twice.csv")
    (tmp_path / "quantile.csv").write_text(header + ",ttft_p99_ms\n" + good + ",soon\n")
    with pytest.raises(RunError, match="line 2: ttft_p99_ms is 'soon'; wanted: a number above 0"):
        read_runs(tmp_path / "quantile.csv")


@pytest.mark.parametrize(
    ("text", "count", "family", "form", "memory"),
    [
        ("NVIDIA H100 80GB HBM3", 1, "h100", "sxm", 80), ("NVIDIA H100 PCIe", 1, "h100", "pcie", None),
        ("NVIDIA H100 NVL", 1, "h100", "nvl", None), ("h100_sxm", 1, "h100", "sxm", None),
        ("H100", 1, "h100", None, None),
        ("A100-PCIE-40GB", 1, "a100", "pcie", 40), ("NVIDIA A100-SXM4-40GB", 1, "a100", "sxm", 40),
        ("NVIDIA GH200 480GB", 1, "gh200", None, 480), ("2xH100", 2, "h100", None, None),
        ("H100x4", 4, "h100", None, None),
        ("8 x NVIDIA H200", 8, "h200", None, None), ("A100:2", 2, "a100", None, None),
        ("gpu-node-3", 1, "", None, None),
        ("NVIDIA L40S", 1, "l40s", None, None), ("H100 * 2", 2, "h100", None, None),
    ],
)  # fmt: skip
def test_names_of_gpus(text: str, count: int, family: str, form: str | None, memory: int | None) -> None:
    assert gpu_name(text) == (count, family, form, memory)


def test_an_engine_chooses_by_gpu_and_version() -> None:
    assert engine_defaults("vllm", None, "NVIDIA H100 80GB HBM3", 85.9)[:2] == (1024, 8192)
    assert engine_defaults("vllm", "0.11.0", "NVIDIA A100-SXM4-80GB", 85.9)[:2] == (256, 2048)
    assert engine_defaults("vllm", "v0.10.1", "NVIDIA L40S", 48.3)[:2] == (256, 2048)
    assert engine_defaults("vllm", "0.27.1", "NVIDIA B200", 193.3)[:2] == (1024, 8192)
    assert engine_defaults("vllm", "0.28.0", "NVIDIA B200", 193.3)[:2] == (1024, 16384)
    assert engine_defaults("vllm", None, "NVIDIA B200", 193.3).words == "those that vLLM since 0.28 chooses"
    assert engine_defaults("vllm", "0.33.0", "NVIDIA H200", 150.1)[:2] == (1024, 8192)
    assert engine_defaults("vllm", "0.32.0", "NVIDIA GB10", 128.0)[:2] == (1024, 8192)
    assert engine_defaults("vllm", "0.33.0", "NVIDIA GB10", 128.0)[:2] == (256, 2048)
    assert engine_defaults("sglang", None, "NVIDIA H200", 150.1)[:2] == (4096, 8192)
    assert engine_defaults("sglang", "0.5.2", "NVIDIA L40S", 48.3)[:2] == (4096, 8192)
    assert engine_defaults("sglang", "0.5.3.post1", "NVIDIA L40S", 48.3)[:2] == (4096, 4096)
    assert engine_defaults("sglang", "v0.5.19", "NVIDIA L4", 24.1)[:2] == (4096, 2048)
    assert engine_defaults("sglang", "0.5.20", "NVIDIA L4", 24.1)[:2] == (4096, 4096)
    assert engine_defaults("sglang", "0.5.23", "NVIDIA B200", 193.3).max_num_batched_tokens == 16384
    with pytest.raises(ValueError, match="engine_version is '0.4.6.post1'.*from SGLang 0.4.8 on"):
        engine_defaults("sglang", "0.4.6.post1", "NVIDIA H200", 150.1)
    with pytest.raises(ValueError, match="engine_version is '0.6.3'.*add them to the run"):
        engine_defaults("vllm", "0.6.3", "NVIDIA H100 80GB HBM3", 85.9)
    with pytest.raises(ValueError, match="engine is 'tgi'; wanted: vllm or sglang"):
        engine_defaults("tgi", None, "NVIDIA H100 80GB HBM3", 85.9)


def test_what_the_file_holds_is_kept_and_what_it_does_not_is_said(tmp_path: Path) -> None:
    plain, half = read_runs(written(tmp_path, VLLM, VLLM | {"max_num_seqs": "64"}))
    run, said = with_defaults(plain, "NVIDIA H100 80GB HBM3", 85.9)
    assert (run.max_num_seqs, run.max_num_batched_tokens) == (1024, 8192)
    assert (
        "not in the file; taken as those that vLLM since 0.9 chooses on NVIDIA H100 80GB HBM3: max_num_seqs 1,024"
        in said[0]
    )
    run, said = with_defaults(half, "NVIDIA H100 80GB HBM3", 85.9)
    assert (run.max_num_seqs, run.max_num_batched_tokens) == (64, 8192) and "max_num_seqs" not in said[0]
    assert with_defaults(run, "NVIDIA H100 80GB HBM3", 85.9) == (run, [])


def resolved(run: MeasuredRun, model: str | None = None, system: str | None = "h100_sxm") -> MeasuredRun:
    from data.engine_table import completed

    return completed(run, model, system)[0]


@kernels
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": "NVIDIA H100 PCIe"}, "another card than the one measured, NVIDIA H100 80GB HBM3"),
        ({"gpu": "A100 40GB"}, "another card than the one measured, NVIDIA A100-SXM4-80GB"),
        ({"gpu": "2xH100"}, "gpu is '2xH100', 2 GPUs"),
        ({"gpu": "NVIDIA B200"}, "gpu is 'NVIDIA B200', which was not measured"),
        ({"dtype": "fp8"}, "dtype=fp8"), ({"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype=fp8_e4m3"),
        ({"model_id": "neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8"}, "FP8 .of the model"),
        ({"model_id": "casperhansen/llama-3-8b-instruct-awq"}, "awq .of the model"),
        ({"model_id": "prod/llama-70b"}, "model is 'prod/llama-70b', not of the size of --model llama3-8b"),
    ],
)  # fmt: skip
def test_runs_of_another_engine_are_refused_whatever_the_options_say(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        resolved(read_runs(written(tmp_path, VLLM | change))[0], "llama3-8b")


@kernels
def test_a_name_of_ones_own_is_the_model_that_is_said(tmp_path: Path) -> None:
    run = read_runs(written(tmp_path, VLLM | {"model_id": "prod-chat", "gpu": "gpu-node-3"}))[0]
    assert resolved(run, "llama3-8b").max_num_seqs == 1024


@kernels
def test_the_command_reads_packed_files(tmp_path: Path) -> None:
    path = tmp_path / "run.json.gz"
    path.write_bytes(gzip.compress(json.dumps(VLLM | {"tp": 3, "note": "x" * 200_000}).encode("utf-16")))
    found = CliRunner().invoke(app, ["validate", str(path), "--system", "h100_sxm"])
    assert found.exit_code == 2 and "left out: run.json.gz run 1: tp = 3" in found.output


@kernels
def test_the_command_says_which_runs_it_leaves_out(tmp_path: Path) -> None:
    path = written(tmp_path, VLLM | {"tp": 3}, VLLM | {"model_id": "meta-llama/Llama-2-7b-hf"}, name="runs.jsonl")
    found = CliRunner().invoke(app, ["validate", str(path), "--model", "llama3-8b", "--system", "h100_sxm"])
    assert found.exit_code == 2 and "left out: runs.jsonl run 1: tp = 3" in found.output
    assert "1 of 2 runs are of another model or GPU than --model or --system" in found.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"duration": 0}, "duration is 0; wanted: a number above 0"),
        ({"completed": 900}, "completed is 900 of num_prompts 600"),
        ({"tp_size": 1.5}, "tp_size is 1.5; wanted: a whole number of GPUs"),
        ({"gpu": ["H100", "H100"]}, "gpu is .*; wanted: a name as in"),
        (
            {"mean_ttft_ms": 0.031, "median_ttft_ms": 0.029},
            "ttft_mean_ms is 0.031, less than any engine takes; is it in",
        ),
        ({"median_ttft_ms": 90.0}, "ttft_p50_ms 90, ttft_p99_ms 62; wanted: quantiles that rise"),
        ({"spec_decode_acceptance_rate": 60.0}, "spec_decode_acceptance_rate is 60.0: the engine drafted tokens"),
    ],
)
def test_runs_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        read_runs(written(tmp_path, VLLM | change))


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (NVIDIA | {"input_config": [1]}, "input_config is .*; wanted: an object as aiperf writes"),
        (NVIDIA | {"input_config": {"perf_analyzer": "x"}}, "input_config: perf_analyzer is 'x'; wanted: an object"),
        (INFERENCE_PERF | {"load_summary": "x"}, "load_summary is 'x'; wanted: an object as inference-perf writes"),
        (INFERENCE_PERF | {"failures": "none"}, "failures is 'none'; wanted: an object"),
    ],
)
def test_fields_of_another_kind_are_named(tmp_path: Path, report: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        read_runs(written(tmp_path, report))


PHASES = [
    {"name": "warmup", "type": "concurrency", "concurrency": 8, "requests": 50, "exclude_from_results": True},
    {"name": "profiling", "type": "poisson", "rate": 5, "requests": 600},
]


def with_phases(phases: Any) -> dict[str, Any]:
    return NVIDIA | {
        "schema_version": "1.5",
        "aiperf_version": "0.13.0",
        "input_config": {"models": {"items": [{"name": MODEL}]}, "phases": phases},
    }


def test_aiperf_of_phases_is_the_same_run(tmp_path: Path) -> None:
    for phases in (PHASES, {phase["name"]: phase for phase in PHASES}):
        run = read_runs(written(tmp_path, with_phases(phases)))[0]
        assert (run.rate_rps, run.arrivals, run.model, run.requests) == (5.0, "poisson", MODEL, 600)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (with_phases([PHASES[0]]), "a result of aiperf without a request rate"),
        (with_phases([*PHASES, PHASES[1]]), "its figures are of 2 phases together; wanted: one rate"),
        (with_phases(["poisson"]), "phases is .*; wanted: objects"),
        (with_phases([{"type": "gamma", "rate": 5}]), "request_rate_mode is 'gamma'; wanted: poisson or constant"),
        (with_phases([PHASES[1] | {"concurrency": 2}]), "max_concurrency is 2, and 5 requests/s"),
        (with_phases([PHASES[1] | {"rate_ramp": 30}]), "request_rate_ramp_duration is 30; wanted: one rate"),
        (with_phases(PHASES) | {"was_cancelled": True}, "was_cancelled is True; wanted: a run to its end"),
        (
            NVIDIA | {"time_to_first_token": {"mean": 31.0, "ci_low": 30.0, "ci_high": 32.0, "unit": "ms"}},
            "figures are of several runs together; wanted: profile_export_aiperf.json",
        ),
        ({"combined": {}, "per_run": []}, "figures are of several runs together"),
        (
            INFERENCE_PERF | {"load_summary": {"requested_rate": 5.0, "achieved_rate": 3.1}},
            "load_summary.achieved_rate is 3.1 where 5 requests/s were asked for: the client did not send",
        ),
        (
            SGLANG | {"server_info": {"disaggregation_mode": "decode"}},
            "disaggregation_mode is 'decode': prefill and decode ran on GPUs of their own",
        ),
        (SGLANG | {"server_info": {"speculative_algorithm": "EAGLE3"}}, "the engine drafted tokens .'EAGLE3'."),
        (VLLM | {"request_rate": "Infinity"}, "request_rate is 'Infinity'; wanted: a finite rate"),
    ],
)
def test_runs_at_no_one_rate_or_of_another_engine_are_refused(
    tmp_path: Path, report: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        read_runs(written(tmp_path, report))


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (VLLM | {"mean_itl_ms": "soon"}, "mean_itl_ms is 'soon'; wanted: a number above 0"),
        (VLLM | {"mean_tpot_ms": [1]}, "mean_tpot_ms is .*; wanted: a number above 0"),
        (VLLM | {"request_rate": 1e30}, "rate_rps is 1e.30; wanted: at most 100000"),
        (VLLM | {"total_input_tokens": 1e30}, "mean_prompt_tokens is 1.6.*; wanted: at most 1e.07"),
        (VLLM | {"tp": 10**30}, "tp is 1.*; wanted: at most 1024"),
        (AIPERF | {"error_request_count": "some"}, "error_request_count is 'some'; wanted: a number above 0"),
        (AIPERF | {"request_count": [1]}, "request_count is .*; wanted: a number above 0"),
        (
            NVIDIA | {"input_config": {"endpoint": "x", "loadgen": {"request_rate": 5}}},
            "input_config: endpoint is 'x'; wanted: an object",
        ),
        (INFERENCE_PERF | {"failures": {"count": "few"}}, "failures.count is 'few'; wanted: a number above 0"),
    ],
)
def test_fields_that_are_no_such_numbers_are_named(tmp_path: Path, report: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said) as failed:
        read_runs(written(tmp_path, report))
    assert len(str(failed.value)) < 400


@pytest.mark.parametrize("cap", ["inf", "None", "-1"])
def test_what_stands_for_no_cap_is_none(tmp_path: Path, cap: str) -> None:
    assert read_runs(written(tmp_path, VLLM | {"max_concurrency": cap}))[0].rate_rps == 5.0


def test_a_latency_that_ttft_and_tpot_do_not_make_is_said(tmp_path: Path) -> None:
    assert read_measured(written(tmp_path, VLLM | {"mean_e2el_ms": 1123.0}))[1] == []
    said = read_measured(written(tmp_path, VLLM | {"mean_e2el_ms": 8000.0}))[1]
    assert "the mean latency is 8000 ms, and TTFT and TPOT of 128 tokens make 1123; the latency is used" in said[0]


def test_what_is_odd_about_a_run_is_said(tmp_path: Path) -> None:
    backends = {"vllm": "vllm", "openai-chat": "vllm", "sglang-oai": "sglang", "tgi": "tgi", "lmdeploy": "lmdeploy"}
    for backend, engine in backends.items():
        assert read_runs(written(tmp_path, VLLM | {"backend": backend}))[0].engine == engine
    assert read_runs(written(tmp_path, VLLM | {"burstiness": float("inf")}))[0].arrivals == "constant"
    for duration in (60.0, 300.0):
        said = read_measured(written(tmp_path, VLLM | {"duration": duration}))[1]
        assert f"duration is {duration:g} s, and 600 requests at 5/s arrive in 120 s: did the client" in said[0]
    cached = read_measured(written(tmp_path, VLLM | {"prefix_cache_hit_rate": 0.9}))[1]
    assert any("prefix_cache_hit_rate is 0.9, and prompts are taken as computed whole" in said for said in cached)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("max_concurrency", "2", "max_concurrency is 2, and 5 requests/s"),
        ("failed", "90", "failed is 90 of 600 requests; wanted: at most 1%"),
        ("spec_length", "4", "spec_length is '4': the engine drafted tokens"),
    ],
)
def test_a_csvs_further_columns_are_looked_at_too(tmp_path: Path, column: str, value: str, said: str) -> None:
    path = tmp_path / "runs.csv"
    head = "requests,rate_rps,mean_prompt_tokens,mean_output_tokens,ttft_mean_ms,latency_mean_ms"
    path.write_text(f"{head},{column}\n600,5,512,128,31,1130,{value}\n600,5,512,128,31,1130,\n")
    runs, said_of = read_measured(path)
    assert len(runs) == 1 and said in said_of[0]

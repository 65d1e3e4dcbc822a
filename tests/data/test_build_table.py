"""The table's builder: agreement with measured runs, the same bytes again, a usable command line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import build_table
from data.check_points import PointsError, check, predicted_tpot_ms, read_points
from data.kernels import KernelDataError, Kernels

ROOT = Path(__file__).resolve().parents[2]
needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="aiconfigurator-core is not installed"
)


# -------------------------------------------------------------------------------------- measured end to end


@needs_kernels
def test_check_reproduces_the_h100_points() -> None:
    result = check(read_points(build_table.MEASURED_POINTS))
    assert result["points"] == 30
    assert result["tpot_error_median"] <= 0.03
    assert result["tpot_error_p90"] <= 0.08


HEADER = "system,backend,backend_version,model_path,isl,osl,batch_size,silicon_ttft_ms,silicon_tpot_ms\n"
POINT = "h100_sxm,trtllm,1.0.0rc3,meta-llama/Llama-3.1-8B-Instruct,1024,128,8.0,190.95,7.94\n"


@needs_kernels
def test_check_measures_the_error_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Points made from the model's own prediction, one of them 25 % off."""
    file = tmp_path / "points.csv"
    file.write_text(HEADER + POINT)
    exact = predicted_tpot_ms(read_points(file)[0])
    rows = [
        POINT.replace("7.94", str(exact)),
        POINT.replace("7.94", str(exact / 1.25)),
        POINT.replace("7.94", str(exact)),
    ]
    file.write_text(HEADER + "".join(rows))
    assert build_table.main(["--check", str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["points"] == 3
    assert result["tpot_error_median"] == pytest.approx(0, abs=1e-9)
    assert result["tpot_error_p90"] == pytest.approx(0.8 * 0.25, rel=1e-6)


@needs_kernels
def test_check_runs_only_what_fits_in_memory() -> None:
    """512 contexts of 10,240 tokens do not fit in 80 GB, so offering more changes nothing."""
    row = {"system": "h100_sxm", "backend": "vllm", "model_path": "llama3-8b", "isl": 8192.0, "osl": 2048.0}
    assert predicted_tpot_ms(row | {"batch_size": 512.0}) == predicted_tpot_ms(row | {"batch_size": 256.0})
    assert predicted_tpot_ms(row | {"batch_size": 8.0}) < predicted_tpot_ms(row | {"batch_size": 16.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns"),
        (HEADER, "has no rows"),
        (HEADER.replace("isl,", ""), "lacks the columns isl"),
        (HEADER + POINT.replace("7.94", "fast"), "line 2: silicon_tpot_ms is 'fast'"),
        (HEADER + POINT.replace("7.94", "nan"), "line 2: silicon_tpot_ms is 'nan'"),
        (HEADER + POINT.replace("8.0", "-8"), "line 2: batch_size is '-8'"),
    ],
)
def test_bad_points_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "points.csv"
    file.write_text(text)
    with pytest.raises(PointsError, match=message):
        read_points(file)


# ------------------------------------------------------------------------------------------- command line


@needs_kernels
def test_rebuild_equals_the_committed_file(tmp_path: Path) -> None:
    """Byte for byte with the pyarrow that wrote it (parquet names its writer), value for value with another."""
    shipped = ROOT / "data" / "traces_llama3_8b.parquet"
    metadata = {k.decode(): v.decode() for k, v in (pq.read_schema(shipped).metadata or {}).items()}
    out = tmp_path / "again.parquet"
    assert build_table.main([*metadata["created_by"].split()[2:], "--out", str(out)]) == 0
    if pq.ParquetFile(shipped).metadata.created_by.endswith(pa.__version__):
        assert out.read_bytes() == shipped.read_bytes()
    assert pq.read_table(out).equals(pq.read_table(shipped), check_metadata=True)


@needs_kernels
def test_arguments_change_the_table_and_its_metadata(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    words = "--system h100_sxm --model llama2-7b --output-length 96 --reference-acceptance 0.5 --cost-scale 0.1".split()
    assert build_table.main([*words, "--out", str(out)]) == 0
    table = pq.read_table(out)
    metadata = table.schema.metadata or {}
    assert table.num_rows == 10_800
    assert metadata[b"kv_bytes_per_token"] == b"524288"
    assert metadata[b"engine"] == b"vllm 0.24.0"
    assert metadata[b"reference_output_length"] == b"96" and metadata[b"reference_acceptance"] == b"0.5"
    assert metadata[b"created_by"].decode().split()[2:] == words
    cost, tps, gpus = (table[c].to_numpy() for c in ("cost_per_1k", "tps", "prefill_disagg"))
    np.testing.assert_allclose(cost * tps, 0.1 * 1000 * (1 + gpus), rtol=1e-5)


@pytest.mark.parametrize("way", [["data/build_table.py"], ["-m", "data.build_table"]])
def test_synthetic_table_needs_no_kernels(tmp_path: Path, way: list[str]) -> None:
    out = tmp_path / "s.parquet"
    block = "import sys; sys.modules['aiconfigurator_core'] = None"
    (tmp_path / "sitecustomize.py").write_text(block)
    command = [sys.executable, *way, "--source", "synthetic", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, env={"PYTHONPATH": str(tmp_path)}, capture_output=True)
    table = pq.read_table(out)
    assert table.column_names == build_table.SCHEMA.names
    assert table.num_rows == 3 * 3 * 2 * 3 * 2 * 8
    plain = {
        n: table[n].to_numpy().astype(float).reshape(3, 3, 2, 3, 2, 8)[:, -1, 0, 0, 0]
        for n in ("ttft_p50_ms", "tpot_ms")
    }
    batch, prompt = np.array([1, 32, 512])[:, None], np.array(build_table.PROMPTS)[None, :]
    np.testing.assert_allclose(plain["tpot_ms"], 10 + 0.05 * batch + 0.001 * prompt, rtol=1e-6)
    np.testing.assert_allclose(plain["ttft_p50_ms"], 20 + 0.1 * batch + 0.1 * prompt, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "there"),
    [(["--system", "tpu"], "a100_sxm, h100_sxm, h200_sxm, l40s"), (["--model", "gpt-9"], "llama2-7b, llama3-8b")],
)
def test_an_unknown_name_lists_what_there_is(
    words: list[str], there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.parquet"
    assert build_table.main([*words, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert words[1] in error and there in error
    assert not out.exists()


@needs_kernels
def test_an_unmeasured_engine_lists_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_table.main(["--engine", "ollama", "--out", str(tmp_path / "t.parquet")]) == 2
    assert "sglang, trtllm, vllm" in capsys.readouterr().err
    with pytest.raises(KernelDataError, match=r"there are \['0\.14\.0'\]"):
        Kernels.load("a100_sxm", "vllm", "9.9", 2039, 312)


def test_list_names_systems_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_table.main(["--list"]) == 0
    text = capsys.readouterr().out
    for name in (
        "a100_sxm",
        "h100_sxm",
        "h200_sxm",
        "l40s",
        "llama3-8b",
        "llama2-7b",
        "qwen2.5-7b",
        "mistral-nemo-12b",
    ):
        assert name in text


@pytest.mark.parametrize(
    "words", [["--output-length", "0"], ["--cost-scale", "nan"], ["--reference-acceptance", "1.5"]]
)
def test_impossible_arguments_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        build_table.main(words)
    assert stop.value.code == 2

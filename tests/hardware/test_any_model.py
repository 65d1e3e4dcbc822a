"""Tables of any model from the package's compiled engine; skipped where the package is not installed."""

import dataclasses
import json

import numpy as np
import pytest

from inferencegym_jax.hardware import Placement, Request, build, compiled_engine, covered, gpus, verdict
from inferencegym_jax.hardware.any_model import engines_of
from inferencegym_jax.hardware.compiled_engine import NotMeasuredError, require_package
from inferencegym_jax.hardware.coverage import verdicts_by_dtype
from inferencegym_jax.hardware.memory import DoesNotFitError
from inferencegym_jax.hardware.model_files import known_configs, model_file, package_folder
from inferencegym_jax.hardware.model_shape import UnknownShapeError, shape_of
from inferencegym_jax.hardware.table_metadata import doubts
from inferencegym_jax.table import LatencyTable, TableError, load_table
from inferencegym_jax.table.vllm_bench import write_table


def _installed() -> bool:
    try:
        require_package()
    except TableError:
        return False
    return True


kernels = pytest.mark.skipif(not _installed(), reason="the extra `tables` (aiconfigurator-core) is not installed")


@pytest.fixture(scope="module")
def llama_70b():
    return build(Request("meta-llama/Llama-3.1-70B", "H100", placement=Placement(tp=4), price_per_gpu_hour=3.0))


@kernels
def test_a_table_says_what_it_rests_on(llama_70b, tmp_path):
    table, about = llama_70b.table, llama_70b.table.metadata
    assert about["kv_bytes_per_token"] == "327680.0" and float(about["kv_bytes_per_token_per_gpu"]) == 81_920
    assert json.loads(about["weights_gb_per_gpu"])["bf16"] == pytest.approx(141.1 / 4, abs=0.1)
    assert about["gpus_per_engine"] == "4" and about["parallelism"] == "TP4"
    assert about["price_per_gpu_hour"] == "3.0" and about["cost_unit"] == "GPU-seconds per 1,000 tokens"
    assert set(json.loads(about["kernel_sources"])) == set(json.loads(about["dtypes"]).values()) >= {"bf16", "fp8"}
    assert about["validated"].startswith("validated: median TPOT error")
    assert about["created_by"] == (
        "inferencegym table build --model meta-llama/Llama-3.1-70B --system H100 --backend vllm --tp 4"
        " --price-per-gpu-hour 3.0"
    )
    write_table(table, tmp_path / "t.parquet")
    again = load_table(tmp_path / "t.parquet")
    assert again == table and again.engine == table.engine


@kernels
def test_the_same_request_gives_the_same_table(llama_70b):
    again = build(Request("meta-llama/Llama-3.1-70B", "H100", placement=Placement(tp=4), price_per_gpu_hour=3.0))
    assert again.table == llama_70b.table and again.table.metadata == llama_70b.table.metadata


@kernels
def test_costs_are_gpu_seconds(llama_70b):
    table: LatencyTable = llama_70b.table
    tps, cost = table.values[..., 3], table.values[..., 5]
    colocated, split = cost[:, :, 0] * tps[:, :, 0], cost[:, :, 1] * tps[:, :, 1]
    np.testing.assert_allclose(colocated, 4 * 1000.0, rtol=1e-5)
    np.testing.assert_allclose(split, 8 * 1000.0, rtol=1e-5)


@kernels
def test_iterations_are_the_packages_own(llama_70b):
    """README of the measurements: 14.9, 16.0, 16.8, 21.7 ms for 1, 8, 32, 128 sequences of 575 tokens."""
    from inferencegym_jax.hardware.steady_state import Point, decode_ms

    profile = dataclasses.replace(llama_70b.table.engine, overhead_ms=0.0)
    found = [decode_ms(profile, Point(n, 575, 2)) for n in (1, 8, 32, 128)]
    np.testing.assert_allclose(found, (14.9, 16.0, 16.8, 21.7), rtol=0.03)


@pytest.mark.ci
@kernels
@pytest.mark.parametrize(
    "request_",
    [
        Request("openai/gpt-oss-120b", "H200", placement=Placement(tp=2)),
        Request("deepseek-ai/DeepSeek-V3", "h200_sxm", "sglang", Placement(tp=8)),
        Request("deepseek-ai/DeepSeek-V3", "h200_sxm", "vllm", Placement(tp=8, ep=8)),
        Request("Qwen/Qwen3-235B-A22B", "b200", "trtllm", Placement(tp=4, ep=4), dtype="fp8", kv_dtype="fp8"),
        Request("Qwen/Qwen3.5-397B-A17B", "b200", "sglang", Placement(tp=8), dtype="fp8"),
        Request("mistralai/Mistral-Nemo-Base-2407", "l40s"),
        Request("meta-llama/Llama-3.1-8B", "a100", "trtllm"),
        Request("meta-llama/Llama-3.1-8B", "rtx_pro_6000_server", dtype="bf16"),
        Request("meta-llama/Llama-3.1-70B", "H100", placement=Placement(tp=4, pp=2), dtype="bf16"),
    ],
    ids=lambda r: f"{r.model.split('/')[-1]}-{r.system}-{r.backend}",
)
def test_dense_experts_and_latent_attention_on_every_kind_of_gpu(request_):
    table = build(request_).table
    assert np.isfinite(table.values).all() and (table.values > 0).all()
    tpot = table.values[0, 0, 0, :, 0, :, 2]
    assert (np.diff(tpot, axis=0) > 0).all() and (np.diff(tpot, axis=1) > 0).all()


@kernels
def test_weights_and_cache_are_what_the_package_counts():
    """Two counts of one model: the formula from its config, and the package's operations (which repeat DeepSeek's
    projections into the latent on every GPU)."""
    for name, cut, dtype in (
        ("meta-llama/Llama-3.1-70B", Placement(tp=4), "bf16"),
        ("deepseek-ai/DeepSeek-V3", Placement(tp=8), None),
        ("Qwen/Qwen3-235B-A22B", Placement(tp=8), "bf16"),
        ("openai/gpt-oss-120b", Placement(tp=2), None),
    ):
        engines = engines_of(Request(name, "h200_sxm", "vllm", cut, dtype))
        (found,) = engines.compiled.values()
        (mine,) = engines.weights_gb.values()
        assert mine == pytest.approx(found.weights_gb(), rel=0.08), name
        if name != "openai/gpt-oss-120b":  # its sliding windows, which the package's linear count leaves out
            assert engines.kv_bytes_per_token == pytest.approx(found.kv_bytes_per_token(2048)), name


@kernels
def test_most_known_configs_have_a_shape_and_none_breaks():
    shapes = {}
    for name in known_configs():
        try:
            shapes[name] = shape_of(model_file(name).config)
        except UnknownShapeError as error:
            assert "no formula here" in str(error)
    assert len(shapes) >= 55
    billions = {name: shape.parameters / 1e9 for name, shape in shapes.items()}
    assert billions["meta-llama/Meta-Llama-3.1-405B"] == pytest.approx(405.9, rel=1e-3)
    assert billions["moonshotai/Kimi-K2-Instruct"] == pytest.approx(1026, rel=2e-3)
    assert billions["Qwen/Qwen3-32B"] == pytest.approx(32.8, rel=3e-3)


@kernels
def test_gpus_are_those_of_the_package():
    import yaml

    folder = package_folder()
    assert folder is not None
    for name, gpu in gpus().items():
        spec = yaml.safe_load((folder / "systems" / f"{name}.yaml").read_text())
        assert gpu.capacity_gb == pytest.approx(spec["gpu"]["mem_capacity"] / 1e9, abs=1e-3)
        assert gpu.bandwidth_gb_s == pytest.approx(spec["gpu"]["mem_bw"] / 1e9)
        assert gpu.kv_link_gb_s == pytest.approx(spec["node"]["intra_node_bw"] / 1e9)
        assert gpu.gpus_per_node == spec["node"]["num_gpus_per_node"]


@kernels
def test_what_was_not_measured_says_what_was():
    with pytest.raises(NotMeasuredError, match="no kernels: .*int4_wo.*available"):
        build(Request("meta-llama/Llama-3.1-8B", "H100", dtype="int4"))
    with pytest.raises(NotMeasuredError, match="fp8"):
        build(Request("meta-llama/Llama-3.1-8B", "A100", dtype="fp8"))  # an A100 has no 8-bit floats


@kernels
def test_a_format_that_was_not_measured_says_which_were():
    with pytest.raises(TableError, match="dtype = fp8: vllm on a100_sxm was measured in bf16; no kernels"):
        build(Request("meta-llama/Llama-2-7b-hf", "A100", dtype="fp8"))
    with pytest.raises(TableError, match="dtype = int4: vllm on h100_sxm was measured in bf16, fp8; no kernels"):
        build(Request("meta-llama/Llama-2-7b-hf", "H100", dtype="int4"))


@kernels
def test_extrapolated_kernels_are_named():
    built = build(Request("meta-llama/Llama-3.1-8B", "H100", dtype="fp8"))
    sources = json.loads(built.table.metadata["kernel_sources"])["fp8"]
    assert sources["estimated"] > 0.2
    assert any("is computed by aiconfigurator-core" in notice for notice in built.notices)
    assert not any("is computed" in n for n in build(Request("meta-llama/Llama-3.1-8B", "H100", dtype="bf16")).notices)


def test_what_does_not_fit_is_refused_before_kernels_are_read(monkeypatch):
    def no_kernels(*_):
        raise AssertionError("read kernels")

    monkeypatch.setattr(compiled_engine, "compiled", no_kernels)
    with pytest.raises(DoesNotFitError, match="2 would do: --tp 2"):
        build(Request("meta-llama/Llama-2-70b-hf", "H100", dtype="bf16"))
    with pytest.raises(DoesNotFitError, match="would do"):
        build(Request("meta-llama/Llama-2-70b-hf", "b60"))


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(compiled_engine, "package_folder", lambda: None)
    with pytest.raises(TableError, match=r"pip install 'inferencegym-jax\[tables\]'"):
        build(Request("meta-llama/Llama-2-7b-hf", "H100"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"backend": "tgi"}, "backend = 'tgi': must be one of vllm, trtllm, sglang"),
        ({"dtype": "fp16"}, "dtype = 'fp16': must be one of bf16"),
        ({"kv_dtype": "int4"}, "kv_dtype = 'int4': must be one of bf16, fp8, int8"),
        ({"output_length": float("nan")}, "output_length = nan"),
        ({"acceptance": 1.5}, "acceptance = 1.5"),
        ({"price_per_gpu_hour": -1.0}, "price_per_gpu_hour = -1.0"),
        ({"placement": Placement(tp=5)}, "tp = 5: must divide the 32 attention heads"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(TableError, match=message):
        build(dataclasses.replace(Request("meta-llama/Llama-2-7b-hf", "H100"), **change))


@kernels
def test_the_list_holds_models_systems_backends_and_verdicts():
    found = covered()
    assert {one.system for one in found} >= {"a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "gb200", "l40s"}
    assert {one.backend for one in found} == {"vllm", "trtllm", "sglang"}
    assert len({one.model for one in found}) > 50
    (one,) = covered("h100_sxm", "meta-llama/Llama-3.1-70B", "vllm")
    assert one.dtypes[:2] == ("bf16", "fp8") and one.verdict.validated
    with pytest.raises(TableError, match="nothing is measured of Llama-2-7b, h100_sxm"):
        covered("h100_sxm", "Llama-2-7b")
    with pytest.raises(TableError, match="measured of Qwen3-32; near Qwen3-32 are .*Qwen/Qwen3-32B.*table list"):
        covered(model="Qwen3-32")
    with pytest.raises(TableError, match="nothing is measured of zzz; `inferencegym table list`"):
        covered(model="zzz")


def test_a_median_above_a_fifth_is_not_validated():
    bad = verdict("openai/gpt-oss-120b", "b200_sxm", "trtllm")
    assert bad.validated is False and bad.text.startswith("not validated: median TPOT error")
    assert verdict("meta-llama/Llama-3.1-70B-Instruct", "h200_sxm", "vllm").validated is True
    assert verdict("meta-llama/Llama-3.1-70B", "l40s", "vllm").validated is None


def test_each_weight_format_has_a_verdict_of_its_own():
    one = ("meta-llama/Llama-3.1-70B", "b200_sxm", "trtllm")
    assert verdict(*one).validated is True and verdict(*one, "fp8").validated is True
    assert verdict(*one, "fp4").validated is False  # 23 % of its own points, 10 % of all
    assert verdict(*one, "fp4").text.startswith("not validated in fp4: median TPOT error")
    unseen = verdict(*one, "bf16")
    assert unseen.validated is None and unseen.text.startswith(
        "not compared with measurements in bf16; in fp4, fp8: median"
    )
    # all together decide too: where they are not validated, no format of them is
    pooled = verdict("openai/gpt-oss-120b", "b200_sxm", "trtllm")
    assert pooled.validated is False and verdict("openai/gpt-oss-120b", "b200_sxm", "trtllm", "bf16").validated is False
    assert {name: by.validated for name, by in verdicts_by_dtype(*one).items()} == {"fp4": False, "fp8": True}


def test_an_answer_doubts_the_format_that_it_recommends():
    about = {"validated": "validated: 10%", "dtypes": '{"0": "bf16", "1": "fp8", "2": "fp4"}'}
    about |= {"validated_by_dtype": '{"bf16": "not compared", "fp8": "validated in fp8: 4%", "fp4": "not validated"}'}
    assert [doubts(about, tier) for tier in (0, 1, 2)] == [["not compared"], [], ["not validated"]]
    assert doubts({"validated": "not validated: 30%"}, 0) == ["not validated: 30%"]  # of a table built before
    assert doubts({}, 0) == []  # that is not of this kind

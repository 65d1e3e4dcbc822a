"""What fits, what is refused and with which number of GPUs; prices and their units."""

import dataclasses
import re

import pytest

from inferencegym_jax.hardware import DoesNotFitError, Placement, gpu_named, gpus
from inferencegym_jax.hardware.dtypes import DTYPES, dtype_named
from inferencegym_jax.hardware.gpus import money_per_million_tokens, price_of
from inferencegym_jax.hardware.memory import checked_placement, fitting, least_tokens, plan, runtime_gb, smallest
from inferencegym_jax.hardware.model_files import model_file
from inferencegym_jax.hardware.model_shape import shape_of
from inferencegym_jax.table import TableError
from tests.hardware.test_model_shape import DEEPSEEK_V3, GPT_OSS_120B, LLAMA_70B, MIXTRAL


def test_a_70b_on_one_h100_is_refused_with_the_number_that_would_do():
    with pytest.raises(DoesNotFitError) as refused:
        fitting(shape_of(LLAMA_70B), gpu_named("H100"), dtype_named("bf16"), "bf16", Placement(), "Llama-3.1-70B")
    text = str(refused.value)
    assert "does not fit one NVIDIA H100 80GB HBM3: 141.1 GB of weights" in text
    assert "2 would do: --tp 2" in text


@pytest.mark.parametrize("config", [LLAMA_70B, DEEPSEEK_V3, GPT_OSS_120B, MIXTRAL])
@pytest.mark.parametrize("system", ["h100_sxm", "h200_sxm", "b200_sxm", "l40s", "gb200"])
@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int4"])
def test_the_smallest_number_fits_and_half_of_it_does_not(config, system, dtype):
    shape, gpu = shape_of(config), gpu_named(system)
    found = smallest(shape, gpu, DTYPES[dtype], "bf16")
    assert found is not None and found.pool_tokens >= least_tokens(shape)
    assert found.weights_gb + found.runtime_gb < gpu.memory_gb
    cut = found.placement
    if cut.pp > 1:
        fewer = dataclasses.replace(cut, pp=cut.pp - 1)
    elif cut.tp > 1:
        fewer = dataclasses.replace(cut, tp=cut.tp // 2)
    else:
        return
    assert plan(shape, gpu, DTYPES[dtype], "bf16", fewer).pool_tokens < least_tokens(shape)
    with pytest.raises(DoesNotFitError, match=f"{cut.gpus} would do"):
        fitting(shape, gpu, DTYPES[dtype], "bf16", fewer, "it")


def test_a_pool_is_what_weights_and_runtime_leave():
    gpu, shape = gpu_named("h100_sxm"), shape_of(LLAMA_70B)
    found = fitting(shape, gpu, dtype_named("fp8"), "fp8", Placement(tp=4), "it")
    assert found.pool_tokens == pytest.approx((80 - found.weights_gb - found.runtime_gb) * 1e9 / 40_960)
    taken = 0.92 * gpu.capacity_gb  # vLLM's gpu_memory_utilization
    assert found.room_gb == pytest.approx(taken - found.weights_gb - 2.5 - 0.4, abs=1e-6)
    assert runtime_gb(gpu, Placement()) == pytest.approx(80 - taken + 2.5)


@pytest.mark.parametrize(
    "placement, shape, message",
    [
        (Placement(tp=3), LLAMA_70B, "tp = 3: must divide the 64 attention heads"),
        (Placement(tp=0), LLAMA_70B, "tp = 0: must be a whole number from 1 to 256"),
        (Placement(tp=2.5), LLAMA_70B, "tp = 2.5: must be a whole number"),  # pyright: ignore[reportArgumentType]
        (Placement(pp=81), LLAMA_70B, "pp = 81: must be at most the 80 layers"),
        (Placement(ep=2), LLAMA_70B, "ep = 2: must divide tp x dp = 1"),
        (Placement(tp=2, ep=2), LLAMA_70B, "ep = 2: must be 1, the model has no experts"),
        (Placement(dp=2), LLAMA_70B, "dp = 2: must be 1"),
        (Placement(tp=16, ep=16), MIXTRAL, "ep = 16: must divide the 8 experts"),
        (Placement(tp=64, pp=8), LLAMA_70B, "tp x pp x dp = 512: must be at most 256 GPUs"),
    ],
)
def test_a_cut_that_cannot_be_is_named(placement, shape, message):
    with pytest.raises(TableError, match=re.escape(message)):
        checked_placement(placement, shape_of(shape))


def test_a_gpu_is_known_by_several_names():
    for name in ("h100_sxm", "H100", "NVIDIA H100 80GB HBM3", "h100-sxm"):
        assert gpu_named(name).system == "h100_sxm"
    assert gpu_named("NVIDIA A100-SXM4-80GB").system == "a100_sxm"
    with pytest.raises(TableError, match="system = 'B100': no such GPU; measured are a100_sxm"):
        gpu_named("B100")


@pytest.mark.parametrize("gpu", gpus().values(), ids=list(gpus()))
def test_every_price_has_a_source_and_a_date(gpu):
    stated = (gpu.price_source, gpu.price_date)
    if gpu.price_per_gpu_hour is None:
        assert stated == (None, None)
        assert "--price-per-gpu-hour" in price_of(gpu).source
    else:
        assert 0.1 < gpu.price_per_gpu_hour < 20
        assert gpu.price_source and re.fullmatch(r"20\d\d-\d\d-\d\d", str(gpu.price_date))
        assert price_of(gpu).source == f"{gpu.price_source}, {gpu.price_date}"
    assert price_of(gpu, 2.5).per_gpu_hour == 2.5 and price_of(gpu, 2.5).source == "stated"


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(TableError, match="price_per_gpu_hour = .*must be a finite number above 0"):
        price_of(gpu_named("h100"), price)


def test_money_per_million_tokens():
    # 1,000 tokens/s on one GPU at 3.60 dollars an hour: 1 GPU-second a 1,000 tokens, a tenth of a cent each
    assert money_per_million_tokens(1.0, 3.60) == pytest.approx(1.0)


def test_shipped_configs_have_a_shape():
    for name, layers in (
        ("Llama-2-7b-hf", 32),
        ("codellama/CodeLlama-34b-Instruct-hf", 48),
        ("Mistral-Nemo-Base-2407", 40),
    ):
        assert shape_of(model_file(name).config).layers == layers

"""Build the engine profile of a latency table: what an iteration of a continuous-batching engine costs, as numbers.

    python data/engine_profile.py                                      # data/traces_llama3_8b.engine.json
    python data/engine_profile.py --system h100_sxm --model llama2-7b --out mine.engine.json

Data flow: measured kernels -> forward passes (`step_time`) -> values at fixed nodes -> JSON. Open-loop tasks read the
profile beside their table; `docs/tables.md` describes the format. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.activation_quantisation import UNFUSED, products_ms  # noqa: E402
from data.kernels import PACKAGE, PACKAGE_VERSION, KernelDataError  # noqa: E402
from data.serving_model import RUNTIME_GB  # noqa: E402
from data.step_time import (  # noqa: E402
    ITERATION_TOKEN_BUDGET,
    TIERS,
    StepTimes,
    UnknownNameError,
    models,
    padding_envelope,
    systems,
)
from inferencegym_jax.table import EngineProfile, TableError  # noqa: E402

DEFAULT_OUT = ROOT / "data" / "traces_llama3_8b.engine.json"

# fmt: off
PRODUCT_TOKENS = (1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
DECODE_SEQUENCES = (1, 2, 4, 8, 16, 32, 33, 34, 36, 38, 40, 42, 44, 46, 48, 52, 56, 60, 64, 68, 72, 80, 96, 128, 256,
                    272, 288, 320, 384, 512)
DECODE_CONTEXTS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 6144, 7168, 8192,
                   10240, 12288, 14336, 16384, 24576, 32768)
PREFILL_TOKENS = (0, 1, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 10240, 12288, 16384, 18432,
                  20480, 22528, 24576, 26624, 28672, 30720, 32768)
# fmt: on

HOST_LINK_GB_S = 25.0
QUALITY_LOSS = (0.0, 0.005, 0.03)
ACCEPTANCE = {"coding": [1, 1.83, 2.43, 3.24, 3.77], "chat": [1, 1.5, 1.75, 2.0, 2.1]}
SPEC_LENGTHS = (0, 1, 2, 4, 8)
CONSTANTS = ROOT / "data" / "engine_constants.json"  # fitted by calibrate_engine.py

NOTES = {
    "memory_gb": "the memory that the GPU is sold with; nvidia-smi shows 7 % more, vLLM takes 90 % of that by default",
    "overhead_ms": "fitted with path_ms on three runs of Llama-2-7B, vLLM, one H100: data/engine_constants.json",
    "overhead_ms_per_sequence": "0: the residuals of the three runs do not rise with the number that run",
    "first_token_extra_iterations": "p50 of TTFT over ITL is 2.6 to 2.8 in the measured runs, whatever prompt and rate",
    "runtime_gb": "runtime, CUDA graphs and activations of vLLM; an assumption",
    "host_link_gb_s": "weights over PCIe 4.0 x16, as measured on loading",
    "quality_loss": "recovery of Llama-3.1-8B-Instruct on the model cards of RedHatAI (W8A8 INT8: OpenLLM v1 100.3 %, "
    "HumanEval 99.7, MMLU 99.3; W4A16: 98.9, 99.7, 97.9, Arena-Hard 93.0), rounded to a price",
    "draft_share": "fitted on 12 measured iterations of Llama-3.1-8B with EAGLE-1 and EAGLE-3 drafts: "
    "data/engine_constants.json",
    "acceptance_lengths": "coding: EAGLE-3 on Kimi-K2.5, thinking on, vLLM on B300, InferenceX golden_al_distribution "
    "(Apache-2.0); chat: assumed",
}


def rounded(values: Any) -> Any:
    """`values` as nested lists, to six significant digits: a tenth of a microsecond of a 100 ms iteration."""
    if isinstance(values, (list, tuple, np.ndarray)):
        return [rounded(v) for v in values]
    return float(f"{float(values):.6g}")


def monotone(values: np.ndarray) -> np.ndarray:
    """The largest array that rises along each of its axes and lies nowhere above `values`.

    See `padding_envelope` in `step_time`: work may be padded to a larger measured size.
    """
    for axis in range(values.ndim):
        values = np.moveaxis(padding_envelope(np.moveaxis(values, axis, 0)), 0, axis)
    return values


def profile(times: StepTimes) -> dict[str, Any]:
    """The profile of one model on one GPU, as the JSON holds it."""
    gpu, arch = systems()[times.system], times.arch
    constants = json.loads(CONSTANTS.read_text())
    products = [padding_envelope(np.array([products_ms(times, m, tier) for m in PRODUCT_TOKENS])) for tier in TIERS]
    attention = np.array([[times.decode_attention_ms(b, c) for c in DECODE_CONTEXTS] for b in DECODE_SEQUENCES])
    prefill = np.array([times.prefill_attention_ms(p) if p else 0.0 for p in PREFILL_TOKENS])
    return {
        "format": 1,
        "model": models()[arch.name]["title"],
        "gpu": gpu["title"],
        "engine": f"{times.kernels.engine} {times.kernels.version}",
        "source": f"{PACKAGE} {PACKAGE_VERSION}: measured kernels of {times.system}, by data/engine_profile.py",
        "licence": "Apache-2.0",
        "memory_gb": gpu["rated_memory_gb"],
        "bandwidth_gb_s": gpu["bandwidth_gb_s"],
        "runtime_gb": RUNTIME_GB,
        "kv_bytes_per_token": arch.kv_bytes_per_token,
        "host_link_gb_s": HOST_LINK_GB_S,
        "price_per_gpu_hour": None,
        "weights_gb": rounded([arch.weight_bytes(tier) / 1e9 for tier in TIERS]),
        "quality_loss": list(QUALITY_LOSS),
        "overhead_ms": constants["overhead_ms"],
        "overhead_ms_per_sequence": 0.0,
        "path_ms": constants["path_ms"],
        "first_token_extra_iterations": 1,
        "products_ms": {"tokens": list(PRODUCT_TOKENS), "ms": rounded(products)},
        "head_ms": {"tokens": list(PRODUCT_TOKENS), "ms": rounded([times.head_ms(m) for m in PRODUCT_TOKENS])},
        "decode_attention_ms": {
            "sequences": list(DECODE_SEQUENCES),
            "context": list(DECODE_CONTEXTS),
            "ms": rounded(monotone(attention)),
        },
        "prefill_attention_ms": {"tokens": list(PREFILL_TOKENS), "ms": rounded(monotone(prefill))},
        "tokens_per_iteration": ITERATION_TOKEN_BUDGET,
        "draft_share": constants["draft_share"],
        "spec_lengths": list(SPEC_LENGTHS),
        "acceptance_lengths": ACCEPTANCE,
        "notes": NOTES | {"products_ms": "; ".join(products_note(times, tier) for tier in TIERS)},
    }


def products_note(times: StepTimes, tier: str) -> str:
    """Where a tier's products come from, in words."""
    converted = times.tier_dtypes[tier].get("dtype") == UNFUSED
    added = ", and quantising inputs and dequantising outputs by data/activation_quantisation.py" if converted else ""
    return f"{tier}: {times.describe_tier(tier)}{added}"


def write_profile(times: StepTimes, out: Path) -> None:
    """Check the profile and write it.

    Raises:
        TableError: it cannot be used: the model's weights do not fit the GPU.
    """
    out.write_text(EngineProfile.from_dict(profile(times), str(out)).to_json())
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--system", default="a100_sxm", help="GPU of systems.json (default %(default)s)")
    p.add_argument("--model", default="llama3-8b", help="model of models.json (default %(default)s)")
    p.add_argument("--out", type=Path, default=DEFAULT_OUT, help="file to write (default %(default)s)")
    args = p.parse_args(argv)
    try:
        write_profile(StepTimes.load(args.system, args.model), args.out)
    except (UnknownNameError, KernelDataError, TableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

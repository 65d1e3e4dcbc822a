"""What W8A8 INT8 adds to the measured matrix products: quantising their inputs, dequantising their outputs.

    python data/activation_quantisation.py        # the throughput that it predicts against the one that was measured

The A100's INT8 products (TensorRT-LLM's `sq`) are measured with 8-bit inputs that are already there. An engine makes
them first: one kernel before each product reads its input at 16 bits and writes it at 8. In the engine whose throughput
was measured the product then writes INT32 accumulators, which a second kernel reads and writes at 16 bits. Both are
bound by the memory, so for m tokens and a product of n outputs from k inputs

    time = 2 launches + m (3 k + 8 n) bytes / (share x bandwidth)

Input: 2 bytes read, 1 written. Output: 2 bytes more written by the product, 4 read, 2 written. The share and the launch
are those of vLLM 0.24.0's own quantisation kernel, measured on an H100 (`measured_kernel`); nothing is fitted to the
throughput. Newer engines dequantise inside the product; for them the outputs' 8 n bytes are too much, and INT8 gains
more than the profile says (`--json` shows both).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.kernels import KernelDataError, data_root  # noqa: E402
from data.serving_model import RUNTIME_GB  # noqa: E402
from data.step_time import ITERATION_TOKEN_BUDGET, StepTimes, systems  # noqa: E402

LAUNCH_MS = 0.0036  # of the measured kernel; the package itself takes 3 us for any small kernel
BANDWIDTH_SHARE = 0.75  # of the peak, which the measured kernel reaches on large inputs
INPUT_BYTES = 2 + 1
OUTPUT_BYTES = 2 + 4 + 2
KERNELS = 2  # a product: one before, one behind
UNFUSED = "sq"  # dtype of the A100's INT8 products; the FP8 ones of newer GPUs are quantised in fused kernels

PUBLISHED = {
    "source": "vLLM pull request 1508, comment of 2023-12-13: Llama-13B, one A100, 640 in, 100 out, 14 requests/s",
    "fp16_tokens_per_s": 574.3673,
    "int8_tokens_per_s": 740.8307,
}
MODEL, PROMPT, OUTPUT = "llama2-13b", 640.0, 100.0
MEMORY_SHARE, MAX_NUM_SEQS = 0.9, 256  # vLLM's defaults


def measured_kernel() -> tuple[float, float]:
    """Launch (ms) and share of the peak bandwidth of vLLM 0.24.0's dynamic quantisation to 8 bits on an H100.

    The package splits the kernel in two files, the scale and the rest; their sum is the kernel. Launch: the median at
    one token over inputs of 4,096 to 16,384. Share: 3 m k bytes over the time, the median from 4,096 tokens up.
    """
    folder = data_root() / "h100_sxm" / "quantize" / "vllm" / "0.24.0"
    total: dict[tuple[int, int], float] = {}
    for name in ("computescale", "scale_matrix"):
        for row in pq.read_table(folder / f"{name}_perf.parquet").to_pylist():
            key = (row["m"], row["k"])
            total[key] = total.get(key, 0.0) + row["latency"]
    peak = systems()["h100_sxm"]["bandwidth_gb_s"] * 1e6
    wide = {(m, k): ms for (m, k), ms in total.items() if 4096 <= k <= 16384}
    launch = float(np.median([ms for (m, _), ms in wide.items() if m == 1]))
    shares = [INPUT_BYTES * m * k / ms / peak for (m, k), ms in wide.items() if m >= 4096]
    return launch, float(np.median(shares))


def conversion_ms(times: StepTimes, tokens: float, outputs: bool = True) -> float:
    """All layers' conversions around INT8 products of `tokens` tokens; without `outputs` the inputs' only."""
    bandwidth = BANDWIDTH_SHARE * systems()[times.system]["bandwidth_gb_s"] * 1e6
    moved = sum(INPUT_BYTES * k + OUTPUT_BYTES * n * outputs for n, k in times.arch.layer_products)
    launches = (KERNELS if outputs else 1) * len(times.arch.layer_products) * LAUNCH_MS
    return times.arch.layers * (launches + tokens * moved / bandwidth)


def products_ms(times: StepTimes, tokens: float, tier: str) -> float:
    """Matrix products of all layers with what quantised activations need; `StepTimes.layers_ms` for other tiers."""
    plain = times.layers_ms(tokens, tier)
    return plain + conversion_ms(times, tokens) if times.tier_dtypes[tier].get("dtype") == UNFUSED else plain


def saturated_tps(times: StepTimes, tier: str, products: Callable[[float], float], overhead_ms: float) -> float:
    """Output tokens/s of an engine that always has requests waiting: as many run as its KV pool holds.

    TPOT = c + products(n) + head(n) + attention(n, P + O / 2) + (n / O) p, with p the products of a prompt's tokens in
    iterations filled to the token budget, and its attention.
    """
    gpu = systems()[times.system]
    free_gb = MEMORY_SHARE * gpu["memory_gb"] - times.arch.weight_bytes(tier) / 1e9 - RUNTIME_GB
    running = min(free_gb * 1e9 / times.arch.kv_bytes_per_token / (PROMPT + OUTPUT / 2), MAX_NUM_SEQS)
    chunk = ITERATION_TOKEN_BUDGET - running
    prompt = PROMPT / chunk * (products(ITERATION_TOKEN_BUDGET) - products(running)) + times.prefill_attention_ms(
        PROMPT
    )
    decode = products(running) + times.head_ms(running) + times.decode_attention_ms(running, PROMPT + OUTPUT / 2)
    return 1000 * running / (overhead_ms + decode + running / OUTPUT * prompt)


def check(overhead_ms: float) -> dict[str, Any]:
    """Throughput ratio of INT8 over FP16, predicted in three ways and measured."""
    times = StepTimes.load("a100_sxm", MODEL)
    base = saturated_tps(times, "FP16", lambda m: times.layers_ms(m, "FP16"), overhead_ms)
    ways: dict[str, Callable[[float], float]] = {
        "products_alone": lambda m: times.layers_ms(m, "INT8"),
        "inputs_quantised": lambda m: times.layers_ms(m, "INT8") + conversion_ms(times, m, outputs=False),
        "inputs_and_outputs": lambda m: products_ms(times, m, "INT8"),
    }
    ratios = {name: saturated_tps(times, "INT8", way, overhead_ms) / base for name, way in ways.items()}
    launch, share = measured_kernel()
    return {
        "measured": PUBLISHED["int8_tokens_per_s"] / PUBLISHED["fp16_tokens_per_s"],
        **ratios,
        "fp16_tokens_per_s": base,
        "launch_ms": launch,
        "bandwidth_share": share,
        "source": PUBLISHED["source"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--overhead", type=float, default=2.5, help="ms an iteration outside kernels (default %(default)s)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    args = p.parse_args(argv)
    try:
        result = check(args.overhead)
    except KernelDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(result))
        return 0
    print(result["source"])
    print(f"INT8 over FP16, tokens/s: measured {result['measured']:.3f}; predicted from")
    print(f"  products alone                          {result['products_alone']:.3f}")
    print(f"  and inputs quantised                    {result['inputs_quantised']:.3f}")
    print(f"  and outputs dequantised (the profile's) {result['inputs_and_outputs']:.3f}")
    measured = f"{1000 * result['launch_ms']:.1f} us and {result['bandwidth_share']:.2f} of the peak bandwidth"
    print(f"kernel measured on an H100: {measured}; taken: {1000 * LAUNCH_MS:.1f} us and {BANDWIDTH_SHARE:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

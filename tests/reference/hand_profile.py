"""An engine profile with round numbers, so that a run can be followed by hand.

An iteration takes 2 (overhead) + 8 + 0.01 x tokens (products) + 0.5 (head, if anything is sampled) + 0.0001 x tokens
held by those that decode (attention) + A(end) - A(first) for each prompt chunk, A(t) = 0.002 t up to 1,000 tokens and
0.006 t - 4 beyond. A draft step costs a tenth of products, head and attention of the requests that decode.
"""

from __future__ import annotations

from typing import Any

CORNERS = {"sequences": [1, 1024], "context": [0, 100_000]}


def hand_profile(pool: int = 100_000, **values: Any) -> dict[str, Any]:
    """The profile with a pool of so many tokens; `values` replace entries."""
    attention = [[0.0001 * n * context for context in CORNERS["context"]] for n in CORNERS["sequences"]]
    return {
        "memory_gb": 10 + 1 + pool / 1000,
        "weights_gb": [10.0, 6.0, 4.0],
        "runtime_gb": 1.0,
        "kv_bytes_per_token": 1e6,
        "overhead_ms": 2.0,
        "overhead_ms_per_sequence": 0.0,
        "path_ms": 3.0,
        "products_ms": {"tokens": [0, 8192], "ms": [[8.0, 8.0 + 81.92], [4.0, 4.0 + 81.92], [4.0, 4.0 + 163.84]]},
        "head_ms": {"tokens": [1, 8192], "ms": [0.5, 0.5]},
        "decode_attention_ms": CORNERS | {"ms": attention},
        "prefill_attention_ms": {"tokens": [0, 1000, 2000], "ms": [0.0, 2.0, 8.0]},
        "tokens_per_iteration": 2048,
        "draft_share": 0.1,
        "spec_lengths": [0, 1, 2, 4],
        "acceptance_lengths": {"coding": [1, 1.8, 2.4, 3.2], "chat": [1, 1.5, 1.75, 2.0], "exact": [1, 2, 3, 5]},
    } | values


def equal_iterations(ms: float) -> dict[str, Any]:
    """Every iteration takes `ms`, whatever is in it."""
    return hand_profile(
        overhead_ms=ms,
        path_ms=0.0,
        products_ms={"tokens": [0, 8192], "ms": [[0.0, 0.0]] * 3},
        head_ms={"tokens": [1, 8192], "ms": [0.0, 0.0]},
        decode_attention_ms=CORNERS | {"ms": [[0.0, 0.0], [0.0, 0.0]]},
        prefill_attention_ms={"tokens": [0, 1000], "ms": [0.0, 0.0]},
    )

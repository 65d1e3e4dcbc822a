"""From a compiled engine to the curves of an engine profile: every curve at fixed nodes, none of them falling.

``CompiledEngine -> curves``; ``any_model`` puts them beside memory, price and constants into an ``EngineProfile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inferencegym_jax.hardware.compiled_engine import CompiledEngine

# fmt: off
PRODUCT_TOKENS = (1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536,
                  2048, 3072, 4096, 8192)
DECODE_SEQUENCES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
DECODE_CONTEXTS = (16, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576,
                   32768)
PREFILL_TOKENS = (0, 1, 16, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576,
                  32768)
# fmt: on


def rising(values: np.ndarray) -> np.ndarray:
    """The largest array that falls along none of its axes and lies nowhere above ``values``.

    A batch may be padded to a larger measured one, as engines do for their captured graphs, so m tokens take at most
    the time of any larger measured m.
    """
    for axis in range(values.ndim):
        flipped = np.flip(values, axis)
        values = np.flip(np.minimum.accumulate(flipped, axis), axis)
    return values


def rounded(values: Any) -> Any:
    """Nested lists with six significant digits."""
    if isinstance(values, list | tuple | np.ndarray):
        return [rounded(value) for value in values]
    return float(f"{float(values):.6g}")


def products(engine: CompiledEngine) -> np.ndarray:
    """ms at ``PRODUCT_TOKENS``."""
    return rising(np.array([engine.products_ms(tokens) for tokens in PRODUCT_TOKENS]))


def curves(engines: Sequence[CompiledEngine]) -> dict[str, Any]:
    """The four curves of a profile, JSON-ready.

    Args:
        engines: one for each weight format FP16, INT8, INT4; head and attention are those of the first.
    """
    first = engines[0]
    head = np.array([first.head_ms(tokens) for tokens in PRODUCT_TOKENS])
    decode = np.array([[first.decode_attention_ms(n, c) for c in DECODE_CONTEXTS] for n in DECODE_SEQUENCES])
    prefill = np.array([first.prefill_attention_ms(tokens) if tokens else 0.0 for tokens in PREFILL_TOKENS])
    unique = {id(engine): products(engine) for engine in engines}
    return {
        "products_ms": {"tokens": list(PRODUCT_TOKENS), "ms": rounded([unique[id(engine)] for engine in engines])},
        "head_ms": {"tokens": list(PRODUCT_TOKENS), "ms": rounded(rising(head))},
        "decode_attention_ms": {
            "sequences": list(DECODE_SEQUENCES),
            "context": list(DECODE_CONTEXTS),
            "ms": rounded(rising(decode)),
        },
        "prefill_attention_ms": {"tokens": list(PREFILL_TOKENS), "ms": rounded(rising(prefill))},
    }

"""A request log in arrays, checked entry by entry: times, prompt tokens, output tokens of every request."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym_jax.models import shown
from inferencegym_jax.traffic.log_rows import MOST_TOKENS, Block, TraceError


def array_block(time: Any, prompt: Any, output: Any, unit_s: float) -> Block:
    """The arrays as rows of a log; numbers in ``time`` are in units of ``unit_s`` seconds. See
    ``RequestLog.from_arrays``.

    Raises:
        TraceError: naming array, index and value.
    """
    times, dates = _times(np.asarray(time))
    prompts, outputs = _tokens("prompt", np.asarray(prompt)), _tokens("output", np.asarray(output))
    lengths = {"time": len(times), "prompt": len(prompts), "output": len(outputs)}
    if len(set(lengths.values())) > 1:
        raise TraceError(
            f"arrays of different lengths: {', '.join(f'{k} has {n}' for k, n in lengths.items())}; one entry a request"
        )
    if not len(times):
        raise TraceError("arrays: no requests; wanted: at least one")
    return Block(times if dates else times * unit_s, prompts, outputs, lambda i: f"arrays entry {i}")


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    if values.ndim != 1:
        raise TraceError(f"{name}: shape {values.shape}; must be a vector with one entry a request")
    if values.dtype.kind not in "iuf":
        if not len(values):
            return np.zeros(0)
        raise TraceError(f"{name}: dtype {values.dtype} (the first is {shown(values.tolist()[0])}); must be numbers")
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        i = int(np.argmin(finite))
        raise TraceError(f"{name}[{i}] = {numbers[i]}: must be finite")
    return numbers


def _times(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """(times, whether they are seconds since 1970, from dates)."""
    if values.dtype.kind != "M" or values.ndim != 1:
        return _numbers("time", values), False
    if np.isnat(values).any():
        raise TraceError(f"time[{int(np.argmax(np.isnat(values)))}] = NaT: must be a date and time")
    return values.astype("datetime64[ns]").astype(np.int64) * 1e-9, True


def _tokens(name: str, values: np.ndarray) -> np.ndarray:
    numbers = _numbers(name, values)
    bad = (numbers < 0) | (numbers > MOST_TOKENS)
    if bad.any():
        i = int(np.argmax(bad))
        raise TraceError(f"{name}[{i}] = {numbers[i]:g}: must be a number of tokens from 0 to {MOST_TOKENS:g}")
    return numbers

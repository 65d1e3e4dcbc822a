"""What an engine chooses itself where its flags are not given: ``max_num_seqs`` and ``max_num_batched_tokens`` by GPU.

vLLM: ``EngineArgs.get_batch_defaults`` (vllm/engine/arg_utils.py) for its API server, in the sources of 0.9 to 0.33:
the largest GPUs have a choice of their own since 0.28, GB10 (DGX Spark) is taken for a small one since 0.33. SGLang:
``chunked_prefill_size`` by memory (sglang/srt/server_args.py, later arg_groups/memory_hook.py) in the wheels of 0.4.8
to 0.5.23; it runs as many requests as its pool holds, at most 4,096.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple

from inferencegym_jax.fidelity.bench_checks import RunError
from inferencegym_jax.fidelity.measured_runs import MeasuredRun

NAMES = {"vllm": "vLLM", "sglang": "SGLang"}
LARGE_GB = 70 * 2**30 / 1e9  # from which vLLM takes a GPU for a large one
LARGEST_GB = 160 * 2**30 / 1e9  # and for one of the largest (B200)
VLLM_SINCE, LARGEST_SINCE, SMALL_GB10_SINCE = (0, 9), (0, 28), (0, 33)
# SGLang's version -> (memory below which a GPU has a chunk, GiB; the chunk), the last for all larger ones
SGLANG_CHUNKS: dict[tuple[int, int, int], tuple[tuple[float, int], ...]] = {
    (0, 4, 8): ((35, 2048), (160, 8192), (math.inf, 16384)),
    (0, 5, 3): ((35, 2048), (60, 4096), (160, 8192), (math.inf, 16384)),
    (0, 5, 20): ((20, 2048), (60, 4096), (160, 8192), (math.inf, 16384)),
}


class EngineDefaults(NamedTuple):
    """What an engine chooses."""

    max_num_seqs: int
    max_num_batched_tokens: int
    words: str  # whose they are


def engine_defaults(engine: str, version: str | None, gpu: str, memory_gb: float) -> EngineDefaults:
    """The engine's own choice on a GPU.

    Args:
        engine: "vllm" or "sglang".
        version: of the engine, where it is known.
        gpu: name of the GPU.
        memory_gb: its whole memory, GB.

    Raises:
        ValueError: an engine or a version whose choice is not known.
    """
    if engine not in NAMES:
        raise ValueError(f"engine is {engine!r}; wanted: vllm or sglang, or max_num_seqs and max_num_batched_tokens")
    oldest, newest = (VLLM_SINCE, SMALL_GB10_SINCE) if engine == "vllm" else (min(SGLANG_CHUNKS), max(SGLANG_CHUNKS))
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version or "")
    since = tuple(int(part) for part in match.groups(default="0")) if match else newest  # no version: today's
    if since < oldest:
        raise ValueError(
            f"engine_version is {version!r}, whose own max_num_seqs and max_num_batched_tokens are not known here (they"
            f" are from {NAMES[engine]} {'.'.join(map(str, oldest))} on); add them to the run"
        )
    if engine == "sglang":
        first = max(known for known in SGLANG_CHUNKS if known <= since)
        chunk = next(chunk for gib, chunk in SGLANG_CHUNKS[first] if memory_gb < gib * 2**30 / 1e9)
        return EngineDefaults(4096, chunk, f"those that SGLang since {'.'.join(map(str, first))} chooses")
    name = gpu.lower()
    if memory_gb >= LARGEST_GB and since >= LARGEST_SINCE:
        return EngineDefaults(1024, 16384, "those that vLLM since 0.28 chooses")
    small = "a100" in name or ("gb10" in name and since >= SMALL_GB10_SINCE)
    large = memory_gb >= LARGE_GB and not small
    return EngineDefaults(*((1024, 8192) if large else (256, 2048)), "those that vLLM since 0.9 chooses")


def with_defaults(run: MeasuredRun, gpu: str, memory_gb: float) -> tuple[MeasuredRun, list[str]]:
    """The run with the engine's own choice where the file holds none, and what that was, in a sentence.

    Raises:
        RunError: the choice is not known; the row is named.
    """
    if not run.assumed:
        return run, []
    try:
        defaults = engine_defaults(run.engine, run.engine_version, gpu, memory_gb)
    except ValueError as error:
        raise RunError(f"{run.source}: {error}") from None
    values = {name: getattr(defaults, name) for name in run.assumed}
    said = ", ".join(f"{name} {value:,}" for name, value in values.items())
    notice = f"{run.source}: {' and '.join(run.assumed)} not in the file; taken as {defaults.words} on {gpu}: {said}"
    return dataclasses.replace(run, **values, assumed=()), [notice]

"""What an engine chooses itself where its flags are not given: ``max_num_seqs`` and ``max_num_batched_tokens`` by GPU.

vLLM: ``EngineArgs.get_batch_defaults`` (vllm/engine/arg_utils.py) for its API server, the same since 0.9. SGLang:
``ServerArgs`` (sglang/srt/server_args.py), ``chunked_prefill_size`` by memory; it runs as many requests as its pool
holds, at most 4,096.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from inferencegym_jax.fidelity.bench_checks import RunError
from inferencegym_jax.fidelity.measured_runs import MeasuredRun

LARGE_GB = 70 * 2**30 / 1e9  # from which vLLM takes a GPU for a large one
VLLM_SINCE = (0, 9)


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
    if engine == "sglang":
        chunk = 2048 if memory_gb < 35 else 4096 if memory_gb < 60 else 8192 if memory_gb < 96 else 16384
        return EngineDefaults(4096, chunk, "those that SGLang chooses")
    if engine != "vllm":
        raise ValueError(f"engine is {engine!r}; wanted: vllm or sglang, or max_num_seqs and max_num_batched_tokens")
    match = re.match(r"v?(\d+)\.(\d+)", version or "")
    if match and (int(match[1]), int(match[2])) < VLLM_SINCE:
        raise ValueError(
            f"engine_version is {version!r}, whose own max_num_seqs and max_num_batched_tokens are not known here (they"
            " are from vLLM 0.9 on); add them to the run"
        )
    large = memory_gb >= LARGE_GB and "a100" not in gpu.lower()
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

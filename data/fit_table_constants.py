"""Fit what the package's kernels do not hold, c of an iteration and h of a request, by engine and number of GPUs.

    python data/fit_table_constants.py            # writes data/table_constants.json, which `table build` reads

Data flow: measured runs of `data/measured/vllm_open_loop_tp.csv` + engine profiles of their models (`hardware`) -> the
closed form of the steady state (as `data/calibrate_engine.py`, on its own kernel sums) -> c, h and errors row by row.
One pair for each number of GPUs, fitted on the dense models; the mixture of experts is predicted with nothing changed,
since what its kernels take hangs on how unevenly the experts are asked, which c must not hide.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from inferencegym_jax.fidelity.measured_runs import MeasuredRun, read_runs  # noqa: E402
from inferencegym_jax.hardware.any_model import engines_of, profile_of_engines  # noqa: E402
from inferencegym_jax.hardware.gpus import gpu_named, price_of  # noqa: E402
from inferencegym_jax.hardware.memory import Placement  # noqa: E402
from inferencegym_jax.hardware.request import Request  # noqa: E402
from inferencegym_jax.hardware.steady_state import Point, along, decode_ms, products_ms  # noqa: E402
from inferencegym_jax.table import EngineProfile, TableError  # noqa: E402

RUNS = ROOT / "data" / "measured" / "vllm_open_loop_tp.csv"
DEFAULT_OUT = ROOT / "data" / "table_constants.json"
MIXTURE = "Mixtral"  # in the names of models with experts among these runs
RECOMPUTED_TOKENS = 16  # of a prompt that is cached whole: vLLM computes its last block again, for the logits


@dataclass(frozen=True)
class Steady:
    """Mean requests decoding, iteration (ms), and what one prompt adds to iterations (ms)."""

    running: float
    iteration_ms: float
    prompt_ms: float


def profile_of_run(run: MeasuredRun) -> EngineProfile:
    """The profile of a run's model on its GPUs, without constants.

    Raises:
        TableError: the package has no kernels for it.
    """
    request = Request(str(run.model), str(run.gpu), "vllm", Placement(tp=run.tp), dtype="bf16")
    profile = profile_of_engines(engines_of(request), request, price_of(gpu_named(request.system)))
    return replace(profile, overhead_ms=0.0, path_ms=0.0)


def steady_state(profile: EngineProfile, run: MeasuredRun, overhead_ms: float) -> Steady:
    """Fixed point of n = lambda (O - 1) T and T = t(n) / (1 - lambda p), lambda in requests/ms; prompts are cached
    whole but for their last block."""
    rate, prompt, output = run.rate_rps / 1000, run.mean_prompt_tokens, run.mean_output_tokens
    whole = along(prompt, profile.prefill_tokens, profile.prefill_attention_ms)
    block = whole - along(prompt - RECOMPUTED_TOKENS, profile.prefill_tokens, profile.prefill_attention_ms)
    iteration = running = added = 0.0
    for _ in range(200):
        running = rate * (output - 1) * iteration
        added = block + products_ms(profile, running + RECOMPUTED_TOKENS, 0) - products_ms(profile, running, 0)
        alone = overhead_ms + decode_ms(profile, Point(running, prompt, output))
        iteration = 0.5 * iteration + 0.5 * alone / (1 - rate * added)
    return Steady(running, iteration, added)


def ttft_ms(steady: Steady, path_ms: float) -> float:
    """First token: half of the iteration under way, its own with its prompt, one more until it surfaces, and h."""
    return 2.5 * steady.iteration_ms + steady.prompt_ms + path_ms


def fit(pairs: Sequence[tuple[EngineProfile, MeasuredRun]]) -> tuple[float, float]:
    """c and h (ms) with the least squared relative errors of mean ITL and mean TTFT: Gauss-Newton, twenty steps."""

    def residuals(x: np.ndarray) -> np.ndarray:
        errors: list[float] = []
        for profile, run in pairs:
            steady = steady_state(profile, run, float(x[0]))
            errors += [steady.iteration_ms / run.itl_mean_ms - 1, ttft_ms(steady, float(x[1])) / run.ttft_mean_ms - 1]
        return np.array(errors)

    x = np.array([2.0, 2.0])
    for _ in range(20):
        here = residuals(x)
        columns = [(residuals(x + step) - here) / 1e-6 for step in 1e-6 * np.eye(2)]
        x = x - np.linalg.lstsq(np.stack(columns, axis=1), here, rcond=None)[0]
    return round(float(x[0]), 3), round(float(x[1]), 3)


def row(profile: EngineProfile, run: MeasuredRun, constants: tuple[float, float]) -> dict[str, Any]:
    """One run: predicted beside measured, errors as shares."""
    steady = steady_state(profile, run, constants[0])
    first = ttft_ms(steady, constants[1])
    return {
        "run": run.source,
        "model": run.model,
        "gpus": run.tp,
        "rate_rps": run.rate_rps,
        "prompt": run.mean_prompt_tokens,
        "output": run.mean_output_tokens,
        "running": round(steady.running, 2),
        "itl_mean_ms": round(run.itl_mean_ms, 3),
        "itl_mean_error": round(steady.iteration_ms / run.itl_mean_ms - 1, 4),
        "ttft_mean_ms": run.ttft_mean_ms,
        "ttft_mean_error": round(first / run.ttft_mean_ms - 1, 4),
    }


def calibrated() -> dict[str, Any]:
    """The content of ``data/table_constants.json``."""
    pairs = [(profile_of_run(run), run) for run in read_runs(RUNS)]
    engines: dict[str, Any] = {}
    for gpus in sorted({run.tp for _, run in pairs}):
        here = [pair for pair in pairs if pair[1].tp == gpus]
        dense = [pair for pair in here if MIXTURE not in str(pair[1].model)]
        constants = fit(dense)
        models = sorted({str(run.model).rsplit("/", 1)[-1] for _, run in dense})
        engines[str(gpus)] = {
            "overhead_ms": constants[0],
            "path_ms": constants[1],
            "fitted_on": f"{len(dense)} runs of {' and '.join(models)}, vLLM, {gpus} H100 ({RUNS.name})",
            "fitted": [row(profile, run, constants) for profile, run in dense],
            "predicted": [row(p, run, constants) for p, run in here if MIXTURE in str(run.model)],
        }
    return {"made_by": "python data/fit_table_constants.py", "engines": {"vllm": engines}}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=DEFAULT_OUT, help="file to write (default %(default)s)")
    args = p.parse_args(argv)
    try:
        content = calibrated()
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    for gpus, entry in content["engines"]["vllm"].items():
        print(f"{gpus} GPUs: c = {entry['overhead_ms']} ms, h = {entry['path_ms']} ms")
        for role in ("fitted", "predicted"):
            for one in entry[role]:
                errors = f"ITL {one['itl_mean_error']:+.1%} TTFT {one['ttft_mean_error']:+.1%}"
                print(f"  {role} {one['model']} {one['rate_rps']:g}/s: {errors}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fit what kernels do not hold: c, h and a draft step's time; predict the measured runs with them.

    python data/calibrate_engine.py            # writes data/engine_constants.json, which data/engine_profile.py reads

Data flow: measured runs of `data/measured/` + kernels (`step_time`) -> a closed form of the steady state -> constants,
errors row by row. c, scheduler and sampler time of an iteration, and h, a request's time outside iterations, are fitted
on the three runs of Llama-2-7B on one H100 (`vllm_open_loop_tp.csv`); the share of a draft step on the iterations of
Llama-3.1-8B with EAGLE drafts (`drafts_llama31_8b.csv`). The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.kernels import KernelDataError  # noqa: E402
from data.step_time import StepTimes, UnknownNameError, model_of_alias  # noqa: E402
from inferencegym_jax.fidelity.measured_runs import MeasuredRun, read_runs  # noqa: E402

MEASURED = ROOT / "data" / "measured"
RUNS, DRAFTS = "vllm_open_loop_tp.csv", "drafts_llama31_8b.csv"
DEFAULT_OUT = ROOT / "data" / "engine_constants.json"
FITTED_MODEL, DRAFT_MODEL, SYSTEM = "llama2-7b", "llama3-8b", "h100_sxm"
RECOMPUTED_TOKENS = 16  # of a prompt that is cached whole: vLLM computes its last block again, for the logits
DRAFT_CONTEXT = 256  # tokens; a lone request's attention hardly depends on it
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


@dataclass(frozen=True)
class Steady:
    """Steady state of a run: mean requests decoding, iteration (ms), and what one prompt adds to iterations (ms)."""

    running: float
    iteration_ms: float
    prompt_ms: float


def steady_state(times: StepTimes, run: MeasuredRun, overhead_ms: float) -> Steady:
    """Fixed point of n = lambda (O - 1) T and T = t(n) / (1 - lambda p), lambda in requests/ms.

    t(n) = c + products(n) + head(n) + attention(n, P + O / 2). The prompts of these runs are all in the prefix cache,
    so p holds the products of the last block and its attention over the whole prompt, A(P) - A(P - 16).
    """
    rate, prompt, output = run.rate_rps / 1000, run.mean_prompt_tokens, run.mean_output_tokens
    block = times.prefill_attention_ms(prompt) - times.prefill_attention_ms(prompt - RECOMPUTED_TOKENS)
    iteration = running = added = 0.0
    for _ in range(200):
        running = rate * (output - 1) * iteration
        added = block + times.layers_ms(running + RECOMPUTED_TOKENS, "FP16") - times.layers_ms(running, "FP16")
        alone = overhead_ms + times.decode_ms(running, prompt + output / 2)
        iteration = 0.5 * iteration + 0.5 * alone / (1 - rate * added)
    return Steady(running, iteration, added)


def ttft_ms(steady: Steady, path_ms: float, rest: float = 0.5) -> float:
    """First token: the rest of the iteration under way, its own with its prompt, one more until it surfaces, and h."""
    return (rest + 2) * steady.iteration_ms + steady.prompt_ms + path_ms


def gauss_newton(residuals: Callable[[np.ndarray], np.ndarray], start: Sequence[float]) -> np.ndarray:
    """Least squares from `start`: twenty steps with a numerical Jacobian, far more than these residuals need."""
    x = np.asarray(start, float)
    for _ in range(20):
        value = residuals(x)
        columns = [(residuals(x + step) - value) / 1e-6 for step in 1e-6 * np.eye(len(x))]
        x = x - np.linalg.lstsq(np.stack(columns, axis=1), value, rcond=None)[0]
    return x


def fit_runs(times: StepTimes, runs: Sequence[MeasuredRun]) -> tuple[float, float]:
    """c and h (ms) with the least squared relative errors of mean ITL and mean TTFT."""

    def residuals(x: np.ndarray) -> np.ndarray:
        errors: list[float] = []
        for run in runs:
            steady = steady_state(times, run, float(x[0]))
            errors += [steady.iteration_ms / run.itl_mean_ms - 1, ttft_ms(steady, float(x[1])) / run.ttft_mean_ms - 1]
        return np.array(errors)

    overhead, path = gauss_newton(residuals, (2.0, 2.0))
    return round(float(overhead), 3), round(float(path), 3)


def predicted(times: StepTimes, run: MeasuredRun, overhead_ms: float, path_ms: float) -> dict[str, Any]:
    """One run's row: predicted beside measured, errors as shares. The rest is uniform, so quantiles follow from it."""
    steady = steady_state(times, run, overhead_ms)
    pairs = {
        "itl_mean": (steady.iteration_ms, run.itl_mean_ms),
        "ttft_mean": (ttft_ms(steady, path_ms), run.ttft_mean_ms),
    }
    for name, measured in run.ttft_quantiles_ms.items():
        pairs[f"ttft_{name}"] = (ttft_ms(steady, path_ms, QUANTILES[name]), measured)
    row: dict[str, Any] = {"run": run.source, "model": run.model, "rate_rps": run.rate_rps}
    row |= {"prompt": run.mean_prompt_tokens, "output": run.mean_output_tokens, "running": round(steady.running, 2)}
    for name, (guess, measured) in pairs.items():
        row |= {f"{name}_ms": round(measured, 3), f"{name}_predicted_ms": round(guess, 3)}
        row[f"{name}_error"] = round(guess / measured - 1, 4)
    return row


@dataclass(frozen=True)
class Draft:
    """One measured iteration with drafts over one without, one sequence."""

    draft: str
    drafts: int
    without_ms: float
    ratio: float


def read_drafts(path: Path) -> list[Draft]:
    """The measured drafts: an iteration with k of them takes TPOT times the acceptance length."""
    with path.open() as file:
        rows = [{k: v if k == "draft" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [
        Draft(
            str(row["draft"]),
            int(row["drafts"]),
            float(row["tpot_without_drafts_ms"]),
            float(row["acceptance_length"]) * float(row["tpot_ms"]) / float(row["tpot_without_drafts_ms"]),
        )
        for row in rows
    ]


def draft_ratio(times: StepTimes, point: Draft, share: float) -> float:
    """Iteration with k drafts over one without: verification of k + 1 tokens, and k draft steps of `share` of the
    target's products, head and attention. The measured TPOT without drafts is the denominator."""
    kernels = times.decode_ms(1, DRAFT_CONTEXT)
    verified = times.layers_ms(point.drafts + 1, "FP16") + times.head_ms(point.drafts + 1)
    more = verified - times.layers_ms(1, "FP16") - times.head_ms(1) + point.drafts * share * kernels
    return 1 + more / point.without_ms


def fit_drafts(times: StepTimes, points: Sequence[Draft]) -> float:
    """The share with the least squared relative errors of the ratios."""

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.array([draft_ratio(times, point, float(x[0])) / point.ratio - 1 for point in points])

    return round(float(gauss_newton(residuals, (0.1,))[0]), 4)


def calibrate() -> dict[str, Any]:
    """Constants, fitted rows, rows that the other two predict, drafts, and the runs that no kernel here covers."""
    runs = read_runs(MEASURED / RUNS)
    known: list[MeasuredRun] = []
    left: list[str] = []
    for run in runs:
        try:
            covered = run.tp == 1 and model_of_alias(str(run.model)) == FITTED_MODEL
        except UnknownNameError:
            covered = False
        known += [run] if covered else []
        left += [] if covered else [f"{run.source}: {run.model} on {run.tp} GPUs"]
    times = StepTimes.load(SYSTEM, FITTED_MODEL)
    overhead, path = fit_runs(times, known)
    others = [fit_runs(times, [r for r in known if r is not run]) for run in known]
    target, points = StepTimes.load(SYSTEM, DRAFT_MODEL), read_drafts(MEASURED / DRAFTS)
    share = fit_drafts(target, points)
    kinds = sorted({point.draft for point in points})
    return {
        "made_by": "python data/calibrate_engine.py",
        "overhead_ms": overhead,
        "path_ms": path,
        "draft_share": share,
        "fitted": [predicted(times, run, overhead, path) for run in known],
        "predicted_by_the_other_two": [
            {"overhead_ms": c, "path_ms": h} | predicted(times, run, c, h)
            for run, (c, h) in zip(known, others, strict=True)
        ],
        "not_predicted": {
            "why": "their kernels need several GPUs or experts, which data/kernels.py does not sum",
            "runs": left,
        },
        "drafts": [
            asdict(point)
            | {"ratio": round(point.ratio, 4)}
            | {"predicted": round(draft_ratio(target, point, share), 4)}
            | {"error": round(draft_ratio(target, point, share) / point.ratio - 1, 4)}
            for point in points
        ],
        "draft_share_of": {kind: fit_drafts(target, [p for p in points if p.draft == kind]) for kind in kinds},
    }


def text(result: dict[str, Any]) -> str:
    """JSON with one row a line."""
    lines: list[str] = []
    for key, value in result.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            lines.append(f" {json.dumps(key)}: [\n{rows}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def compared(guess: float, measured: float, error: float) -> str:
    """Predicted and measured, and the error as a percentage."""
    return f"{guess:.2f} / {measured:.2f} ({100 * error:+.1f} %)"


def show(result: dict[str, Any]) -> None:
    """The result as text."""
    print(f"c = {result['overhead_ms']} ms an iteration, h = {result['path_ms']} ms a request")
    names = ("itl_mean", "ttft_mean", "ttft_p50", "ttft_p90", "ttft_p99")
    for title in ("fitted", "predicted_by_the_other_two"):
        print(title.replace("_", " ") + ": mean ITL, mean TTFT, its p50, p90, p99 (predicted / measured, ms)")
        for row in result[title]:
            cells = [compared(row[f"{n}_predicted_ms"], row[f"{n}_ms"], row[f"{n}_error"]) for n in names]
            print(f"  {row['run']}, {row['rate_rps']:g} requests/s: " + ", ".join(cells))
    print(f"draft step: {result['draft_share']} of the target's kernels; by draft alone {result['draft_share_of']}")
    for row in result["drafts"]:
        print(f"  {row['draft']} k = {row['drafts']}: " + compared(row["predicted"], row["ratio"], row["error"]))
    print(f"not predicted ({result['not_predicted']['why']}):")
    for run in result["not_predicted"]["runs"]:
        print(f"  {run}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=DEFAULT_OUT, help="file to write (default %(default)s)")
    args = p.parse_args(argv)
    try:
        result = calibrate()
    except KernelDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.write_text(text(result))
    show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

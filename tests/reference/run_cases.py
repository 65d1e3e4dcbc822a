"""Serve the grid's cases with the reference and write their figures.

python -m tests.reference.run_cases --out tests/reference/cases.json
python -m tests.reference.run_cases --only small_pool --runs 3
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.cases import CASES, ENGINES, Case, capacity, names, run, windows
from tests.reference.iteration import PROFILE, digest, load_profile
from tests.reference.summary import mean_of, summarise

COMMAND = "python -m tests.reference.run_cases --out tests/reference/cases.json"
CAPACITY_RUNS = 3


def capacities(profile: dict[str, Any]) -> dict[str, float]:
    """Requests/s of every engine, mean over three draws of lengths."""
    return {
        name: float(np.mean([capacity(engine, profile, seed=seed) for seed in range(CAPACITY_RUNS)]))
        for name, engine in ENGINES.items()
    }


def figures(case: Case, seed: int, profile: dict[str, Any], rates: dict[str, float]) -> dict[str, float]:
    """Summary of one run."""
    result = run(case, seed, profile, rates)
    return summarise(result, case.objectives, *windows(case)) | {"end_s": result.end_ms / 1000}


def rounded(value: Any) -> Any:
    """Six digits; a figure that does not exist is null."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return (float(f"{value:.6g}") if math.isfinite(value) else None) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--profile", type=Path, default=PROFILE, help="engine profile, a JSON")
    parser.add_argument("--only", nargs="*", default=[], help="words: cases whose name holds one of them")
    parser.add_argument("--runs", type=int, help="runs of each case; by default the case's own number")
    options = parser.parse_args(arguments)
    profile = load_profile(options.profile)
    rates = rounded(capacities(profile))
    written: dict[str, Any] = {
        "command": COMMAND,
        "profile_sha256": digest(profile),
        "capacity": rates,
        "cases": {},
    }
    for name in names(options.only):
        case, started = CASES[name], time.perf_counter()
        runs = [figures(case, seed, profile, rates) for seed in range(options.runs or case.runs)]
        found = written["cases"][name] = {"runs": len(runs)} | rounded(mean_of(runs))
        print(
            f"{name}: {found['requests']:.0f} requests, TPOT {found['tpot_mean_ms']} ms, TTFT {found['ttft_mean_ms']} "
            f"ms, p99 {found['ttft_p99_ms']} ms, {found['tokens_per_s']} tokens/s, {found['running']} running, "
            f"{found['preemptions']} preempted ({time.perf_counter() - started:.1f} s)",
            file=sys.stderr,
            flush=True,
        )
        if options.out:
            options.out.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()

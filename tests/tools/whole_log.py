"""The promise of `inferencegym recommend` held against the request-level reference on a whole log, by hand:

    python -m tests.tools.whole_log AzureLLMInferenceTrace_conv.csv

Prints as JSON the answer, what it promised, and what the reference engine found for it and for randomly drawn
configurations; exits 1 where the promise is off by more than 3 points or a drawn one is more than 3 % better.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes.static_search import static_actions
from inferencegym_jax.policies.knob_text import knob_values
from inferencegym_jax.recommend.candidates import SEARCHED
from inferencegym_jax.recommend.log_requests import LoggedRequests, load_requests
from inferencegym_jax.recommend.recommendation import recommend
from inferencegym_jax.recommend.search import environment
from tests.reference.iteration import load_profile
from tests.reference.serving import serve
from tests.reference.settings import Settings
from tests.reference.traffic import requests_at

PROMISE, BEATEN = 0.03, 0.03


def replayed(
    requests: LoggedRequests, knobs: dict[str, Any], slo_ms: float, memory_gb: float, seconds: float = np.inf
) -> float:
    """Share of the requests of a log's first ``seconds`` within the SLO, by the request-level reference."""
    settings = Settings(
        batch_size=knobs["batch_size"],
        kv_budget=knobs["kv_budget"],
        spec_length=knobs["spec_length"],
        quant_tier=knobs["quant_tier"],
        second_gpu="prefill" if knobs["prefill_disagg"] else "none",
        memory_gb=memory_gb,
        transfer_gb_s=load_profile()["host_link_gb_s"],
    )
    good = np.zeros(0, bool)
    for stretch in range(len(requests.starts)):
        mine = requests.stretch == stretch
        times = requests.time_ms[mine]
        count = int(np.searchsorted(times, seconds * 1000))
        lengths = (x[mine][:count].astype(int) for x in (requests.prompt, requests.output))
        served = serve(requests_at(times[:count], *lengths), settings, load_profile())
        good = np.append(good, served.ttft_ms <= slo_ms)  # never, where it was rejected: NaN
    return float(good.mean())


def _one(job: tuple[str, dict[str, Any], float, float]) -> float:
    path, knobs, slo_ms, memory_gb = job
    return replayed(load_requests(path), knobs, slo_ms, memory_gb)


def check(
    path: Path,
    configurations: int,
    slo_ms: float,
    memory_gb: float,
    fixed: dict[str, Any] | None = None,
    seed: int = 8,
    processes: int = 1,
) -> dict[str, Any]:
    """Everything that the command prints."""
    start = time.perf_counter()
    found = recommend(path, slo_ttft_ms=slo_ms, memory_gb=memory_gb, fixed=fixed).to_dict()
    answered = time.perf_counter() - start
    requests = load_requests(path)
    env, params = environment(ig.load_table(), requests, memory_gb, None)
    held = (fixed or {}).items()
    actions = [action for action in static_actions(env, params, SEARCHED) if held <= action.items()]
    picked = np.random.default_rng(seed).choice(len(actions), min(configurations, len(actions)), replace=False)
    tried = [found["recommended"], found["current"], *(actions[i] for i in picked)]
    jobs = [(str(path), knobs, slo_ms, memory_gb) for knobs in tried]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        shares = list(pool.map(_one, jobs, chunksize=1))
    rate = requests.count / requests.seconds
    best = int(np.argmax(shares[2:]))
    results = found["results"]
    return {
        "log": path.name,
        "slo_ttft_ms": slo_ms,
        "memory_gb": memory_gb,
        "fixed": fixed,
        "requests": requests.count,
        "seconds": requests.seconds,
        "answered_in_s": answered,
        "recommended": found["recommended"],
        "meets_slo": found["meets_slo"],
        "promised_goodput": results["promised"]["goodput"],
        "replayed_goodput": shares[0] * rate,
        "promise_error": results["promised"]["attainment"] - shares[0],
        "own_replay_error": results["recommended"]["attainment"] - shares[0],
        "current_replayed_goodput": shares[1] * rate,
        "configurations": len(picked),
        "best_of_them": tried[2 + best],
        "best_of_them_goodput": shares[2 + best] * rate,
        "below_best": 1.0 - shares[0] / shares[2 + best],
        "all": [{"knobs": knobs, "goodput": share * rate} for knobs, share in zip(tried[2:], shares[2:], strict=True)],
    }


def main(arguments: list[str]) -> int:
    """Run the check on a log."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.whole_log", description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--configurations", type=int, default=50)
    parser.add_argument("--slo-ttft-ms", type=float, default=300.0)
    parser.add_argument("--memory-gb", type=float, default=40.0)
    parser.add_argument("--fixed", default="", help="as of `inferencegym recommend`")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    found = check(
        given.log,
        given.configurations,
        given.slo_ttft_ms,
        given.memory_gb,
        knob_values(given.fixed, "--fixed"),
        given.seed,
        max(given.processes, 1),
    )
    print(json.dumps(found, indent=1))
    return int(abs(found["promise_error"]) > PROMISE or found["below_best"] > BEATEN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A request log to try things with: 20 minutes of task 4's traffic, request by request.

    python data/example_log.py      writes data/example_requests.csv; the same bytes on every run

Arrivals of each second are the environment's own (task 4, fitted to a public log), spread evenly over the second;
prompts and outputs are lognormal with the fitted mean and spread. No request of the log itself is in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import inferencegym_jax as ig  # noqa: E402

TASK, EPISODES, LONGEST = 4, 6, 8192
OUT = ROOT / "data" / "example_requests.csv"


def lengths(generator: np.random.Generator, count: int, mean: float, variation: float) -> np.ndarray:
    """Lognormal token counts by mean and coefficient of variation, int64[count], at least 1."""
    variance = np.log1p(variation**2)
    drawn = generator.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count)
    return np.clip(drawn.round(), 1, LONGEST).astype(np.int64)


def rows() -> list[str]:
    """The lines of the log, with their header."""
    fit = ig.get_task(TASK).traffic
    if fit is None:
        raise ValueError(f"task {TASK} has no fitted traffic")
    env, params = ig.make(TASK)
    played = ig.rollout(env, params, ig.policies.baseline, seeds=jnp.arange(EPISODES))
    counts = np.asarray(played.workload.arrivals).T.ravel()  # one episode after another
    generator = np.random.default_rng(0)
    times = np.sort(np.repeat(np.arange(len(counts)), counts) + generator.random(counts.sum()))
    columns = [lengths(generator, len(times), fit[kind]["mean"], fit[kind]["cv"]) for kind in ("prompt", "output")]
    lines = [f"{time:.3f},{prompt},{output}" for time, prompt, output in zip(times, *columns, strict=True)]
    return ["time_s,prompt_tokens,output_tokens", *lines]


if __name__ == "__main__":
    found = rows()
    OUT.write_text("\n".join(found) + "\n")
    print(f"{len(found) - 1:,} requests in {EPISODES * 200} s: {OUT}")

"""The compiled fleet beside its request-by-request reference, case by case.

    python -m tests.reference.compare_fleet [WORD ...]

The reference's figures come from `fleet_cases.json` (`run_fleet_cases.py`); the fleet replays the same requests, told
second by second as a log.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.fleet.action import FleetAction
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.spec import fleet_params
from inferencegym_jax.fleet.state import FleetState
from tests.reference.run_fleet_cases import CASES, LENGTH_S, OUT, SKIP_S, FleetCase
from tests.reference.traffic import Requests

DRAIN = 24  # decisions after the last request


def log_of(requests: Requests) -> ig.RequestLog:
    """The requests as a log, and seconds without any after them."""
    return ig.RequestLog.from_arrays(requests.arrival_ms, requests.prompt, requests.output, unit="ms")


def play(case: FleetCase, requests: Requests) -> dict[str, np.ndarray]:
    """What the fleet made of each decision: [decisions]."""
    log = log_of(requests)
    params = fleet_params(case.spec, ig.load_table(), log)
    env = FleetEnvironment(ig.load_table(), params, log)
    plan = np.asarray(case.plan(), np.int32)
    params = params.replace(episode_length=np.int32(10 * len(plan)))

    @jax.jit
    def run(sizes: jax.Array) -> dict[str, jax.Array]:
        def body(state: FleetState, gpus: jax.Array) -> tuple[FleetState, dict[str, jax.Array]]:
            _, state, _, _, info = env.step_env(None, state, FleetAction(gpus=gpus), params)
            metrics, outcome = info["metrics"], info["outcome"]
            return state, {
                "on_time": outcome.on_time.sum(),
                "bad": (outcome.late + outcome.rejected + outcome.failed).sum(),
                "ttft": metrics.ttft_mean_ms * metrics.first_tokens,
                "first": metrics.first_tokens,
                "tpot": metrics.tpot_ms * metrics.tokens,
                "tokens": metrics.tokens,
                "gpu_seconds": outcome.gpu_seconds,
            }

        return jax.lax.scan(body, env.reset_seed(0, params)[1], sizes)[1]

    return {name: np.asarray(value, np.float64) for name, value in run(jnp.asarray(plan)).items()}


def figures(case: FleetCase) -> dict[str, float]:
    """The fleet's figures under the names of ``run_fleet_cases.figures``: decisions after the first minute."""
    found = play(case, case.requests())
    since = SKIP_S // 5
    late = {name: values[since:].sum() for name, values in found.items()}
    return {
        "late_share": float(late["bad"] / (late["bad"] + late["on_time"])),
        "ttft_mean_ms": float(late["ttft"] / late["first"]),
        "tpot_mean_ms": float(late["tpot"] / late["tokens"]),
        "gpu_seconds": float(found["gpu_seconds"].sum()),
    }


def main() -> None:
    """Command line."""
    reference = json.loads(OUT.read_text())
    print(f"windows of {LENGTH_S} s; fleet against reference")
    for name, case in CASES.items():
        if name not in reference or (sys.argv[1:] and not any(word in name for word in sys.argv[1:])):
            continue
        mine, other = figures(case), reference[name]
        print(
            f"{name}: late {100 * mine['late_share']:.2f} against {100 * other['late_share']:.2f} %, mean TTFT "
            f"{mine['ttft_mean_ms']:.0f} against {other['ttft_mean_ms']:.0f} ms, TPOT {mine['tpot_mean_ms']:.1f} "
            f"against {other['tpot_mean_ms']:.1f} ms, GPU-seconds {mine['gpu_seconds']:.0f} against "
            f"{other['gpu_seconds']:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

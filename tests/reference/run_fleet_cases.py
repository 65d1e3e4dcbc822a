"""Figures of the fleet's reference on windows of days, written to `fleet_cases.json`.

    python -m tests.reference.run_fleet_cases [WORD ...]    # cases whose name holds a word; default: all

A case is a pool, a day, and the GPUs asked for in each decision of its busiest twenty minutes.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.fleet.spec import FleetSpec, fleet_params, get_fleet
from tests.reference.fleet import Fleet, serve_fleet
from tests.reference.fleet_traffic import busiest_s, day_requests
from tests.reference.settings import Settings
from tests.reference.traffic import Requests

OUT = Path(__file__).parent / "fleet_cases.json"
PROFILE = Path(__file__).resolve().parents[2] / "data" / "traces_llama3_8b.engine.json"
LENGTH_S, SKIP_S = 900, 60
BUSIEST = 4.2  # GPUs that the busiest quarter of an hour keeps busy
OBJECTIVE = (1000.0, 50.0)


@dataclass(frozen=True)
class FleetCase:
    """A pool's day, and the sizes of its busiest minutes: (first decision, GPUs), in order."""

    fleet: str
    seed: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def spec(self) -> FleetSpec:
        """The task."""
        return get_fleet(self.fleet).replace(busiest=BUSIEST)

    def plan(self) -> list[int]:
        """GPUs asked for in each decision."""
        plan = np.zeros(LENGTH_S // 5, int)
        for since, gpus in self.sizes:
            plan[since:] = gpus
        return plan.tolist()

    def requests(self) -> Requests:
        """The window's requests."""
        params = fleet_params(self.spec, ig.load_table())
        return day_requests(params, self.seed, busiest_s(params, self.seed, LENGTH_S), LENGTH_S)


def _fixed(name: str, fleet: str, sizes: tuple[int, ...], seed: int = 11) -> dict[str, FleetCase]:
    return {f"{name}, {size} GPUs": FleetCase(fleet, seed, ((0, size),)) for size in sizes}


CASES: dict[str, FleetCase] = {
    **_fixed("azure", "fleet-elastic", (6, 7)),
    **_fixed("m-large", "fleet-elastic-m-large", (6, 7)),
    **_fixed("m-mid", "fleet-elastic-m-mid", (7, 8)),
    "azure, up and down": FleetCase("fleet-elastic", 11, ((0, 7), (40, 5), (70, 8), (120, 6), (150, 7))),
    "m-large, up and down": FleetCase("fleet-elastic-m-large", 11, ((0, 7), (40, 5), (70, 8), (120, 6), (150, 7))),
}


def figures(case: FleetCase) -> dict[str, float]:
    """What the reference makes of a case: requests that arrived after the first minute."""
    requests = case.requests()
    began = time.perf_counter()
    profile = json.loads(PROFILE.read_text())
    result = serve_fleet(requests, Settings(), profile, case.plan(), Fleet())
    counted = requests.arrival_ms >= 1000 * SKIP_S
    ttft = result.ttft_ms[counted]
    return {
        "requests": int(counted.sum()),
        "late_share": float(1.0 - result.on_time(*OBJECTIVE)[counted].mean()),
        "late_by_ttft": float((ttft > OBJECTIVE[0]).mean()),
        "ttft_mean_ms": float(ttft.mean()),
        "ttft_p99_ms": float(np.quantile(ttft, 0.99)),
        "tpot_mean_ms": float(np.nanmean(result.tpot_ms[counted])),
        "gpu_seconds": float(result.paid.sum()),
        "tokens": int(requests.output.sum()),
        "tokens_made": result.tokens_made,
        "took_s": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Command line."""
    words = sys.argv[1:]
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name, case in CASES.items():
        if words and not any(word in name for word in words):
            continue
        found[name] = figures(case)
        print(name, found[name], flush=True)
        OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

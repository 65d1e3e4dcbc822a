"""Write the golden trajectories again: `python -m tests.golden.regenerate`, then say why in CHANGELOG.md under Changed.

Only for a wanted change of the table, the calibration, a draw or the physics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.models import plain

FOLDER = Path(__file__).resolve().parent
TASKS = (1, 2, 3, 4, 5)
SEED = 7
EVERY = 10  # steps between the rows that are kept


def trajectory(task: int) -> dict[str, Any]:
    """Every tenth step of the episode of seed 7 under the random policy, and what the whole episode sums to."""
    env, params = ig.make(task)
    rolled = jax.tree.map(lambda x: np.asarray(x)[:, 0], ig.rollout(env, params, ig.policies.random, np.array([SEED])))
    rows = []
    for t in range(0, len(rolled.reward), EVERY):
        parts = (rolled.action, rolled.metrics, rolled.workload, rolled.next_observation)
        action, metrics, workload, observation = (plain(jax.tree.map(lambda x, t=t: x[t], part)) for part in parts)
        counted = (
            {"outcome": plain(jax.tree.map(lambda x, t=t: x[t], rolled.outcome))} if params.engine.open_loop else {}
        )
        rows.append(
            counted
            | {
                "step": t,
                "action": action,
                "metrics": metrics,
                "workload": workload,
                "observation": observation,
                "reward": float(rolled.reward[t]),
                "oom": bool(rolled.oom[t]),
            }
        )
    totals = {
        "reward": float(rolled.reward.sum(dtype=np.float64)),
        "arrivals": int(rolled.workload.arrivals.sum()),
        "rejected": int(rolled.workload.rejected.sum()),
        "violations": int(rolled.metrics.slo_violations.sum()),
        "evictions": int(rolled.metrics.eviction_events.sum()),
        "oom": int(rolled.oom.sum()),
    }
    return {"task": task, "seed": SEED, "policy": "random", "totals": totals, "rows": rows}


def main() -> None:
    """Write one file a task, or print them all as one JSON object with --print."""
    if "--print" in sys.argv[1:]:
        json.dump({task: trajectory(task) for task in TASKS}, sys.stdout)
        return
    for task in TASKS:
        path = FOLDER / f"task{task}.json"
        path.write_text(json.dumps(trajectory(task), indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()

"""What a user waits for: import, compilation, the first 4,096 episodes; and the memory of an environment."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
FIRST = """
import json, time
start = time.perf_counter()
import jax, numpy as np
import inferencegym_jax as ig
imported = time.perf_counter()
env, params = ig.make(3)
jax.block_until_ready(ig.evaluate(env, params, ig.policies.random, np.arange(4096)))
first = time.perf_counter()
jax.block_until_ready(ig.evaluate(env, params, ig.policies.random, np.arange(4096) + 4096))
again = time.perf_counter()
jax.block_until_ready(ig.rollout(env, params, ig.policies.random, np.arange(4096)))
rolled = time.perf_counter()
jax.block_until_ready(ig.rollout(env, params, ig.policies.random, np.arange(4096) + 4096))
rolled_again = time.perf_counter()
state = env.reset_seed(0, params)[1]
print(json.dumps({
    "import_to_first_4096_episodes_s": first - start,
    "evaluate_compile_s": (first - imported) - (again - first),
    "rollout_compile_s": (rolled - again) - (rolled_again - rolled),
    "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
}))
"""


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def measure(repeats: int = 9) -> dict[str, Any]:
    """Seconds, each measurement a fresh process without a compilation cache, and the import's ratio."""
    found: dict[str, list[float]] = {"jax": [], "inferencegym_jax": []}
    for _ in range(repeats):
        for name, values in found.items():
            values.append(float(_python(IMPORT.format(name))))
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "import_s": medians,
        **json.loads(_python(FIRST)),
        "ratios": {"import_over_jax": medians["inferencegym_jax"] / medians["jax"]},
    }

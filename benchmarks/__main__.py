"""All speed measurements of the library in one run: ``python -m benchmarks`` (``make bench``).

Writes ``benchmarks/results.json``, prints a table and draws ``benchmarks/rollout.png`` and ``benchmarks/parts.png``.
On an accelerator the same command measures that one (``JAX_PLATFORMS`` chooses). The server's and training's are
run by ``python -m benchmarks.server`` and ``python -m benchmarks.training``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax

from benchmarks import environment_share, open_loop, parts, rollout, single, startup
from benchmarks.plots import draw
from inferencegym_jax.episodes import parallel

FOLDER = Path(__file__).resolve().parent
TARGETS = {
    "rollout_over_cartpole": ("at least", 5.0),
    "rollout_over_scipy": ("at least", 5000.0),
    "mixed_over_single": ("at most", 1.1),
    "task_4_over_task_3": ("at least", 0.25),
    "task_5_over_task_3": ("at least", 0.25),
    "jit_step_over_cartpole": ("at most", 1.5),
    "import_over_jax": ("at most", 1.3),
    "environment_share_of_training": ("at most", 0.15),
}


def main() -> None:
    """Measure, write, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the library's speed.")
    parser.add_argument("--quick", action="store_true", help="few turns and batches up to 4,096")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json and the plots")
    options = parser.parse_args()
    turns = 5 if options.quick else 15
    sizes = tuple(size for size in rollout.SIZES if size <= 4096) if options.quick else rollout.SIZES
    results: dict[str, Any] = {
        "machine": {
            "device": jax.devices()[0].device_kind,
            "cores": parallel.cores(),
            "processor": platform.processor() or platform.machine(),
            "jax": jax.__version__,
            "load_before": os.getloadavg()[0],
        },
        "ratios": {},
    }
    sections = {
        "rollout": lambda: rollout.measure(turns),
        "open_loop": lambda: open_loop.measure(turns),
        "single": lambda: single.measure(turns),
        "parts": lambda: parts.measure_on_one_core(turns),
        "startup": lambda: startup.measure(max(turns // 2, 3)),
        "training": lambda: environment_share.measure_apart(turns),
        "sizes": lambda: rollout.over_sizes(max(turns // 3, 3), sizes),
    }
    for name, section in sections.items():
        print(f"measuring {name} ...", flush=True)
        found = section()
        results["ratios"] |= found.pop("ratios", {})
        results[name] = found
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, options.out)
    for name, value in results["ratios"].items():
        word, target = TARGETS.get(name, ("", 0.0))
        print(f"{name:32s} {value:10.2f}   {f'target: {word} {target:g}' if word else ''}")
    for name, value in results["rollout"]["steps_per_second"].items():
        print(f"{name:32s} {value / 1e6:10.4f} million steps/s")
    for name, value in results["rollout"]["steps_per_second_one_core"].items():
        print(f"{name + ', one core':32s} {value / 1e6:10.4f} million steps/s")
    for name, value in results["single"]["microseconds"].items():
        print(f"{name + ', jitted step':32s} {value:10.1f} us")
    for name, value in results["parts"]["nanoseconds"].items():
        print(f"{name:40s} {value:8.2f} ns")


if __name__ == "__main__":
    main()

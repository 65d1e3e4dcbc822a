"""Open-loop tasks against task 3: steps a second of 4,096 episodes, and the ratios within a turn.

python -m benchmarks.open_loop [--turns 15]
"""

from __future__ import annotations

import argparse
import json
import statistics

from benchmarks.measure import turns
from benchmarks.rivals import STEPS
from benchmarks.rollout import BATCH, ours

TASKS = (3, 4, 5)


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Median million steps/s of each task; ``ratios``: medians over turns of each open-loop task's speed over task
    3's."""
    seconds = turns({task: ours(task, BATCH, call="evaluate") for task in TASKS}, repeats)
    ratios = {task: [a / b for a, b in zip(seconds[3], seconds[task], strict=True)] for task in TASKS[1:]}
    return {
        "million_steps_per_second": {
            f"task {task}": round(BATCH * STEPS / statistics.median(values) / 1e6, 2)
            for task, values in seconds.items()
        },
        "ratios": {f"task_{task}_over_task_3": round(statistics.median(values), 3) for task, values in ratios.items()},
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.open_loop", description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="turns that the tasks take (default: 15)")
    print(json.dumps(measure(parser.parse_args().turns)))


if __name__ == "__main__":
    main()

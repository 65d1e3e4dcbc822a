"""Find every normaliser that is not measured, by search, and write them to ``data/calibration.json`` with how they
were found.

    python data/calibrate.py                  writes data/calibration.json; the same bytes on every run
    python data/calibrate.py --tasks 1,2,3    these tasks only; what the file says of the others stays as it is
    python data/calibrate.py --check          compares with the file instead and exits 1 if it differs

What it may set and how (ENVIRONMENT.md, section 8):

optimal_tps      per task: the highest mean throughput of any static action that is never out of memory and, where any
                 action manages it, keeps the mean TTFT within the SLO; exhaustive search, every action on the same
                 seeds.
best_static      per task: the static action with the highest mean score by the task's grader, of those that are never
                 out of memory on those seeds: in the same search, and finer around the best of it.
cost_normaliser  per task: mean cost_per_1k of the baseline action, so that C = 1 in the reward is the baseline's cost.
cost_scale       the cost of a GPU-second at which the baseline action spends task 3's cost budget, to three digits. It
                 is a property of the table: where the table has another, build it again with the one printed.
throughput_floor 0, and the mean output length 128 tokens (ENVIRONMENT.md 12): no baseline needs another.

Exits 1 when a baseline's score (seed 0) leaves its range or the table has another cost scale.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from inferencegym_jax import policies  # noqa: E402
from inferencegym_jax.environment import Environment  # noqa: E402
from inferencegym_jax.episodes import static_search  # noqa: E402
from inferencegym_jax.episodes.rollout import evaluate  # noqa: E402
from inferencegym_jax.registry.problems import drawn_by  # noqa: E402
from inferencegym_jax.scoring.grader import score_aggregates  # noqa: E402
from inferencegym_jax.scoring.static_reference import with_static_reference  # noqa: E402
from inferencegym_jax.table.latency_table import LatencyTable, load_table  # noqa: E402
from inferencegym_jax.tasks import NOT_NORMALISED, TaskSpec, get_task, make_params, task_specs  # noqa: E402
from inferencegym_jax.traffic.days import SEED_STRIDE  # noqa: E402

OUT = ROOT / "data" / "calibration.json"
SEEDS = 64
BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
KV_BUDGETS = (0.1, 0.175, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
# A task whose episodes are long is searched in rounds on training seeds: all actions of a coarser grid on a few
# windows, the best of each number of GPUs on more.
LONG = 200  # steps from which episodes are long
LONG_BATCH_SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LONG_KV_BUDGETS = (0.1, 0.175, 0.25, 0.375, 0.5, 0.75, 1.0)
ROUNDS = ((8, 1.0), (24, 0.12), (64, 0.03))  # episodes, share of the actions
LANES = 1024
TRAINING_SEEDS = 1 << 31
# Scores between which the baseline of seed 0 must lie: what a calibration of tasks 1 to 3 is held to, so that a table
# or a cost scale under which the default action is no longer poor is noticed. Nothing reads them in an episode.
BASELINE_RANGES = {
    "static-uniform": (0.30, 0.40),
    "bursty-sharegpt": (0.22, 0.32),
    "adversarial-multi-tenant": (0.18, 0.28),
}


def rounded(value: Any) -> float:
    """Six significant digits: enough for a normaliser, and the same on machines whose last bits differ."""
    return float(f"{float(value):.6g}")


def cost_scale(table: LatencyTable) -> float:
    """Cost of a GPU-second at which the baseline spends the cost budget of the task that has one."""
    spec = get_task(3)
    assert spec.cost_budget is not None
    params = make_params(spec, table, NOT_NORMALISED)
    spent = np.asarray(evaluate(Environment(table, params), params, policies.baseline, np.arange(SEEDS)).total_cost)
    return float(f"{float(table.metadata['cost_scale']) * spec.cost_budget / spent.mean(dtype=np.float64):.3g}")


def training_seeds(count: int) -> np.ndarray:
    """uint32[count], none of which is an evaluation's, nor its day."""
    return (TRAINING_SEEDS + SEED_STRIDE * np.arange(count, dtype=np.uint64)).astype(np.uint32)


def search_in_rounds(spec: TaskSpec, env: Environment, params: Any, actions: list[dict[str, Any]]) -> Any:
    """The last round's search: the best actions of each number of GPUs, on more and more training seeds."""
    found = None
    for episodes, share in ROUNDS:
        if found is not None:
            _, scores = with_static_reference(spec, found.per_seed, dict.fromkeys(NOT_NORMALISED, 1.0))
            gpus = np.round(found.means.gpu_seconds / found.means.steps).astype(int)
            kept = max(int(share * len(actions)) // len(np.unique(gpus)), 4)
            index = np.concatenate(
                [
                    np.flatnonzero(gpus == n)[np.argsort(-scores[gpus == n], kind="stable")[:kept]]
                    for n in np.unique(gpus)
                ]
            )
            tried = [found.actions[i] for i in index]
        else:
            tried = actions
        found = static_search.search_static(env, params, tried, training_seeds(episodes), LANES)
    return found


def calibrate_task(spec: TaskSpec, table: LatencyTable) -> dict[str, Any]:
    """One task's entry of the file."""
    params = make_params(spec, table, NOT_NORMALISED)
    env = Environment(table, params, draws=drawn_by(spec, table))
    seeds = np.arange(SEEDS)
    long = spec.episode_length > LONG
    grid = (LONG_BATCH_SIZES, LONG_KV_BUDGETS) if long else (BATCH_SIZES, KV_BUDGETS)
    actions = static_search.static_actions(env, params, dict(zip(("batch_size", "kv_budget"), grid, strict=True)))
    searched = len(actions)
    if long:
        found = search_in_rounds(spec, env, params, actions)
        default = static_search.search_static(env, params, [env.table.knob_defaults], seeds, LANES).per_seed
        base = jax.tree.map(lambda x: x[0], default)
        actions = found.actions
    else:
        found = static_search.search_static(env, params, actions, seeds, static_search.CHUNK)
        base = evaluate(env, params, policies.baseline, seeds)
    best = static_search.optimal_throughput(found, spec.slo_ttft_ms[0])
    best_mean_ttft = found.means.mean_ttft_p50_ms[best]
    norms = {
        "optimal_tps": rounded(found.means.mean_tps[best]),
        "cost_normaliser": rounded(np.asarray(base.total_cost).mean(dtype=np.float64) / int(params.episode_length)),
        "throughput_floor": 0.0,
    }
    if not long:
        found = static_search.refine(
            env, params, found, lambda search: with_static_reference(spec, search.per_seed, norms)[1], seeds
        )
    norms, scores = with_static_reference(spec, found.per_seed, norms)
    norms = {name: rounded(value) for name, value in norms.items()}
    top = static_search.best_action(found, scores)
    baseline_scores = score_aggregates(spec, base, norms)["score"]
    return {
        **norms,
        "optimal_action": actions[best],
        "optimal_mean_ttft_ms": rounded(best_mean_ttft),
        "best_static": {"action": found.actions[top], "mean_score": rounded(scores[top])},
        "baseline": {
            "score_seed_0": rounded(baseline_scores[0]),
            "mean_score": rounded(baseline_scores.mean()),
            "oom_share": rounded(np.asarray(base.oom_share).mean(dtype=np.float64)),
            **({"expected_range": list(BASELINE_RANGES[spec.name])} if spec.name in BASELINE_RANGES else {}),
        },
        "static_actions_searched": searched if long else len(found.actions),
        **({"rounds": [list(x) for x in ROUNDS], "seeds": "training"} if long else {}),
    }


def chosen_tasks(text: str | None) -> list[TaskSpec]:
    """The tasks of ``--tasks``, numbers or names separated by commas; None: all.

    Raises:
        ValueError: there is no such task.
    """
    if text is None:
        return list(task_specs().values())
    return [get_task(int(name) if name.isdigit() else name) for name in (part.strip() for part in text.split(","))]


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    parser.add_argument("--tasks", help="numbers or names, separated by commas (default: all)")
    arguments = parser.parse_args()
    table = load_table()
    written = json.loads(OUT.read_text()) if OUT.exists() else {"table_digest": None, "tasks": {}}
    try:
        again = {spec.name for spec in chosen_tasks(arguments.tasks)}
    except ValueError as error:
        parser.error(f"--tasks: {error}")
    kept = [name for name in task_specs() if name not in again]
    if kept and (written["table_digest"] != table.digest or not set(kept) <= set(written["tasks"])):
        parser.error(f"--tasks: {OUT.name} is of another table or lacks {', '.join(kept)}; calibrate all tasks")
    entries = {
        spec.name: calibrate_task(spec, table) if spec.name in again else written["tasks"][spec.name]
        for spec in task_specs().values()
    }
    result = {
        "made_by": "python data/calibrate.py",
        "table_digest": table.digest,
        "cost_scale": cost_scale(table),
        "output_length": table.output_length,
        "seeds": f"0 to {SEEDS - 1}",
        "batch_sizes": list(BATCH_SIZES),
        "kv_budgets": list(KV_BUDGETS),
        "how": [" ".join(part.split()) for part in (__doc__ or "").split("\n\n")[2:]],
        "tasks": entries,
    }
    text = json.dumps(result, indent=1) + "\n"
    missed = 0
    for name, entry in result["tasks"].items():
        low, high = BASELINE_RANGES.get(name, (0.0, 1.0))
        score = entry["baseline"]["score_seed_0"]
        missed += not low <= score <= high
        print(
            f"{name}: baseline {score:.3f} (range {low} to {high}), mean {entry['baseline']['mean_score']:.3f}; "
            f"best static {entry['best_static']['mean_score']:.3f} {entry['best_static']['action']}; "
            f"optimal {entry['optimal_tps']:.0f} tokens/s {entry['optimal_action']}"
        )
    if result["cost_scale"] != float(table.metadata["cost_scale"]):
        missed += 1
        print(
            f"the table's cost scale is {table.metadata['cost_scale']}, not {result['cost_scale']}: build it again with"
            f" python data/build_table.py --cost-scale {result['cost_scale']}",
            file=sys.stderr,
        )
    if arguments.check:
        same = OUT.read_text() == text
        print(
            "data/calibration.json is up to date"
            if same
            else "data/calibration.json differs: run python data/calibrate.py"
        )
        return 0 if same and not missed else 1
    OUT.write_text(text)
    print(f"wrote {OUT.relative_to(ROOT)}")
    if missed:
        print(f"{missed} checks failed: see above", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Pictures of the scenario pages: one episode under the best static action and under the tuned controller.

    python docs/scenario_pictures.py            # docs/images/drafts_by_load.svg, docs/images/second_gpu.svg

Settings of the controller are those that `python -m training headroom --task N --out docs/headroom/taskN` found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import inferencegym_jax as ig  # noqa: E402
from inferencegym_jax.policies.load_following import LoadPlan  # noqa: E402
from training import lanes, rivals  # noqa: E402
from training.headroom import played  # noqa: E402

OUT = ROOT / "docs" / "images"
FOUND = ROOT / "docs" / "headroom"
COLOURS = {"best static": "#e67e22", "best reactive": "#2980b9"}
EPISODES = {6: 0, 7: 3}  # which of the held-out episodes is drawn
NAMES = {6: "drafts_by_load", 7: "second_gpu"}


def plan_of(found: Mapping[str, Any]) -> LoadPlan:
    """The tuned settings that a headroom file holds."""
    return LoadPlan(**found["tuned"]["reactive"]["plan"])


def smooth(values: Any, span: int = 15) -> np.ndarray:
    """Mean over the last `span` seconds."""
    total = np.cumsum(np.concatenate([np.zeros(span), np.asarray(values, np.float64)]))
    return (total[span:] - total[:-span]) / np.minimum(np.arange(1, len(total) - span + 1), span)


def draw(task: int) -> None:
    """One task's picture."""
    problem = ig.problem(task)
    found = json.loads((FOUND / f"task{task}.json").read_text())
    steps = problem.spec.episode_length
    seeds = rivals.test_seeds(EPISODES[task] + 1)[-1:]
    actions = lanes.held(problem.best_static, 1, steps)
    trajectories = {
        "best static": lanes.episodes_of(problem, lanes.of_sequences(actions), seeds),
        "best reactive": lanes.episodes_of(problem, lanes.of_plans([plan_of(found)], steps), seeds),
    }
    load = rivals.true_load(problem, seeds, ahead=1)[0]
    drawing = Figure(figsize=(7.4, 6.2), layout="constrained")
    panels = drawing.subplots(4, 1, sharex=True)
    seconds = np.arange(steps)
    panels[0].fill_between(seconds, load, color="#95a5a6", lw=0)
    panels[0].axhline(1.0, color="#333333", lw=0.7, ls="--")
    panels[0].set_ylabel("load\n(of one GPU)")
    for name, trajectory in trajectories.items():
        score = float(played(problem, trajectory).columns["score"][0])
        column = {"color": COLOURS[name], "lw": 1.1, "label": f"{name}, score {score:.3f}"}
        if task == 7:
            panels[1].step(seconds, np.asarray(trajectory.outcome.gpu_seconds)[:, 0], where="post", **column)
        else:
            panels[1].step(seconds, np.asarray(trajectory.action.spec_length)[:, 0], where="post", **column)
        panels[2].semilogy(seconds, smooth(trajectory.metrics.ttft_p50_ms[:, 0]), **column)
        panels[3].semilogy(seconds, smooth(trajectory.metrics.tpot_ms[:, 0]), **column)
    panels[1].set_ylabel("GPUs paid" if task == 7 else "draft tokens")
    objectives = (problem.spec.slo_ttft_ms, problem.spec.tpot_objectives_ms)
    for axis, label, limits in zip(panels[2:], ("TTFT, median\n(ms)", "TPOT (ms)"), objectives, strict=True):
        axis.set_ylabel(label)
        for limit in {x for x in limits if np.isfinite(x)}:
            axis.axhline(limit, color="#7f8c8d", lw=0.8, ls="--")
    for axis in panels:
        axis.spines[["top", "right"]].set_visible(False)
    panels[1].legend(frameon=False, fontsize=8, loc="upper right")
    panels[-1].set_xlabel(f"second of the episode (seed {int(seeds[0])}); dashed: one GPU's capacity, objectives")
    drawing.savefig(OUT / f"{NAMES[task]}.svg", metadata={"Date": None})


def main() -> None:
    """Draw all of them."""
    matplotlib.rcParams |= {"svg.hashsalt": "inferencegym", "svg.fonttype": "none"}
    for task in NAMES:
        draw(task)


if __name__ == "__main__":
    main()

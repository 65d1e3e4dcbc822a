"""Pictures of the scenario pages: one episode under the best static action and under the tuned controller.

Of the held-out episodes it is the one whose load differs most between its first and its second half.

    python docs/scenario_pictures.py            # docs/images/drafts_by_load.svg, docs/images/second_gpu.svg

Settings of the controller are those that `python -m training headroom --task N --out docs/headroom/taskN` found.
"""

from __future__ import annotations

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
from inferencegym_jax.figure_style import COLOURS, STYLE  # noqa: E402
from training import lanes, rivals  # noqa: E402
from training.headroom import EPISODES, played, published, tuned_plan  # noqa: E402
from training.scenario_plot import draw_episode, steepest  # noqa: E402

OUT = ROOT / "docs" / "images"
LINES = {"best static": COLOURS["best_static"], "best reactive": COLOURS["reactive"]}
NAMES = {6: "drafts_by_load", 7: "second_gpu"}


def draw(task: int) -> None:
    """One task's picture."""
    problem = ig.problem(task)
    steps = problem.spec.episode_length
    held_out = rivals.test_seeds(EPISODES)
    loads = rivals.true_load(problem, held_out, ahead=1)
    drawn = steepest(loads)
    seeds, load = held_out[drawn : drawn + 1], loads[drawn]
    played_by = {
        "best static": lanes.of_sequences(lanes.held(problem.best_static, 1, steps)),
        "best reactive": lanes.of_plans([tuned_plan(published(task))], steps),
    }
    lines = {}
    for name, episode in played_by.items():
        trajectory = lanes.episodes_of(problem, episode, seeds)
        score = float(played(problem, trajectory).columns["score"][0])
        lines[f"{name}, score {score:.3f}"] = (trajectory, LINES[name])
    drawing = picture(Figure(figsize=(7.4, 6.2)), problem, load, lines, int(seeds[0]))
    drawing.savefig(OUT / f"{NAMES[task]}.svg", metadata={"Date": None})


def picture(
    drawing: Figure, problem: ig.Problem, load: np.ndarray, lines: Mapping[str, tuple[Any, str]], seed: int
) -> Figure:
    """Four panels over each other and the names above them.

    Args:
        drawing: an empty figure.
        problem: the task.
        load: float32[seconds], what arrives, as a share of one GPU's capacity.
        lines: label -> (``Trajectory`` with leading axes (seconds, 1), colour).
        seed: of the episode, for the caption.

    Returns:
        The figure.
    """
    drawing.subplots_adjust(left=0.12, right=0.98, top=0.9, bottom=0.09, hspace=0.16)
    panels = drawing.subplots(4, 1, sharex=True)
    draw_episode(panels, problem, load, lines)
    panels[-1].set_xlabel("second of the episode; dashed: one GPU's capacity, objectives")
    drawing.align_ylabels()
    names = panels[1].get_legend_handles_labels()
    drawing.legend(*names, loc="upper left", bbox_to_anchor=(0.11, 0.95), ncols=len(lines))
    title = f"Task {problem.spec.id}, {problem.spec.title}, held-out episode {seed}"
    drawing.suptitle(title, x=0.12, y=0.985, ha="left", fontsize=10)
    return drawing


def main() -> None:
    """Draw all of them."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "inferencegym", "svg.fonttype": "none"}):
        for task in NAMES:
            draw(task)


if __name__ == "__main__":
    main()

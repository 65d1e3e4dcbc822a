"""Pictures of the scenario pages: one episode under the best static action and under the tuned controller.

Of the held-out episodes it is the one whose load differs most between its first and its second half.

    python docs/scenario_pictures.py            # docs/images/drafts_by_load.svg, docs/images/second_gpu.svg

Settings of the controller are those that `python -m training headroom --task N --out docs/headroom/taskN` found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import inferencegym_jax as ig  # noqa: E402
from inferencegym_jax.figure_style import COLOURS  # noqa: E402
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
    drawing = Figure(figsize=(7.4, 6.2), layout="constrained")
    panels = drawing.subplots(4, 1, sharex=True)
    lines = {}
    for name, episode in played_by.items():
        trajectory = lanes.episodes_of(problem, episode, seeds)
        score = float(played(problem, trajectory).columns["score"][0])
        lines[f"{name}, score {score:.3f}"] = (trajectory, LINES[name])
    draw_episode(panels, problem, load, lines)
    drawing.legend(
        *panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8
    )
    panels[-1].set_xlabel(f"second of the episode (seed {int(seeds[0])}); dashed: one GPU's capacity, objectives")
    drawing.savefig(OUT / f"{NAMES[task]}.svg", metadata={"Date": None})


def main() -> None:
    """Draw all of them."""
    matplotlib.rcParams |= {"svg.hashsalt": "inferencegym", "svg.fonttype": "none"}
    for task in NAMES:
        draw(task)


if __name__ == "__main__":
    main()

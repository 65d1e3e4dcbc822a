"""The picture that a link to the page is previewed with: `python docs/page_preview.py`. Needs the demo extra.

The first screen's episode: what came first under the trained policy and under the best setting that never changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import inferencegym_jax as ig  # noqa: E402
from inferencegym_jax import figure_style as style  # noqa: E402
from inferencegym_jax.policies import policy_of  # noqa: E402

OUT = ROOT / "server" / "static" / "preview.png"
INCHES, DPI = (12.0, 6.3), 100  # 1200 x 630, what previews are cut to
TASK, SEED = 3, 9  # of the first screen, server/static/setup.js
LINES = {"trained": "a trained policy, every second", "best_static": "the best setting that never changes"}


def draw() -> Figure:
    """The picture as a figure."""
    problem = ig.problem(TASK)
    figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
    figure.text(0.05, 0.89, "InferenceGym JAX", fontsize=30, fontweight="bold", color=style.INK)
    asked = "Turn the knobs of an LLM server once a second. Can you beat the trained policy?"
    figure.text(0.05, 0.81, asked, fontsize=19)
    axes = figure.add_axes((0.09, 0.13, 0.66, 0.57))
    ends: dict[str, float] = {}
    for name in LINES:
        statistics = ig.evaluate(problem.env, problem.params, policy_of(name, problem), np.asarray([SEED]))
        steps = ig.rollout(problem.env, problem.params, policy_of(name, problem), np.asarray([SEED]))
        reward = np.cumsum(np.asarray(steps.reward)[:, 0])
        axes.plot(np.arange(1, len(reward) + 1), reward, color=style.COLOURS[name], lw=3.5)
        ends[f"{LINES[name]}\nscore {float(problem.score(statistics)[0]):.3f}"] = float(reward[-1])
        axes.set_xlim(0, len(reward))
    colours = dict(zip(ends, (style.COLOURS[name] for name in LINES), strict=True))
    style.label_levels(axes, ends, colours, size=13, lines=False, wrap=22)
    axes.set_xlabel("time (s)", fontsize=13)
    axes.set_ylabel("reward so far", fontsize=13)
    axes.tick_params(labelsize=12)
    style.tidy(axes)
    return figure


def main() -> None:
    """Draw it."""
    draw().savefig(OUT, metadata={"Software": None})


if __name__ == "__main__":
    main()

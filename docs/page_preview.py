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

from inferencegym_jax import figure_style as style  # noqa: E402
from server.first_screen import stored  # noqa: E402

OUT = ROOT / "server" / "static" / "preview.png"
INCHES, DPI = (12.0, 6.3), 100  # 1200 x 630, what previews are cut to
LINES = {"trained": "a trained policy,\nevery second", "best_static": "the best setting\nthat never changes"}


def played() -> dict[str, tuple[np.ndarray, float]]:
    """The reward so far under each policy of the first screen, float[seconds], and the episode's score."""
    first = stored()
    assert first is not None, "run python docs/first_screen.py"
    lanes = {lane["policy"]: lane for lane in first["lanes"]}
    return {name: (np.cumsum(lanes[name]["columns"]["reward"]), lanes[name]["grade"]["score"]) for name in LINES}


def draw(episodes: dict[str, tuple[np.ndarray, float]]) -> Figure:
    """The picture as a figure.

    Args:
        episodes: what ``played`` gave.
    """
    figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
    figure.text(0.05, 0.87, "InferenceGym JAX", fontsize=32, fontweight="bold", color=style.INK)
    asked = "Turn the knobs of an LLM server once a second. Can you beat the trained policy?"
    figure.text(0.05, 0.78, asked, fontsize=19, color=style.SOFT)
    axes = figure.add_axes((0.09, 0.13, 0.68, 0.57))
    ends, colours = {}, {}
    for name, (reward, score) in episodes.items():
        axes.plot(np.arange(1, len(reward) + 1), reward, color=style.COLOURS[name], lw=3.5)
        label = f"{LINES[name]}\nscore {score:.3f}"
        ends[label], colours[label] = float(reward[-1]), style.COLOURS[name]
        axes.set_xlim(0, len(reward))
    axes.margins(y=0.15)
    style.label_levels(axes, ends, colours, size=14, lines=False)
    axes.set_xlabel("time (s)", fontsize=13)
    axes.set_ylabel("reward so far", fontsize=13)
    axes.tick_params(labelsize=12)
    style.tidy(axes)
    return figure


def main() -> None:
    """Draw it."""
    draw(played()).savefig(OUT, metadata={"Software": None})


if __name__ == "__main__":
    main()

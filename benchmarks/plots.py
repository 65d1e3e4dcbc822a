"""The benchmark's two figures: steps a second over batch size, and the parts of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write ``rollout.png`` and ``parts.png`` into ``folder``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    caption = f"python -m benchmarks; {results['machine']['device']}, {results['machine']['cores']} cores"
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in results["sizes"].items():
        style = "--" if name == "CartPole-v1" else "-"
        axes.loglog([int(size) for size in points], list(points.values()), style, marker="o", markersize=4, label=name)
    axes.set_xlabel("environments in the batch")
    axes.set_ylabel("environment steps per second")
    axes.set_title(f"Rollouts of 200 steps ({caption})", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(folder / "rollout.png", dpi=150)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    names = list(results["parts"]["nanoseconds"])[::-1]
    axes.barh(names, [results["parts"]["nanoseconds"][name] for name in names], color="tab:blue")
    floor = results["parts"]["floor"]["nanoseconds"]
    axes.axvline(floor, color="black", linestyle=":", label=f"floor of the whole step, {floor:.1f} ns")
    axes.set_xlabel("nanoseconds per environment step, each part alone, 4,096 environments")
    axes.set_title(f"Parts of a step, task 3 ({caption})", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(folder / "parts.png", dpi=150)
    plt.close(figure)

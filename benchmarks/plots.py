"""The benchmark's two figures: steps a second over batch size, and the parts of a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferencegym_jax import figure_style as style

SHADES = {
    "task 1": "#2457d6",
    "task 2": "#c2570c",
    "task 3": "#13764a",
    "mixed": "#7c3aed",
    "policy network": "#b3203c",
    "CartPole-v1": style.INK,
}
RIVAL = "CartPole-v1"


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write ``rollout.png`` and ``parts.png`` into ``folder``."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style.STYLE):
        machine = f"{results['machine']['device'].upper()}, {results['machine']['cores']} cores"
        for name, picture in {
            "rollout": draw_sizes(Figure(figsize=(7, 4.5)), results["sizes"], machine),
            "parts": draw_parts(Figure(figsize=(7, 3.6)), results["parts"], machine),
        }.items():
            picture.text(0.01, 0.01, "python -m benchmarks", fontsize=6.5, color=style.SOFT, family="monospace")
            picture.savefig(folder / f"{name}.png", dpi=150)


def draw_sizes(figure: Any, sizes: Mapping[str, Mapping[str, float]], machine: str) -> Any:
    """Steps a second over the size of the batch, a named line a contender.

    Args:
        figure: an empty one of matplotlib.
        sizes: contender -> environments in the batch -> environment steps a second.
        machine: what it was measured on, for the title.

    Returns:
        The figure.
    """
    axis = figure.add_axes((0.11, 0.15, 0.72, 0.75))
    for name, points in sizes.items():
        line = {"color": SHADES.get(name, style.OTHER_COLOUR), "linestyle": "--" if name == RIVAL else "-"}
        at = [int(size) for size in points], [x / 1e6 for x in points.values()]
        axis.plot(*at, marker="o", markersize=3, clip_on=False, **line)
    axis.set(xscale="log", yscale="log", xlabel="environments in the batch")
    axis.set_ylabel("environment steps a second (millions)")
    axis.set_xlim(right=max(int(size) for points in sizes.values() for size in points))
    axis.set_title(f"Rollouts of 200 steps, {machine}", loc="left", fontsize=10)
    style.tidy(axis)
    last = {name: list(points.values())[-1] / 1e6 for name, points in sizes.items()}
    style.label_levels(axis, last, SHADES, lines=False)
    return figure


def draw_parts(figure: Any, parts: Mapping[str, Any], machine: str) -> Any:
    """Nanoseconds of each part of a step, with the floor of the whole step.

    Args:
        figure: an empty one of matplotlib.
        parts: ``nanoseconds`` (part -> nanoseconds) and ``floor`` (with ``nanoseconds``).
        machine: what it was measured on, for the title.

    Returns:
        The figure.
    """
    axis = figure.add_axes((0.34, 0.2, 0.62, 0.6))
    names = list(parts["nanoseconds"])[::-1]
    axis.barh(range(len(names)), [parts["nanoseconds"][name] for name in names], color=style.COLOURS["reactive"])
    floor = parts["floor"]["nanoseconds"]
    axis.axvline(floor, color=style.INK, ls=":", label=f"floor of the whole step: {floor:.1f} ns")
    axis.set_xlabel("nanoseconds an environment step (each part alone, 4,096 environments)")
    style.tidy(axis)
    axis.set_yticks(range(len(names)), names)
    axis.grid(visible=False, axis="y")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)
    figure.suptitle(f"Parts of a step of task 3, {machine}", x=0.34, y=0.97, ha="left", fontsize=10)
    return figure

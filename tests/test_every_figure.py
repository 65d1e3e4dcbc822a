"""Every figure that a program here writes: no text over another or over a curve, none cut off, axes named.

``FIGURES`` names them by the file that writes them; one that is missing here fails the first test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax import figure_style as style

matplotlib = pytest.importorskip("matplotlib", reason="needs the extra demo")

from matplotlib.figure import Figure  # noqa: E402

from inferencegym_jax.cli import measured_plot, scenario_report, trial_report  # noqa: E402
from tests.tools.figure_texts import collisions, on_curves, texts  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1800  # numbers on axes as wide as they come
RNG = np.random.default_rng(0)


def trajectory(level: float) -> Any:
    """What ``draw_episode`` reads of a trajectory."""
    noise = np.exp(0.3 * RNG.standard_normal((SECONDS, 1)))
    wave = np.sin(np.arange(SECONDS) / 360)[:, None]
    return SimpleNamespace(
        outcome=SimpleNamespace(gpu_seconds=np.where(wave > 0, 2, 1)),
        action=SimpleNamespace(spec_length=np.where(wave > 0, 8, 0)),
        metrics=SimpleNamespace(ttft_p50_ms=level * noise, tpot_ms=0.1 * level * noise),
    )


def benchmark_sizes() -> Figure:
    from benchmarks.plots import SHADES, draw_sizes

    sizes = (1, 8, 64, 512, 4096, 16384, 65536)
    fast = {str(n): 6e7 * n / (n + 400.0) for n in sizes}
    rates = {name: {n: rate * (1 + 0.01 * i) for n, rate in fast.items()} for i, name in enumerate(SHADES)}
    return draw_sizes(Figure(figsize=(7, 4.5)), rates, "CPU, 2 cores")


def benchmark_parts() -> Figure:
    from benchmarks.plots import draw_parts

    names = (
        "policy (two hashes, five knobs)",
        "draws: what leaves the window",
        "whole step with policy and auto-reset",
    )
    parts = {"nanoseconds": dict(zip(names, (6.9, 3.3, 32.3), strict=True)), "floor": {"nanoseconds": 21.1}}
    return draw_parts(Figure(figsize=(7, 3.6)), parts, "CPU, 2 cores")


def measured() -> Figure:
    rows: list[dict[str, Any]] = []
    for i in range(12):
        row: dict[str, Any] = {"role": "fitted" if i % 4 == 0 else "predicted"}
        for name, value in (("itl_mean", 8.0 + i), ("ttft_mean", 40.0 * 1.7**i), ("latency_mean", 900.0 * 1.4**i)):
            row |= {f"{name}_ms": value, f"{name}_predicted_ms": 1.1 * value}
        rows.append(row)
    return measured_plot.picture(rows, Figure(figsize=(10.5, 3.9)))


def fleet_day() -> Figure:
    from training.fleet_plot import picture

    wave = 20 + 12 * np.sin(np.arange(1200) / 200)
    rows = {"load": wave, "asked": wave + 3, "serving": wave + 2, "starting": 0 * wave + 1, "draining": 0 * wave + 1}
    rows |= {"on_time": wave, "judged": wave + 0.2, "gpu_seconds": 15 * wave}
    return picture(Figure(figsize=(9, 6.6)), rows, "Day 0 of fleet-elastic-m-mid, clock x10")


def windows() -> Any:
    names = {"two GPUs always": 80.0, "one GPU always": 900.0, "follows the load": 300.0}
    columns = {"gpu_seconds": np.asarray([3600.0]), "on_time_share": np.asarray([0.9999])}
    return SimpleNamespace(
        problem=SimpleNamespace(spec=ig.get_task(7)),
        played={name: SimpleNamespace(columns=columns) for name in names},
        trajectories={name: trajectory(level) for name, level in names.items()},
        load=np.linspace(0.2, 1.05, SECONDS),
        drawn=0,
    )


def demo() -> Figure:
    from training.demo import draw

    curve = [{"env_steps": 1e5 * i, "score": 1 - 0.8**i, "seconds": 19.0} for i in range(1, 9)]
    levels = {"baseline": 0.304, "random": 0.51, "reactive": 0.9989, "best_static": 0.999}
    rows: Any = [{"policy": name, "score": {"mean": level}} for name, level in levels.items()]
    return draw(windows(), {1: rows}, curve)


def scenario(task: int) -> Figure:
    from training.scenario_plot import episode_figure

    lines = {"best static, score 0.771": (trajectory(90.0), "#c2570c"), "best reactive": (trajectory(400.0), "#2457d6")}
    lines["trained, score 0.831"] = (trajectory(300.0), "#13764a")
    spec: Any = ig.get_task(task)
    problem: Any = SimpleNamespace(spec=spec)
    title = f"Task {task}, {spec.title}, held-out episode 4000000000"
    return episode_figure(Figure(figsize=(7.4, 6.2)), problem, np.linspace(0.2, 1.05, SECONDS), lines, title)


def physics() -> Figure:
    from docs.figures import picture

    batch = np.asarray([1, 4, 8, 16, 32, 64, 128, 256, 512])
    lines = {f"KV budget {k:g}": (batch, 20 + k * batch) for k in (0.1, 0.25, 0.5, 1.0)}
    return picture("batch size (requests)", "GPU memory (GB)", lines, xscale="log", yscale="log")


def iteration() -> Figure:
    from docs.figures import iteration
    from inferencegym_jax.table import profile_of

    return iteration(profile_of(ig.load_table()))


def traffic() -> Figure:
    from docs.figures import traffic_picture

    return traffic_picture({f"{i} {name}": RNG.poisson(9, 200) for i, name in enumerate("abcde")})


def headroom() -> Figure:
    from training.plots import draw_headroom_rows

    names = ("oracle", "best reactive, with lookahead and true rates", "learned", "baseline")
    interval = {"mean": 0.04, "low": 0.02, "high": 0.9}
    rows = [{"policy": name, "paired": interval, "worst": {"paired": -0.2}} for name in names]
    return draw_headroom_rows({"rows": rows, "task": 7, "title": "Second GPU"})


POLICIES = ("batch_size=64", "baseline", "best_static", "learned")


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": 0.8 * mean, "high": 1.2 * mean}


def trial() -> Figure:
    rows = {
        name: {
            "goodput": interval(2.0 + i),
            "ttft_mean_ms": interval(3000.0 * (1 + i)),
            "itl_ms": interval(20.0 + 50 * i),
        }
        for i, name in enumerate(POLICIES)
    }
    return trial_report.picture({"measured": rows, "predicted": rows}, Figure(figsize=(10.5, 3.9)))


def live_scenario() -> Figure:
    load = 10 + 8 * np.sin(np.arange(SECONDS) / 240)
    paid = 1 + (load > 12) + np.where(np.arange(SECONDS) == 900, 0.7, 0) - np.where(np.arange(SECONDS) == 100, 0.6, 0)
    one = {"instances": paid, "on_time": 0.9 * load, "asked": load}  # seconds are not measured evenly
    measured = {name: {"instances": interval(1.5), "on_time_share": interval(0.8)} for name in POLICIES}
    timeline = [{"load": load / 15, "policies": dict.fromkeys(POLICIES, one)}]
    figure = Figure(figsize=(8, 6), layout="constrained")
    return scenario_report.picture({"timeline": timeline, "measured": measured}, figure)


def one_episode() -> Figure:
    from inferencegym_jax.adapters import timeline
    from inferencegym_jax.models import KNOBS

    steps = np.arange(200)
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    played = timeline.Timeline(
        title="Bursty ShareGPT, seed 4294967295: second 200 of 200",
        arrivals=10.0 + steps % 7,
        queue=steps * 20.0,
        ttft_p50_ms=100.0 + steps,
        ttft_p99_ms=30000.0 + steps,
        memory_gb=30.0 + steps / 100,
        out_of_memory=steps > 190,
        burst=steps % 60 > 40,
        knobs={name: np.full(200, float(knob.default)) for name, knob in KNOBS.items()},
        slo_ms=(200.0, 2000.0, 20000.0),
        memory_limit_gb=38.0,
        length=200,
    )
    axes = figure.subplots(len(timeline.PANELS), 1, sharex=True, squeeze=False)
    timeline.draw(axes, [played], [style.COLOURS["reactive"]])
    return figure


FIGURES: dict[str, dict[str, Callable[[], Figure]]] = {
    "benchmarks/plots.py": {"sizes": benchmark_sizes, "parts": benchmark_parts},
    "docs/figures.py": {"physics": physics, "iteration": iteration, "traffic": traffic},
    "docs/page_preview.py": {},  # tests/test_figures.py
    "docs/scenario_pictures.py": {"task 6": lambda: scenario(6), "task 7": lambda: scenario(7)},
    "inferencegym_jax/adapters/timeline.py": {"one": one_episode},  # two beside each other: tests/test_figures.py
    "inferencegym_jax/cli/measured_plot.py": {"runs": measured},
    "inferencegym_jax/cli/pareto_plot.py": {},  # tests/test_figures.py
    "inferencegym_jax/cli/scenario_report.py": {"scenario": live_scenario},
    "inferencegym_jax/cli/trial_report.py": {"trial": trial},
    "training/demo.py": {"demo": demo},
    "training/fleet_plot.py": {"day": fleet_day},
    "training/plots.py": {"headroom": headroom},  # the others: tests/test_figures.py
}
NAMED = [(path, name) for path, figures in FIGURES.items() for name in figures]


def test_no_program_draws_a_figure_that_is_not_here() -> None:
    programs = [
        str(path.relative_to(ROOT))
        for folder in ("benchmarks", "data", "docs", "examples", "inferencegym_jax", "server", "training")
        for path in (ROOT / folder).rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in (".savefig(", ".buffer_rgba("))
    ]
    assert sorted(programs) == sorted(FIGURES)


@pytest.fixture
def styled() -> Iterator[None]:
    with matplotlib.rc_context(style.STYLE):
        yield


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_no_text_over_another_and_every_axis_named(path: str, name: str, styled: None) -> None:
    figure = FIGURES[path][name]()
    assert len(texts(figure)) > 5
    assert collisions(figure) == []
    assert on_curves(figure) == []
    assert figure.get_supylabel() or all(
        axis.get_ylabel() or axis.get_yticklabels()[0].get_text() for axis in figure.axes
    )
    assert any(axis.get_xlabel() for axis in figure.axes)


def test_a_curve_through_a_text_is_seen() -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], label="diagonal")
    axes.text(0.48, 0.48, "middle")
    axes.text(0.8, 0.1, "corner")
    assert on_curves(figure) == [("middle", "diagonal")]


def test_what_a_drawn_line_says_is_within_its_panel() -> None:
    """Where a program sets the limits itself, they hold what is drawn."""
    figure = live_scenario()
    panel = figure.axes[1]
    low, high = panel.get_ylim()
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in panel.lines])
    assert low <= drawn.min() and drawn.max() <= high


def test_draft_tokens_are_counted_in_whole_numbers() -> None:
    ticks = scenario(6).axes[1].get_yticks()
    assert all(tick == int(tick) for tick in ticks)

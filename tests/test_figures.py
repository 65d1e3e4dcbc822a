"""Figures fit for a paper: no text over another, numbers with separators, what was trained last is in them."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.figure_style import number, spread

pytest.importorskip("matplotlib", reason="needs the extra demo")

from matplotlib.figure import Figure  # noqa: E402

from inferencegym_jax import figure_style as style  # noqa: E402
from inferencegym_jax.adapters import timeline  # noqa: E402
from inferencegym_jax.cli import pareto_plot  # noqa: E402
from inferencegym_jax.models import KNOBS, ServeAction  # noqa: E402
from tests.tools.figure_texts import collisions, on_curves, texts  # noqa: E402

LEVELS = {"baseline": 0.3037, "random": 0.31, "reactive": 0.9989, "best_static": 0.999}


def words(figure: Any) -> set[str]:
    return {text for text, _ in texts(figure)}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs of task 1, the newest of which has a policy."""
    plots = pytest.importorskip("training.plots", reason="needs the extra train")
    monkeypatch.setattr(plots, "RUNS", tmp_path)
    for seed in range(3):
        folder = tmp_path / f"task1-seed{seed}"
        folder.mkdir()
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["env_steps", "score", "return"])
            for i in range(1, 20):
                writer.writerow([i * 131072, 0.3 + 0.035 * i + 0.01 * seed, -100 + 12 * i + seed])
        (folder / "policy.npz").write_bytes(b"")
        os.utime(folder, (1000 - seed, 1000 - seed))  # seed 0 is the newest
    return tmp_path


def test_learning_curves_have_bands_millions_and_names_apart(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import plots

    def levels(axis: Any, task: int | str, metric: str) -> None:
        style.label_levels(axis, {name: level * (1 if metric == "score" else 100) for name, level in LEVELS.items()})

    monkeypatch.setattr(plots, "policy_lines", levels)
    with plots.plt.rc_context(plots.STYLE):
        figure = plots.curves(1, plots.runs_of(1))
    assert collisions(figure) == []
    assert on_curves(figure) == []
    for axis in figure.axes:
        assert axis.get_xlabel() == "environment steps (millions)" and axis.get_ylabel()
        assert axis.get_xlim() == (0.0, pytest.approx(19 * 0.131072))
        assert len(axis.collections) == 1  # the band over seeds
    assert {"best static", "reactive", "baseline", "random"} <= words(figure)


def test_the_run_that_was_trained_last_is_drawn_by_default(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import plots

    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plots, "episode", lambda task, names, seed: drawn.update(timeline=names))
    monkeypatch.setattr(plots, "pareto", lambda task, names: drawn.update(pareto=names))
    monkeypatch.setattr(plots, "save", lambda *_: [])
    for what in ("timeline", "pareto"):
        plots.draw(what, 1, [], [], 0, None)
        assert str(runs / "task1-seed0") in drawn[what]
        plots.draw(what, 1, [], ["baseline"], 0, None)
        assert drawn[what] == ["baseline"]
    plots.draw("timeline", 4, [], [], 0, None)  # no run of it
    assert drawn["timeline"] == ["baseline", "trained"]


def test_the_pareto_plot_draws_its_front_and_no_text_over_another() -> None:
    plots = pytest.importorskip("training.plots", reason="needs the extra train")
    rng = np.random.default_rng(0)
    cost, latency = rng.uniform(0.01, 0.06, 400), rng.uniform(90, 8000, 400)
    safe = rng.random(400) < 0.7
    points = {name: (0.02 + 0.001 * i, 500.0 + i) for i, name in enumerate((*style.COLOURS, "runs/task1-seed0"))}
    with plots.plt.rc_context(plots.STYLE):
        figure = plots.draw_pareto(ig.get_task(3), cost, latency, safe, points)
    assert collisions(figure) == []
    assert on_curves(figure) == []
    assert "front of the static actions" in words(figure)
    chosen = np.flatnonzero(safe)[plots.front(cost[safe], latency[safe])]
    beaten = [((cost[safe] <= cost[i]) & (latency[safe] < latency[i])).any() for i in chosen]
    assert not any(beaten)
    for i in set(np.flatnonzero(safe)) - set(chosen):
        assert ((cost[safe] <= cost[i]) & (latency[safe] <= latency[i])).sum() > 1


def recommendation() -> Any:
    """An answer whose configurations lie close to each other."""
    knobs = ServeAction().to_dict()
    front = [
        {"knobs": knobs | {"batch_size": 64 + i, "spec_length": 4, "quant_tier": 1}, "goodput": 5.0 + 0.001 * i}
        | {"ttft_p99_ms": 300.0 + 0.5 * i, "cost_per_1k": 0.01, "memory_gb": 30.0}
        for i in range(6)
    ]
    named = {name: dict(front[i]) for i, name in enumerate(("recommended", "best", "current", "Reactive"))}
    return SimpleNamespace(pareto=front, results=named, objective=SimpleNamespace(ttft_ms=302.0))


def test_the_recommended_point_stands_out_and_its_labels_apart() -> None:
    figure = pareto_plot.picture(recommendation(), Figure())
    assert collisions(figure) == []
    assert on_curves(figure) == []
    said = words(figure)
    assert "recommended" in said and {str(i) for i in range(1, 7)} <= said
    assert any("Batch size 66" in text for text in said)
    star = next(line for line in figure.axes[0].lines if line.get_label() == "recommended")
    assert star.get_marker() == "*" and list(star.get_xdata()) == [300.0]


def test_a_batch_that_never_changes_is_seen_in_the_timeline() -> None:
    steps = np.arange(200)

    def played(batch: int) -> timeline.Timeline:
        constant = {name: np.full(200, float(knob.default)) for name, knob in KNOBS.items()}
        return timeline.Timeline(
            title=f"batch {batch}",
            arrivals=10.0 + steps % 7,
            queue=steps * 2.0,
            ttft_p50_ms=100.0 + steps,
            ttft_p99_ms=300.0 + steps,
            memory_gb=30.0 + steps / 100,
            out_of_memory=steps > 190,
            burst=steps % 60 > 40,
            knobs=constant | {"batch_size": np.full(200, float(batch))},
            slo_ms=(200.0, 2000.0),
            memory_limit_gb=38.0,
            length=200,
        )

    figure = Figure(figsize=(9.8, 9))
    axes = figure.subplots(len(timeline.PANELS), 2, sharex=True, squeeze=False)
    timeline.draw(axes, [played(32), played(512)], ["#6e7781", "#13764a"])
    assert collisions(figure) == []
    assert on_curves(figure) == []
    for column, batch in enumerate((32, 512)):
        panel = axes[timeline.PANELS.index("batch"), column]
        heights = panel.transAxes.inverted().transform(panel.transData.transform([(0.0, batch)]))
        assert 0.05 < heights[0, 1] < 0.97  # off both edges
        assert panel.lines[0].get_linewidth() >= 1.5


def test_numbers_have_separators() -> None:
    assert [number(x) for x in (12345.0, 0.05, 1.0, 2.5, 1e-6)] == ["12,345", "0.05", "1", "2.5", "1e-06"]


def test_names_move_apart_and_no_further() -> None:
    placed = spread([0.0, 0.1, 5.0], [1.0, 1.0, 1.0])
    assert placed == pytest.approx([-0.45, 0.55, 5.0])
    heights = [0.5, 1.0, 2.0, 0.5]
    placed = spread([0.0, 0.0, 0.0, 9.0], heights)
    gaps = np.diff(placed) - (np.array(heights[:-1]) + np.array(heights[1:])) / 2
    assert (gaps > -1e-9).all() and placed[-1] == 9.0


def test_the_preview_of_a_link_can_be_read() -> None:
    from docs import page_preview

    rewards = np.linspace(0.0, 16.0, 200)
    figure = page_preview.draw({"trained": (rewards, 0.586), "best_static": (rewards - 0.5, 0.577)})
    assert collisions(figure) == []
    assert on_curves(figure) == []
    assert {"InferenceGym JAX", "the best setting\nthat never changes\nscore 0.577"} <= words(figure)
    assert tuple(figure.get_size_inches() * figure.dpi) == (1200.0, 630.0)

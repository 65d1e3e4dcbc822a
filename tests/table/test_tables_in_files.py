"""Tables keep every column and every title whole where stdout is a file or a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from inferencegym_jax.cli import output
from training import demo, tables


def shown(renderable: object, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def demo_row(**changes: float) -> dict[str, object]:
    means = {
        "return": -200.04, "mean_tps": 18_349.0, "mean_ttft_p50_ms": 13_692.0, "mean_ttft_p99_ms": 14_741.0,
        "mean_tpot_ms": 31.0, "mean_violation_rate": 0.807, "total_cost": 15.02, "goodput_share": 1.0,
        "on_time_share": 1.0, "gpu_seconds": 0.0, "late": 0.0, "rejected": 1000.0, "arrivals": 8000.0,
        "oom_share": 0.254,
    }  # fmt: skip
    score = {"mean": 0.624, "low": 0.62, "high": 0.63}
    return {"policy": "best_static", "score": score, "means": means | changes, "rate": 105_517}


def test_the_demo_cuts_no_header_and_says_what_became_of_the_requests() -> None:
    by_request = demo_row(
        goodput_share=0.911, on_time_share=0.902, gpu_seconds=223.0, late=700.0, rejected=8.0, oom_share=0.0
    )
    text = shown(demo.results_table({3: [demo_row()], 4: [by_request]}, 1024), demo.TABLE_WIDTH)
    assert "…" not in text and "violation" in text and "episodes/s" in text and "-200.0" in text
    closed, opened = (next(line for line in text.splitlines() if line.split()[:1] == [task]) for task in "34")
    assert "12.5 %" in closed and "25.4 %" in closed and "100.0 %" not in closed
    assert all(cell in opened for cell in ("91.1 %", "90.2 %", "223", "8.8 %", "0.1 %", " 0 %"))


def test_a_share_that_is_not_0_does_not_read_as_0() -> None:
    assert [tables.percent(x) for x in (0.0, 0.0001, 0.0005, 0.0711, 1.0)] == [
        "0 %", "< 0.1 %", "0.1 %", "7.1 %", "100.0 %",
    ]  # fmt: skip


def test_a_title_longer_than_its_table_is_one_line() -> None:
    title = "Bursty ShareGPT, policy batch_size=256,kv_budget=0.25, 256 episodes (mean ± 95 % interval)"
    table = output.table(("", "an episode"), [("score", 0.5)])
    assert shown(output.headed(title, table), output.WIDTH).splitlines()[0].rstrip() == title


def test_consoles_are_wide_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert tables.screen().width == tables.WIDTH >= 120 and output.answers().width == output.WIDTH >= 120

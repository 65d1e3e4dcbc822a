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


def test_the_demo_cuts_no_header() -> None:
    names = ("return", "mean_tps", "mean_ttft_p50_ms", "mean_ttft_p99_ms", "mean_violation_rate", "total_cost")
    means = dict(zip(names, (-200.04, 18_349.0, 13_692.0, 14_741.0, 0.807, 15.02), strict=True)) | {"oom_share": 0.254}
    row = {
        "policy": "best_static",
        "score": {"mean": 0.624, "low": 0.62, "high": 0.63},
        "means": means,
        "rate": 105_517,
    }
    text = shown(demo.results_table({3: [row]}, 1024), demo.TABLE_WIDTH)
    assert "…" not in text and "violation" in text and "episodes/s" in text and "-200.0" in text and "25.4 %" in text


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

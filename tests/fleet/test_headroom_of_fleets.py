"""What control of a fleet is worth: every row of the table, and rows of policies added to a table that stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferencegym_jax.fleet.making import OUT_OF_REACH, draw_condition
from inferencegym_jax.fleet.rules import DEFAULTS
from inferencegym_jax.fleet.spec import get_fleet
from inferencegym_jax.fleet.statistics import share_on_time
from inferencegym_jax.policies.fleet_names import fleet_file
from training import fleet_headroom, fleet_learned, fleet_tables
from training.fleet_evaluation import against_defaults, defaults_markdown
from training.fleet_headroom import TARGETS, measure, with_learned
from training.fleet_points import SETTINGS, Points, seeds_of

ROWS = (*TARGETS, "tuned on the pool", "calm", "fixed split", "reactive, true rates", "clairvoyant, at least")


def test_a_row_is_the_frontier_of_its_settings() -> None:
    points, days = Points(3), np.ones(3)
    for share, gpus in ((0.98, 2.0), (1.0, 4.0)):
        points.add("fixed size", gpus, gpus * days, 100.0 * share * days, 100.0 * days, 0.0 * days)
    points.add("other", "a", 2.4 * days, 99.5 * days, 100.0 * days, 0.0 * days)
    points.add("late", "a", 2.4 * days, 50.0 * days, 100.0 * days, 0.0 * days)
    fixed, other, late = points.rows()
    assert fixed["gpus"]["mean"] == pytest.approx(3.0) and fixed["over_fixed"] == 0.0  # half way between the two
    assert fixed["gpus"]["low"] == pytest.approx(3.0) == fixed["gpus"]["high"]
    assert other["over_fixed"] == pytest.approx(2.4 / 3.0 - 1.0) and late["gpus"] is None and late["over_fixed"] is None


def test_the_share_on_time_is_of_all_days_requests_and_not_a_mean_of_days() -> None:
    on_time, judged = np.asarray([[10.0, 0.0], [0.0, 0.0]]), np.asarray([[10.0, 90.0], [0.0, 0.0]])
    assert share_on_time(on_time, judged).tolist() == [0.1, 0.0]


@pytest.mark.slow
def test_every_row_is_measured_and_policies_are_added(tmp_path: Path) -> None:
    spec = get_fleet("fleet-elastic").replace(windows_a_day=48, start_s=15.0)
    part = measure(spec, 2, failures=False)
    assert [row["rule"] for row in part["rows"]] == list(ROWS)
    assert [row["rule"] for row in part["defaults"]] == list(DEFAULTS)
    fixed = next(row for row in part["rows"] if row["rule"] == "fixed size")["settings"]
    assert [setting["gpus"] for setting in fixed] == sorted(setting["gpus"] for setting in fixed)
    usual: dict[str, Any] = {"clock": 12.0, "start_s": 30.0}
    table = {"task": "fleet-elastic", "version": "0", "parts": [{**part, **usual}]}
    fleet_tables.write(table, tmp_path / "table")
    again = with_learned(fleet_tables.read(tmp_path / "table.json"), [fleet_file("fleet-elastic")])
    assert [row["rule"] for row in again["parts"][0]["rows"]] == [*ROWS, "learned, fleet-elastic"]
    assert "learned, fleet-elastic" in fleet_tables.markdown(again)
    with pytest.raises(ValueError, match="not what fleet-headroom writes"):
        (tmp_path / "other.json").write_text("{}")
        fleet_tables.read(tmp_path / "other.json")


@pytest.mark.slow
def test_ours_beside_rules_at_their_defaults() -> None:
    table = against_defaults("fleet-elastic", ("reactive", "gpus=7"), 2)
    assert [row["rule"] for row in table["rows"]] == list(DEFAULTS)
    for row in table["rows"]:
        for over in row["over"].values():
            better = over["points"]["mean"] >= 10.0
            cheaper = over["points"]["mean"] >= 0.0 and over["gpus"]["mean"] <= -0.2
            assert over["holds"] == (better or cheaper)
            assert over["points"]["low"] <= over["points"]["mean"] <= over["points"]["high"]
    cache = next(row for row in table["rows"] if row["rule"] == "HPA, KV cache")
    assert cache["over"]["reactive"]["holds"] and cache["over"]["gpus=7"]["gpus"]["mean"] > 1.0
    assert len(defaults_markdown(table).splitlines()) == 4 + len(DEFAULTS) + 2
    with pytest.raises(ValueError, match="episodes = 0"):
        against_defaults("fleet-elastic", ("reactive",), 0)


def test_every_row_is_measured_at_both_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, dict[str, Any], bool]] = []

    def measured(task: str, days: int, *, changes: dict[str, Any], failures: bool = True, **_: Any) -> dict[str, Any]:
        asked.append((days, changes, failures))
        return {"task": task, "version": "0"}

    monkeypatch.setattr(fleet_headroom, "measure", measured)
    both = fleet_headroom.measure_both("fleet-elastic", 24, 36)
    assert asked == [(24, SETTINGS[0], True), (36, SETTINGS[1], False)] and len(both["parts"]) == 2
    assert [(one["clock"], one["start_s"]) for one in SETTINGS] == [(12.0, 30.0), (1.0, 100.0)]
    windows = seeds_of(get_fleet("fleet-elastic").replace(**SETTINGS[1]), 24)
    assert len({int(seed) // 12 for seed in windows}) == 24  # twelve windows a day: each is of a day of its own
    assert seeds_of(get_fleet("fleet-elastic"), 3, 5).tolist() == [5, 6, 7]


def test_learned_policies_are_compared_at_both_clocks_or_by_price(monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(task: Any, files: Any, days: int, changes: dict[str, Any], first: int) -> dict[str, Any]:
        gpus, missed = {"mean": 4.5, "low": 4.0, "high": 5.0}, dict.fromkeys(("mean", "low", "high"), float("nan"))
        rows = {"tuned on the pool": gpus, files[0]: missed}
        return {"days": days, "hours": 24.0, **changes, "rows": rows, "over_tuned": rows}

    monkeypatch.setattr(fleet_learned, "compare", compared)
    both = fleet_learned.comparison("fleet-elastic", ["mine.npz"], 24, 12)
    assert [(part["days"], part["clock"]) for part in both["parts"]] == [(24, 12.0), (12, 1.0)]
    assert len(fleet_learned.comparison("fleet-elastic", ["mine.npz"], 24, 0)["parts"]) == 1
    text = fleet_learned.markdown(both)
    assert "x12, start 30 s, 24 days" in text and "x1, start 100 s, 12 days" in text
    assert "| tuned on the pool | 4.50 [4.00, 5.00] | +450.0% [+400.0%, +500.0%] |" in text
    assert "| mine.npz | not reached |  | not reached |  |" in text


@pytest.mark.parametrize(
    ("task", "days", "windows", "said"),
    [
        ("fleet-elastic", 1, 0, "days = 1: must be a whole number of at least 2"),
        ("fleet-elastic", 2, 1, "windows = 1: must be a whole number of at least 2"),
        ("fleet-nowhere", 2, 0, "no such fleet task"),
    ],
)
def test_what_cannot_be_compared_is_said(task: str, days: int, windows: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fleet_learned.comparison(task, ["mine.npz"], days, windows)


@pytest.mark.slow
def test_a_day_is_drawn_under_any_policy(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra demo")
    from training.fleet_plot import draw_day

    short = get_fleet("fleet-elastic").replace(windows_a_day=48)
    paths = draw_day(short, tmp_path / "day", 1, "gpus=4")
    assert [path.name for path in paths] == ["day.png", "day.svg"] and all(path.stat().st_size > 5000 for path in paths)
    with pytest.raises(ValueError, match="no such name and no such file"):
        draw_day(short, tmp_path / "day", 1, "nobody")


@pytest.mark.slow
def test_prices_are_over_the_shipped_rules_on_the_same_conditions() -> None:
    file = str(fleet_file("fleet-anywhere"))
    found = fleet_learned.comparison("fleet-anywhere", [file], 6)
    groups = found["rows"][file]
    pools = [draw_condition(seed).pool for seed in range(6)]
    assert {name: groups[name]["count"] for name in set(pools)} == {name: pools.count(name) for name in set(pools)}
    hopeless = sum((c.slo_ttft_ms, c.slo_tpot_ms) == OUT_OF_REACH for c in map(draw_condition, range(6)))
    counts = {name: row["count"] for name, row in groups.items()}
    assert (counts["all"], counts.get("out of reach", 0), counts.get("in reach", 0)) == (6, hopeless, 6 - hopeless)
    every = groups["all"]
    assert every["low"] <= every["median"] <= every["high"] and every["dearest"] >= 1.0 + every["median"]
    assert len(fleet_learned.markdown(found).splitlines()) == 4 + len(groups)

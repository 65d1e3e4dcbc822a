"""What control of a fleet is worth: every row of the table, and rows of policies added to a table that stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferencegym_jax.fleet.rules import DEFAULTS
from inferencegym_jax.fleet.spec import get_fleet
from inferencegym_jax.policies.fleet_names import fleet_file
from training import fleet_tables
from training.fleet_evaluation import against_defaults, defaults_markdown
from training.fleet_headroom import TARGETS, measure, with_learned
from training.fleet_points import Points

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

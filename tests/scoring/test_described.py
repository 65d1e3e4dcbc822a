"""Every statistic has a name and a unit that a reader knows; the shares beside every score count what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.cli.episodes import SHOWN, SHOWN_OPEN_LOOP, label
from inferencegym_jax.scoring.described import SHARES, STATISTICS, failure_shares
from training.tables import evaluation_table


def statistics(**changes: float) -> ig.EpisodeStatistics:
    fields = {f.name: np.zeros(1) for f in dataclasses.fields(ig.EpisodeStatistics)}
    return ig.EpisodeStatistics(**{**fields, **{name: np.asarray([value]) for name, value in changes.items()}})


def test_every_statistic_is_named_once() -> None:
    names = {f.name for f in dataclasses.fields(ig.EpisodeStatistics)}
    assert names | set(SHARES) == set(STATISTICS)
    labels = [label(name) for name in STATISTICS]
    assert len(set(labels)) == len(labels) and not any("_" in one for one in labels)
    assert set(SHARES) <= set(SHOWN) & set(SHOWN_OPEN_LOOP)


def test_shares_of_requests_that_are_counted() -> None:
    found = failure_shares(ig.get_task(4), statistics(arrivals=200, rejected=20, late=40, judged=180, on_time=120))
    assert found["late_share"] == pytest.approx(0.2) and found["rejected_share"] == pytest.approx(0.1)


def test_shares_of_a_closed_loop() -> None:
    found = failure_shares(
        ig.get_task(2), statistics(arrivals=100, rejected=5, mean_violation_rate=0.25, oom_share=0.5)
    )
    assert {name: float(share[0]) for name, share in found.items()} == {
        "oom_share": 0.5,
        "late_share": 0.25,
        "rejected_share": 0.05,
    }


def test_training_evaluate_prints_them_first() -> None:
    one = {"mean": 0.5, "low": 0.4, "high": 0.6}
    table = evaluation_table(
        {
            "task": 4,
            "policy": "reactive",
            "episodes": 8,
            "score": one,
            "return": one,
            "paired": {},
            "metrics": dict.fromkeys(STATISTICS, one),
        }
    )
    names = [str(cell) for cell in table.columns[0].cells]
    assert names[2:5] == [said.title for said in SHARES.values()]
    assert [str(cell) for cell in table.columns[2].cells][names.index("time to first token, median")] == "ms"

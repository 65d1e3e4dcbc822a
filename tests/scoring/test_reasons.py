"""The sentence of a grade names the component that costs most and the numbers that made it so."""

from __future__ import annotations

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.scoring.formula import formula
from inferencegym_jax.scoring.reasons import reason
from inferencegym_jax.tasks import calibration_of


def aggregates(**changes: float) -> ig.grader.Aggregates:
    """An episode of 200 seconds, unremarkable but for what is changed."""
    usual = dict.fromkeys(ig.grader.Aggregates.__dataclass_fields__, 0.0)
    usual |= {"steps": 200, "mean_tps": 5000.0, "goodput_share": 1.0, "on_time_share": 1.0, "quality": 1.0}
    return ig.grader.Aggregates(**{name: np.float64(value) for name, value in (usual | changes).items()})


@pytest.mark.parametrize("task", [1, 2, 3, 4, 6, 7])
def test_every_component_of_every_task_has_its_reason(task: int) -> None:
    spec = ig.get_task(task)
    said = {name: reason(spec, name, aggregates(), calibration_of(spec)) for name in formula(spec)}
    assert all(any(letter.isdigit() for letter in text) and not text.endswith(".") for text in said.values())
    with pytest.raises(KeyError):
        reason(spec, "beauty", aggregates(), calibration_of(spec))


@pytest.mark.parametrize(
    ("task", "component", "changes", "told"),
    [
        (1, "throughput", {"mean_tps": 1234.4}, "1,234 tokens/s"),
        (2, "latency", {"mean_ttft_p50_ms": 512.3}, "512 ms on average, and from 300 ms"),
        (2, "memory", {"peak_memory_gb": 38.14}, "38.1 GB, the limit is 36 GB"),
        (3, "slo", {"mean_violations": 59.81}, "59.8 requests a second"),
        (3, "cost", {"total_cost": 7.251}, "7.25 scaled GPU s/1k tokens, the budget is 5"),
        (3, "stability", {"batch_jitter": 60.2, "kv_jitter": 0.1}, "moved by 60.2 and the KV budget by 0.100"),
        (4, "goodput_share", {"goodput_share": 0.75}, "25.0 % of the output tokens"),
        (4, "on_time_share", {"on_time_share": 0.9}, "10.0 % of the requests"),
        (7, "cost", {"steps": 1800, "gpu_seconds": 3600.0}, "3,600 GPU-seconds"),
    ],
)
def test_the_reason_holds_the_numbers(task: int, component: str, changes: dict[str, float], told: str) -> None:
    spec = ig.get_task(task)
    assert told in reason(spec, component, aggregates(**changes), calibration_of(spec))


def test_saving_gpus_at_the_cost_of_requests_is_said_to_count_for_nothing() -> None:
    spec = ig.get_task(7)
    norms = calibration_of(spec)
    kept, lost = (
        reason(spec, "cost", aggregates(steps=1800, gpu_seconds=1800.0, on_time_share=share), norms)
        for share in (norms["static_on_time_share"], 0.5)
    )
    assert "does not count" in lost and "50.0 %" in lost and "does not count" not in kept

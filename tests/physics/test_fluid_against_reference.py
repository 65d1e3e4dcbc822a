"""The compiled step beside the request-by-request engine, case by case, within the limits of ``compare.FAMILIES``.

`python -m tests.reference.compare` prints the table of docs/fidelity.md.
"""

import pytest

from tests.reference import azure
from tests.reference.cases import CASES, committed
from tests.reference.compare import LOG_LIMITS, NONE, Limits, limits_of, misses, of_log, row
from tests.reference.fluid import case_figures

FIGURES = {
    "itl_mean_ms": 20.0,
    "ttft_mean_ms": 200.0,
    "ttft_p50_ms": 150.0,
    "ttft_p99_ms": 900.0,
    "tokens_per_s": 800.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if limits_of(name) is not NONE])
def test_the_fluid_follows_the_reference(name):
    assert misses(case_figures(CASES[name]), committed()["cases"][name], limits_of(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log", "speed"),
    [(log, speed) for log in azure.FILES for speed in azure.SPEEDS],
)
def test_the_fluid_follows_the_reference_on_public_logs(log, speed):
    if azure.log_path(log) is None:
        pytest.skip(f"{azure.FILES[log]} is not at hand (INFERENCEGYM_LOGS)")
    assert misses(*of_log(log, speed), LOG_LIMITS) == []


def test_every_case_of_the_specifications_table_has_its_limits():
    assert limits_of("constant_0.9").ttft_mean == 0.20 and limits_of("constant_0.8").ttft_mean == 0.10
    assert limits_of("dispersed_0.9") == Limits(tpot=0.03, ttft_mean=0.10, ttft_p99=0.35, on_time=0.03)
    assert limits_of("bursts_dispersed").ttft_mean == 0.15 and limits_of("bursts_constant").ttft_mean == 0.20
    assert limits_of("small_pool_0.9") == Limits(throughput=0.03, preemptions=1.5, on_time=0.08)
    assert {name for name in CASES if limits_of(name) is NONE} == {"small_pool_1.0", "small_pool_constant_1.0"}


def test_a_figure_beyond_its_limit_is_named():
    reference = FIGURES | {"on_time_500_50": 0.8, "preemption_events": 30.0}
    off = reference | {"ttft_mean_ms": 221.0, "on_time_500_50": 0.84, "preemption_events": 15.0}
    limits = Limits(tpot=0.03, ttft_mean=0.10, ttft_p99=0.35, throughput=0.03, on_time=0.03, preemptions=1.5)
    assert misses(reference, reference, limits) == []
    found = misses(off, reference, limits)
    assert [sentence.split(":")[0] for sentence in found] == ["ttft_mean_ms", "on_time_500_50", "preemption_events"]
    assert misses(reference | {"itl_mean_ms": float("nan")}, reference, limits)
    assert "+10.5 %" in " ".join(row("case", off, reference)) and "30: 15" in row("case", off, reference)

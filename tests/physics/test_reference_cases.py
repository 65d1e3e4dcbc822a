"""The committed figures of the comparison grid are the reference's own, and its traffic is what the cases say."""

import numpy as np
import pytest

from tests.reference import azure
from tests.reference.cases import AZURE, CASES, ENGINES, capacity, committed, requests_of
from tests.reference.iteration import digest, load_profile
from tests.reference.run_cases import capacities, figures
from tests.reference.serving import serve
from tests.reference.settings import Settings
from tests.reference.summary import mean_of
from tests.reference.traffic import Requests, dispersion


def test_every_case_has_its_figures():
    figures_of = committed()["cases"]
    assert list(figures_of) == list(CASES)
    assert {name: figures_of[name]["runs"] for name in CASES} == {name: case.runs for name, case in CASES.items()}
    for name, case in CASES.items():
        assert figures_of[name]["finished"] == figures_of[name]["requests"] > 100, name
        assert set(case.objectives) and all(f"on_time_{a:g}_{b:g}" in figures_of[name] for a, b in case.objectives)


def test_the_figures_are_those_of_the_profile_that_the_project_ships():
    assert committed()["profile_sha256"] == digest(load_profile()), f"run {committed()['command']}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["constant_0.5", "dispersed_0.9", "small_pool_1.0", "coding_0.1_drafts_2", "to_int8"])
def test_the_committed_figures_are_the_engines(name):
    profile, case = load_profile(), CASES[name]
    again = mean_of([figures(case, seed, profile, committed()["capacity"]) for seed in range(case.runs)])
    written = committed()["cases"][name]
    assert set(again) == set(written) - {"runs"}
    # to the digit on one kind of machine; another's exp may round a length elsewhere, and the runs part
    for key in set(again) - {"spread"}:
        assert again[key] == pytest.approx(written[key], rel=0.01, abs=0.01, nan_ok=True), key


@pytest.mark.slow
def test_the_committed_capacities_are_the_engines():
    assert capacities(load_profile()) == pytest.approx(committed()["capacity"], rel=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["constant", "dispersed", "small_pool"])
def test_the_engine_keeps_up_below_its_capacity_and_not_above(name):
    engine, profile, length_s = ENGINES[name], load_profile(), 1500

    def late_wait(share: float) -> tuple[float, float]:
        """Mean TTFT (s) in the second and in the last fifth of the time."""
        random = np.random.default_rng(5)
        rate = share * committed()["capacity"][name]
        arrival = np.sort(random.uniform(0, 1000 * length_s, int(rate * length_s)))
        result = serve(Requests(arrival, *engine.lengths.draw(len(arrival), random)), engine.settings, profile)
        fifth = (arrival / (200 * length_s)).astype(int)
        return result.ttft_ms[fifth == 1].mean() / 1000, result.ttft_ms[fifth == 4].mean() / 1000

    assert max(late_wait(0.93)) < 10
    early, late = late_wait(1.07)
    assert late - early > 0.8 * 0.07 / 1.07 * 0.6 * length_s  # the line grows by what is not finished


def test_the_drawn_lengths_are_as_dispersed_as_the_case_says():
    prompt, output = AZURE.draw(200_000, np.random.default_rng(0))
    for tokens, mean, cv in ((prompt, AZURE.prompt, AZURE.cv_prompt), (output, AZURE.output, AZURE.cv_output)):
        assert tokens.mean() == pytest.approx(mean, rel=0.01)
        assert tokens.std() / tokens.mean() == pytest.approx(cv, rel=0.04)
    assert np.corrcoef(prompt, output)[0, 1] == pytest.approx(AZURE.correlation, abs=0.02)


def test_a_cases_traffic_has_its_rate_its_bursts_and_its_classes():
    rate = committed()["capacity"]["dispersed"]
    runs = [requests_of(CASES["bursts_dispersed"], seed) for seed in range(10)]
    count = np.mean([np.bincount((run.arrival_ms / 1000).astype(int), minlength=300) for run in runs], axis=0)
    assert count[80:100].mean() == pytest.approx(1.5 * rate, rel=0.05)
    assert count[:80].mean() == pytest.approx(0.5 * rate, rel=0.05)
    assert dispersion(runs[0]).arrival_scv == pytest.approx(1, abs=0.1)
    share = np.bincount(requests_of(CASES["classes_overload"], 0).priority) / len(
        requests_of(CASES["classes_overload"], 0)
    )
    assert share == pytest.approx([0.3, 0.3, 0.4], abs=0.04)
    assert (requests_of(CASES["constant_0.5"], 0).prompt == 1155).all()
    same, again = requests_of(CASES["dispersed_0.5"], 3), requests_of(CASES["dispersed_0.5"], 3)
    assert (same.arrival_ms == again.arrival_ms).all() and (same.output == again.output).all()


@pytest.mark.skipif(azure.log_path("conv") is None, reason="Azure's log is not at hand (INFERENCEGYM_LOGS)")
def test_azures_dispersion_is_the_logs():
    log = azure.load("conv")
    measured = dispersion(log)
    assert (log.prompt.mean(), log.output.mean()) == pytest.approx((AZURE.prompt, AZURE.output), rel=0.001)
    assert (measured.cv_prompt, measured.cv_output) == pytest.approx((AZURE.cv_prompt, AZURE.cv_output), abs=0.001)
    assert measured.correlation == pytest.approx(AZURE.correlation, abs=0.001)
    assert (log.prompt.max(), log.output.max()) == (AZURE.longest_prompt, AZURE.longest_output)
    fast = azure.load("conv", 1.25)
    assert fast.arrival_ms[-1] == pytest.approx(log.arrival_ms[-1] / 1.25)


def test_more_slots_never_lower_the_capacity():
    engine, profile = ENGINES["dispersed"], load_profile()
    rates = [
        capacity(type(engine)(engine.lengths, Settings(batch_size=slots)), profile, 2000) for slots in (16, 64, 256)
    ]
    assert rates == sorted(rates)

"""c, h and a draft's share: the fit gives the committed constants, and they are a minimum; errors row by row."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data import calibrate_engine  # noqa: E402
from data.step_time import StepTimes  # noqa: E402
from inferencegym_jax.fidelity.measured_runs import read_runs  # noqa: E402

COMMITTED = ROOT / "data" / "engine_constants.json"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="aiconfigurator-core is not installed"
)


@pytest.fixture(scope="module")
def constants():
    return json.loads(COMMITTED.read_text())


@pytest.fixture(scope="module")
def times():
    return StepTimes.load("h100_sxm", "llama2-7b")


@pytest.fixture(scope="module")
def runs():
    return read_runs(calibrate_engine.MEASURED / calibrate_engine.RUNS)[:3]


@pytest.mark.ci
def test_the_fit_gives_the_committed_file(tmp_path):
    out = tmp_path / "constants.json"
    assert calibrate_engine.main(["--out", str(out)]) == 0
    assert out.read_bytes() == COMMITTED.read_bytes()


def squares(times, runs, overhead_ms, path_ms):
    total = 0.0
    for run in runs:
        row = calibrate_engine.predicted(times, run, overhead_ms, path_ms)
        total += row["itl_mean_error"] ** 2 + row["ttft_mean_error"] ** 2
    return total


@pytest.mark.parametrize(("more_c", "more_h"), [(0.15, 0), (-0.15, 0), (0, 0.4), (0, -0.4), (0.1, -0.25), (-0.1, 0.25)])
def test_any_other_constants_are_worse(times, runs, constants, more_c, more_h):
    c, h = constants["overhead_ms"], constants["path_ms"]
    assert squares(times, runs, c, h) < squares(times, runs, c + more_c, h + more_h)


def test_constants_come_back_from_runs_that_were_made_with_them(times, runs):
    """A run whose ITL and TTFT are what c = 3.1 and h = 0.7 give."""
    made = []
    for run in runs:
        steady = calibrate_engine.steady_state(times, run, 3.1)
        ttft = 2.5 * steady.iteration_ms + steady.prompt_ms + 0.7
        made.append(dataclasses.replace(run, itl_mean_ms=steady.iteration_ms, ttft_mean_ms=ttft))
    assert calibrate_engine.fit_runs(times, made) == pytest.approx((3.1, 0.7), abs=1e-3)


def test_the_steady_state_is_one(times, runs):
    """Little's law, and an iteration that takes what is in it."""
    for run in runs:
        steady = calibrate_engine.steady_state(times, run, 2.5)
        per_ms = run.rate_rps / 1000
        assert steady.running == pytest.approx(per_ms * (run.mean_output_tokens - 1) * steady.iteration_ms, rel=1e-6)
        alone = 2.5 + times.decode_ms(steady.running, run.mean_prompt_tokens + run.mean_output_tokens / 2)
        assert steady.iteration_ms == pytest.approx(alone + per_ms * steady.iteration_ms * steady.prompt_ms, rel=1e-4)


def test_errors_of_the_fitted_rows_and_of_each_from_the_other_two(constants):
    assert len(constants["fitted"]) == len(constants["predicted_by_the_other_two"]) == 3
    for row in constants["fitted"]:
        assert abs(row["itl_mean_error"]) < 0.03 and abs(row["ttft_mean_error"]) < 0.02
        assert abs(row["ttft_p50_error"]) < 0.05 and abs(row["ttft_p90_error"]) < 0.03
    for row in constants["predicted_by_the_other_two"]:
        assert abs(row["itl_mean_error"]) < 0.05 and abs(row["ttft_mean_error"]) < 0.03


def test_runs_on_several_gpus_are_named_and_not_fitted(constants):
    assert len(constants["not_predicted"]["runs"]) == 6
    assert all(row["model"] == "meta-llama/Llama-2-7b-hf" for row in constants["fitted"])


def test_the_drafts_share_fits_the_measured_iterations(constants):
    target = StepTimes.load("h100_sxm", "llama3-8b")
    points = calibrate_engine.read_drafts(calibrate_engine.MEASURED / calibrate_engine.DRAFTS)
    stated = {("EAGLE-1", 2): 1.30, ("EAGLE-1", 4): 1.51, ("EAGLE-1", 7): 1.82}
    stated |= {("EAGLE-3", 2): 1.44, ("EAGLE-3", 4): 1.76, ("EAGLE-3", 7): 2.15}
    for point in points:
        if (point.draft, point.drafts) in stated:
            assert point.ratio == pytest.approx(stated[point.draft, point.drafts], abs=0.006)

    def error(share):
        return sum((calibrate_engine.draft_ratio(target, p, share) / p.ratio - 1) ** 2 for p in points)

    share = constants["draft_share"]
    assert error(share) < min(error(share + 0.01), error(share - 0.01), error(0.05) / 4)
    assert max(abs(row["error"]) for row in constants["drafts"]) < 0.12
    assert constants["draft_share_of"]["EAGLE-1"] < share < constants["draft_share_of"]["EAGLE-3"]

"""Live scenarios: what was written down is what is sent, foretold and judged, on engines whose times are known."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferencegym_jax.cli.scenario_report import markdown, misplaced, plot_scenario, rows, verdict
from inferencegym_jax.cli.scenario_trial import save_searched
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.scenarios import described
from inferencegym_jax.live.scenarios.described import Drift, SecondInstance, scenario_of
from inferencegym_jax.live.scenarios.drift import LONG, drift, switching
from inferencegym_jax.live.scenarios.judged import Segments, Totals, score, segments_of, static_reference, summaries
from inferencegym_jax.live.scenarios.objectives import RequestWork, margins
from inferencegym_jax.live.scenarios.plan_search import FEWEST, TUNED, Following, searched_in, searched_plans
from inferencegym_jax.live.scenarios.rivals import TWO, drift_rivals, rival_of, second_instance_rivals
from inferencegym_jax.live.scenarios.run import ScenarioRequest, run_scenario
from inferencegym_jax.live.scenarios.second_instance import Setting, cut_mean, second_instance, stretch
from inferencegym_jax.live.scenarios.unsent_days import Foretold, Tried
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.profile_engine import engine_times
from inferencegym_jax.live.trial.runs import Run, Trial, TrialSettings
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.models import ServeAction
from inferencegym_jax.physics.observation import initial_observation
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.names import policy_of
from inferencegym_jax.policies.policy_runner import PolicyRunner
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params
from tests.live.conftest import ROOT, free_port
from tests.live.fake_engine import Times
from tests.live.test_spare_trial import written
from tests.live.test_trial import ideal

TIMES, OUTPUT, POOL = Times(a=20.0, b=3.0, c=0.5), 16, 8192
SPARE = SpareTimes(0.5, 0.5, 60.0)
SECONDS = 90
SETTINGS = TrialSettings(repeats=1, warmup_s=10.0, max_num_seqs=64, spare=SPARE)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return ideal(TIMES, OUTPUT, POOL)


def of(name: str) -> Any:
    return scenario_of(name)


@pytest.fixture(scope="module")
def two(table: LatencyTable) -> Setting:
    return second_instance(of("second-instance"), table, SPARE, SECONDS, [0, 1])


def test_every_scenario_is_written_down_with_its_reasons() -> None:
    for name in described.NAMES:
        scenario = scenario_of(name)
        assert len(scenario.why) >= 4 and scenario.reference in scenario.policies
        assert scenario.repeats >= 3 and scenario.seconds >= 600 and get_task(scenario.task).dynamics == "open_loop"
    assert isinstance(of("second-instance"), SecondInstance) and isinstance(of("drift"), Drift)
    with pytest.raises(ValueError, match="scenario = 'nothing': must be one of second-instance, drift"):
        scenario_of("nothing")


@pytest.mark.ci
def test_objectives_stand_to_the_bare_times_as_those_of_task_7(two: Setting, table: LatencyTable) -> None:
    ttft, tpot = margins()
    assert ttft > 10 and 5 < tpot < 12  # 2,000 ms and 100 ms on an A100
    assert two.objective.tpot_ms == pytest.approx(tpot * (TIMES.a + TIMES.b), rel=0.02)
    bare = TIMES.a + TIMES.b + TIMES.c * two.how["mean_prompt"]
    assert ttft * bare <= two.objective.ttft_ms <= ttft * (bare + TIMES.a + TIMES.b) * 1.02
    slower = ideal(Times(a=2 * TIMES.a, b=2 * TIMES.b, c=2 * TIMES.c), OUTPUT, POOL)
    other = second_instance(of("second-instance"), slower, SPARE, SECONDS, [0])
    assert other.objective.tpot_ms == pytest.approx(2 * two.objective.tpot_ms, rel=0.01)


def test_mean_of_lengths_that_are_cut() -> None:
    rng = np.random.default_rng(0)
    sigma = math.sqrt(math.log1p(1.5**2))
    drawn = np.minimum(np.exp(math.log(60.0) - sigma**2 / 2 + sigma * rng.normal(size=400_000)), 256.0)
    assert float(cut_mean(np.asarray(60.0), np.asarray(1.5), 256.0)) == pytest.approx(drawn.mean(), rel=0.01)


def test_the_stretch_holds_the_busiest_minute_of_the_day_at_the_peak() -> None:
    load = 0.2 + 0.1 * np.sin(np.arange(1440) / 50.0)
    load[700:760] += 0.6
    for seconds in (60, 300, 1440):
        day = stretch(load, 1.6, 60, seconds)
        assert 0 <= day.first <= 1440 - seconds and day.first <= 700 and day.first + seconds >= 760
        assert (day.rate_scale * load[700:760]).mean() == pytest.approx(1.6)
    assert 700 <= stretch(load, 1.6, 60, 20).first <= 740
    first = stretch(load, 1.6, 60, 300).first
    means = {start: load[start : start + 300].mean() for start in range(460, 701)}
    assert abs(means[first] - load.mean()) == min(abs(mean - load.mean()) for mean in means.values())


def test_a_day_is_sent_at_the_peak_that_was_written_down(two: Setting, table: LatencyTable) -> None:
    sent = two.traffic(1)
    again = two.traffic(1)
    assert np.array_equal(sent.time_s, again.time_s) and not np.array_equal(sent.time_s, two.traffic(0).time_s)
    assert sent.prompt.max() <= 256 and OUTPUT // 2 <= sent.output.min() and sent.output.max() <= OUTPUT * 3 // 2
    busiest = np.convolve(two.load(sent), np.ones(60) / 60, "valid").max()
    assert busiest == pytest.approx(1.6, abs=0.25)  # Poisson within
    with pytest.raises(ValueError, match="seconds = 2000: must be from 1 to 1440"):
        second_instance(of("second-instance"), table, SPARE, 2000, [0])


def test_the_peak_is_of_what_two_instances_of_one_host_can_serve(two: Setting, table: LatencyTable) -> None:
    shared = second_instance(of("second-instance"), table, dataclasses.replace(SPARE, slowdown=1.25), SECONDS, [0])
    assert [two.how["peak_of_one"], shared.how["peak_of_one"]] == pytest.approx([1.6, 1.28])
    rates = [setting.how["stretches"][0]["rate_scale"] for setting in (two, shared)]
    assert rates[1] == pytest.approx(rates[0] / 1.25)
    params = make_params(get_task("second-gpu"), load_table(), NOT_NORMALISED)
    prompt, output = float(params.engine.prompt_mean), float(params.engine.output_mean)
    tpot = float(np.asarray(params.engine.slo_tpot_ms)[0])
    plain, held = (RequestWork(load_table(), params.engine, 2 * prompt, output, limit) for limit in (math.inf, tpot))
    assert held.of(np.asarray(prompt)) == pytest.approx(plain.of(np.asarray(prompt)), rel=0.04)  # 1.6 of one, nearly
    slow = [
        RequestWork(table, two.problem.params.engine, 256, OUTPUT, x).of(np.asarray(64.0)) for x in (math.inf, 60.0)
    ]
    assert slow[1] > 1.05 * slow[0]  # fewer at once keep 60 ms a token


@pytest.mark.slow  # a program for every policy
def test_capacity_that_comes_and_goes_is_foretold_to_pay(two: Setting, table: LatencyTable) -> None:
    names = ("one always", "two always", "load-following", "general")
    said: list[str] = []
    rivals = second_instance_rivals(of("second-instance"), two, SETTINGS, SECONDS, names, said.append)
    assert rivals.fixed == names[:2] and set(rivals.policies) == set(names) and said
    tried = {
        (size, leased): ServeAction(batch_size=size, prefill_disagg=leased)
        for size in of("second-instance").batch_sizes
        for leased in (False, True)
    }
    on_both_days = Foretold(two, SETTINGS, SECONDS, days=2).scores(tried, list(tried))
    for leased, name in enumerate(names[:2]):
        scores = {size: on_both_days[size, bool(leased)] for size in of("second-instance").batch_sizes}
        assert rivals.choices[name]["scores"] == {str(size): round(one, 4) for size, one in scores.items()}
        assert scores[rivals.choices[name]["batch_size"]] == max(scores.values())
    foretold = Foretold(two, SETTINGS, SECONDS)
    parts = {name: foretold.segments(policy) for name, policy in rivals.policies.items()}
    found = summaries(get_task("second-gpu-fast"), parts, rivals.fixed, "two always")
    instances = {name: row["instances"]["mean"] for name, row in found.items()}
    assert instances["one always"] == 1.0 and instances["two always"] == pytest.approx(2.0, abs=0.01)
    most = instances["two always"] + 0.01
    assert 1.0 <= instances["load-following"] <= most and 1.0 <= instances["general"] <= most
    on_time = {name: row["on_time_share"]["mean"] for name, row in found.items()}
    assert on_time["two always"] > on_time["one always"] + 0.1
    with pytest.raises(ValueError, match="policy = 'nobody'"):
        second_instance_rivals(of("second-instance"), two, SETTINGS, SECONDS, ("nobody",), said.append)


class Listed(Foretold):
    """Share on time and instances of each that is asked for, as they are listed."""

    def __init__(self, setting: Setting, shares_and_instances: list[tuple[float, float]]):
        super().__init__(setting, SETTINGS, SECONDS)
        self.listed, self.asked = iter(shares_and_instances), []

    def totals(self, policy: Tried) -> Totals:
        self.asked.append(policy)
        share, instances = (np.asarray([x]) for x in next(self.listed))
        one = np.ones(1)
        return Totals(share, share, instances * SECONDS, SECONDS * one, 0.0 * one, one)


ALWAYS = {"one always": ServeAction(batch_size=32), "two always": ServeAction(batch_size=16, prefill_disagg=True)}


@pytest.mark.parametrize(
    ("foretold", "fewest"),
    [
        ([(0.99, 1.9), (0.97, 1.2), (0.982, 1.7), (0.981, 1.75)], 2),  # 0.97 is too little, and the best by score
        ([(0.5, 1.1), (0.9, 1.1), (0.91, 1.9), (0.6, 1.2)], 2),  # none is there: the one that is most on time
        ([(0.99, 2.0), (0.985, 1.2), (0.99, 1.5), (0.98, 1.4)], 1),
    ],
)
def test_settings_are_chosen_by_score_and_by_instances(
    two: Setting, foretold: list[tuple[float, float]], fewest: int
) -> None:
    one = Listed(two, [(0.5, 1.0), (0.99, 2.0), *foretold])
    shipped = LoadPlan(average_s=7.0, batch_size=512)
    found = searched_plans(one, shipped, ALWAYS, TWO, most=64, count=len(foretold))
    plans = [policy._plan for policy in one.asked[2:]]
    assert all(isinstance(policy, Following) for policy in one.asked[2:]) and plans[0].average_s == 7.0
    assert [int(plan.batch_size) for plan in plans] == [512, 16, 16, 16]
    assert all(0.5 <= plan.slots_share <= 1.0 and 8.0 <= plan.up_running <= 64.0 for plan in plans[2:])
    again = Listed(two, [(0.5, 1.0), (0.99, 2.0), *foretold])
    scores = again.scores({i: ALWAYS["one always"] for i in range(-2, len(foretold))}, (-2, -1))
    best = max(range(len(foretold)), key=lambda i: scores[i])
    for name, i in ((TUNED, best), (FEWEST, fewest)):
        plan, figures = found[name]
        assert plan.as_arrays() == plans[i]
        assert (figures["on_time_share"], figures["instances"]) == pytest.approx(foretold[i])
        assert figures["reference_on_time_share"] == 0.99
        assert figures["score"] == scores[i]
    choices = json.loads(json.dumps({n: dataclasses.asdict(p) | {"foretold": f} for n, (p, f) in found.items()}))
    assert searched_in(choices) == {name: plan for name, (plan, _) in found.items()}
    assert rival_of(FEWEST, choices, two.problem).args[1] == found[FEWEST][0].as_arrays()  # type: ignore[attr-defined]


def test_what_was_searched_is_a_policy_file_that_is_deployed(two: Setting, tmp_path: Path) -> None:
    plan = LoadPlan(average_s=3.0, up_waiting=2.0, hold_s=5.0, batch_size=32)
    found = {"choices": {FEWEST: dataclasses.asdict(plan) | {"foretold": {"instances": 1.4}}}}
    spare = SpareSettings("http://s:1", start_cmd="x")
    names = ("two always", FEWEST)
    request = ScenarioRequest("second-instance", Endpoint("http://h:1", "m"), Path("t.parquet"), spare, names)
    assert save_searched(found, request, tmp_path / "new") == [tmp_path / "new" / "fewest-instances.npz"]
    own = [PolicyRunner(policy_of(str(tmp_path / "new" / "fewest-instances.npz"), two.problem))]
    own.append(PolicyRunner(rival_of(FEWEST, found["choices"], two.problem)))
    seen = initial_observation((1.0, 0.0, 0.0))
    for waiting in (0.0, 5.0, 5.0, 0.0):
        actions = [runner.ask(dataclasses.replace(seen, queue_depth=np.float32(waiting))) for runner in own]
        assert actions[0] == actions[1] and actions[0].batch_size == 32
    assert actions[0].prefill_disagg


def record(second: float, ttft_ms: float, output: int = 10) -> Record:
    return Record(second, 0, 50, output, "completed", 0.0, ttft_ms, 20.0, output)


def entry(gpus: float, batch: int = 8) -> dict[str, Any]:
    action = ServeAction(batch_size=batch, prefill_disagg=gpus > 1).to_dict()
    none = [0.0, 0.0, 0.0]
    metrics = dict.fromkeys(("ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "tokens_per_sec", "gpu_memory_gb"), 1.0)
    metrics |= {"cost_per_1k": 1.0, "spec_accept_rate": 0.0, "eviction_events": 0, "slo_violations": 0}
    counts = dict.fromkeys(("asked", "on_time", "late", "rejected", "failed", "present"), none)
    one = {"tokens_asked": 0.0, "on_time_tokens": 0.0, "gpu_seconds": gpus, "quality": 1.0}
    return {"action": action, "reward": 0.0, "metrics": metrics, "outcome": counts | one}


def run_of(late: int, gpus: float) -> Run:
    """20 requests in 20 s after 10 s, of which so many are late."""
    records = [record(10.0 + i, 900.0 if i < late else 100.0) for i in range(20)]
    return Run([record(5.0, 9000.0), *records], [entry(gpus)] * 30)


def test_what_is_counted_of_a_run_and_scored() -> None:
    spec, objective = get_task("second-gpu-fast"), Objective((500.0,) * 3, 100.0)
    parts = {
        name: segments_of([run_of(late, gpus)], spec, objective, 10.0, 30.0)
        for name, late, gpus in (("one", 10, 1.0), ("two", 1, 2.0), ("mine", 1, 1.5))
    }
    assert parts["one"].asked.tolist() == [5.0] * 4 and parts["one"].on_time.tolist() == [0.0, 0.0, 5.0, 5.0]
    assert parts["two"].instance_s.sum() == 40.0 and parts["two"].steps.sum() == 20.0
    found = summaries(spec, parts, ("one", "two"), "two")
    assert found["mine"]["on_time_share"]["mean"] == 0.95 and found["mine"]["instances"]["mean"] == 1.5
    over = found["mine"]["over_reference"]
    assert over["instance_seconds_saved"]["mean"] == pytest.approx(0.25) and over["on_time_share"]["mean"] == 0.0
    # against two instances always, of which it pays three quarters: 0.4 G + 0.2 S + 0.3 x 0.75 + 0.1
    assert found["two"]["score"]["mean"] == pytest.approx(0.6 * 0.95 + 0.3 * 0.5 + 0.1)
    assert found["mine"]["score"]["mean"] == pytest.approx(0.6 * 0.95 + 0.3 * 0.75 + 0.1)
    for row in found.values():
        for key in ("on_time_share", "score", "instances"):
            assert row[key]["low"] <= row[key]["mean"] + 1e-9 and row[key]["high"] >= row[key]["mean"] - 1e-9


def test_the_cost_reference_is_the_fixed_policy_that_others_beat_least() -> None:
    spec = get_task("second-gpu-fast")

    def totals(share: float, gpus: float) -> Any:
        column = np.full(4, 10.0)
        good = column * share
        part = Segments(column, good, column, good, np.full(4, 5.0 * gpus), np.full(4, 5.0), 0.0)
        return part.drawn(np.ones((1, 4), np.int64))

    fixed = {"one": totals(0.4, 1.0), "two": totals(1.0, 2.0)}
    assert static_reference(spec, fixed) == {"static_gpus": 2.0, "static_on_time_share": 1.0}
    cheap = {"one": totals(0.99, 1.0), "two": totals(1.0, 2.0)}
    assert static_reference(spec, cheap)["static_gpus"] == 1.0
    assert score(spec, fixed["two"], static_reference(spec, fixed))[0] == pytest.approx(0.85)


@pytest.fixture(scope="module")
def drifting(table: LatencyTable) -> Setting:
    return drift(of("drift"), table, 60)


def test_kinds_come_by_turns_at_the_load_that_was_written_down(drifting: Setting, table: LatencyTable) -> None:
    sent, phase_s = drifting.traffic(3), of("drift").phase_s
    turn = (sent.time_s // phase_s).astype(int) % 2
    long, short = drifting.how["kinds"]
    assert set(sent.prompt[turn == 0]) == {long["prompt"]} and set(sent.prompt[turn == 1]) == {short["prompt"]}
    assert long["prompt"] > short["prompt"] and long["output"] < short["output"]
    assert drifting.load(sent).mean() == pytest.approx(of("drift").load, rel=0.3)
    times = engine_times(table)
    for kind in (long, short):  # some number of requests serves the load within the objective on the time per token
        prompt, output, rate = kind["prompt"], kind["output"], kind["requests_per_s"] / of("drift").load
        prompt_ms = times.prompt_ms(prompt)
        most = max(
            1000.0 * n / ((output - 1) * took + n * prompt_ms)
            for n in range(1, 65)
            if (took := times.decode_ms(n, prompt + output / 2)) + n * prompt_ms / (output - 1)
            <= drifting.objective.tpot_ms
        )
        assert rate == pytest.approx(most, rel=0.05)
    alone = drift(of("drift"), table, 60, LONG).traffic(3)
    assert set(alone.prompt) == {long["prompt"]}


def test_switching_takes_the_pair_of_the_kind_that_comes(drifting: Setting) -> None:
    few, many = ServeAction(batch_size=2, kv_budget=0.5), ServeAction(batch_size=48)
    runner = PolicyRunner(switching(few, many, drifting.how["switch_at_prompt"]))
    seen = initial_observation()
    for prompt, wanted in ((256.0, few), (64.0, many), (200.0, few)):
        action = runner.ask(dataclasses.replace(seen, mean_prompt_len=np.float32(prompt)))
        assert (action.batch_size, action.kv_budget) == (wanted.batch_size, wanted.kv_budget)


def test_pairs_are_chosen_by_what_is_foretold_on_traffic_that_is_not_sent(
    drifting: Setting, table: LatencyTable
) -> None:
    small = dataclasses.replace(of("drift"), batch_sizes=(2, 16), kv_budgets=(0.25, 1.0))
    alone = [drift(small, table, 40, kind) for kind in (0, 1)]
    setting, settings = drift(small, table, 40), dataclasses.replace(SETTINGS, spare=None)
    rivals = drift_rivals(small, setting, alone, settings, 40, 64, of("drift").policies, lambda _: None)
    scores = [row["score"] for row in rivals.choices["grid"]]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    assert rivals.choices["best fixed pair"] == rivals.choices["grid"][0]["pair"]
    assert rivals.fixed == ("best fixed pair", "next fixed pair", "open")
    for kind, name in enumerate(("long prompts", "short prompts")):
        foretold, chosen = Foretold(alone[kind], settings, 40), rivals.choices["switching"][name]
        tried: dict[Any, Any] = {
            (n, kv): ServeAction(batch_size=n, kv_budget=kv) for n in (2, 16) for kv in (0.25, 1.0)
        }
        found = foretold.scores(tried, list(tried))
        assert chosen in found and found[chosen] == max(found.values())


def figures(on_time: float, instances: float, scored: float, saved: float = 0.0) -> dict[str, Any]:
    def around(x: float) -> dict[str, float]:
        return {"mean": x, "low": x - 0.01, "high": x + 0.01}

    over = {"on_time_share": around(0.0), "score": around(0.02), "instance_seconds_saved": around(saved)}
    values = {"on_time_share": on_time, "goodput_share": on_time, "instances": instances, "score": scored}
    return {key: around(x) for key, x in values.items()} | {"over_reference": over}


def result(scenario: str = "second-instance") -> dict[str, Any]:
    measured = {"two always": figures(0.97, 2.0, 0.8), "general": figures(0.96, 1.5, 0.85, saved=0.25)}
    predicted = {"two always": figures(0.98, 2.0, 0.86), "general": figures(0.9, 1.4, 0.84, saved=0.3)}
    series = {"instances": [1.0] * 20 + [2.0] * 20, "asked": [2] * 40, "on_time": [1] * 40}
    return {
        "scenario": scenario,
        "measured": measured,
        "predicted": predicted,
        "gap": {"two always": 0.01, "general": -0.06},
        "ranking": {"measured": ["general", "two always"], "predicted": ["two always", "general"]},
        "timeline": [{"load": [0.5] * 40, "policies": {"two always": series, "general": series}}],
        "choices": {"two always": {"batch_size": 8}, "grid": []},
        "how": {
            "reference": "two always",
            "fixed": ["two always"],
            "seconds": 40,
            "repeats": 1,
            "warmup_s": 10.0,
            "written_down": {"seconds": 600, "repeats": 3},
            "ttft_objective_ms": 1000.0,
            "tpot_objective_ms": 100.0,
            "spare": {"start_s": 0.5, "stop_s": 0.5, "lease_s": 60.0},
        },
    }


def test_the_verdict_says_what_was_won_ranked_and_foretold(tmp_path: Path) -> None:
    found = result()
    text = "\n".join(verdict(found))
    assert "general against two always: 25.0% [24.0%, 26.0%] fewer" in text and "15% fewer at 2 points: met" in text
    assert misplaced(found) == [("general", "two always")] and "apart beyond their intervals" in text
    assert "-6.0 points (general), beyond the target of 5" in text
    assert "1 x 40 s of each policy in place of 3 x 600 s" in text
    assert [row[0] for row in rows(found)] == ["two always", "general"] and rows(found)[1][-1] == "-6.0"
    lines = markdown(found)
    assert lines[0].startswith("| policy |") and lines[1].count("---") == lines[0].count("|") - 1
    found["measured"]["general"]["over_reference"]["instance_seconds_saved"]["low"] = 0.1
    assert "met by the means, not by the intervals" in "\n".join(verdict(found))
    found["measured"]["general"]["over_reference"]["on_time_share"]["mean"] = -0.05
    assert "15% fewer at 2 points: missed" in "\n".join(verdict(found))
    assert "general beats two always" in "\n".join(verdict(result("drift")))
    plot_scenario(found, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes()[1:4] == b"PNG"


def request(**changes: Any) -> ScenarioRequest:
    spare = SpareSettings("http://s:1", start_cmd="x")
    usual: dict[str, Any] = {"name": "second-instance", "table": Path("t.parquet"), "spare": spare}
    return ScenarioRequest(endpoint=Endpoint("http://h:1", "m"), **(usual | changes))


def test_a_scenario_that_cannot_be_run_is_refused_by_name() -> None:
    assert request().run_seconds == 600 and request(seconds=60).run_seconds == 60
    for changes, said in (
        ({"name": "x"}, "scenario = 'x'"),
        ({"spare": None}, "needs a second instance; name one with --spare"),
        ({"name": "drift"}, "has one instance"),
        ({"seconds": 10}, "seconds = 10: must be more than the warm-up of 10"),
        ({"policies": ("two always", "two always")}, "a name is there twice"),
        ({"policies": ("general",)}, "must hold 'two always', the reference"),
        ({"spare": SpareSettings("http://h:1", start_cmd="x")}, "is the upstream"),
    ):
        with pytest.raises(ValueError, match=said):
            request(**changes)


@pytest.mark.slow  # real seconds
def test_second_instance_on_engines_whose_times_are_known(
    launch: Callable[..., Any], table: LatencyTable, tmp_path: Path
) -> None:
    flags = [str(x) for name in ("a", "b", "c") for x in (f"--{name}", getattr(TIMES, name))]
    flags += ["--host", str(tmp_path / "host"), "--slowdown", "1.3"]
    engine, port = launch(*flags, "--place", 0), free_port()
    start = f"cd {ROOT} && exec {sys.executable} -m tests.live.fake_engine --port {port} --place 1 {' '.join(flags)}"
    kept: list[tuple[dict[str, Any], Trial]] = []
    found = run_scenario(
        ScenarioRequest(
            "second-instance",
            Endpoint(engine.url, "fake"),
            written(table, tmp_path / "t.parquet"),
            SpareSettings(f"http://127.0.0.1:{port}", start_cmd=start, health_every_s=0.2),
            policies=("one always", "two always", "load-following"),
            seconds=25,
            repeats=1,
            warmup_s=5.0,
            pause_s=0.1,
            beside_s=1.0,
            calibration_runs=0,
        ),
        keep=lambda *so_far: kept.append(so_far),
    )
    measured = found["measured"]
    assert measured["one always"]["instances"]["mean"] == pytest.approx(1.0, rel=0.02)
    assert measured["two always"]["instances"]["mean"] == pytest.approx(2.0, rel=0.02)
    assert found["how"]["written_down"] == {"seconds": 600, "repeats": 3} and found["how"]["spare"]["start_s"] > 0
    assert abs(found["gap"]["two always"]) < 0.15 and len(found["timeline"][0]["load"]) == 25
    for name, shown in found["timeline"][0]["policies"].items():  # of one repeat, what was foretold of all
        for key, value in shown["foretold"].items():
            assert value == pytest.approx(found["predicted"][name][key]["mean"], abs=1e-4)
    assert verdict(found) and len(found["order"]) == 3
    assert found["how"]["spare"]["slowdown"] == pytest.approx(1.3, rel=0.12)
    assert [each["how"]["not_run"] for each, _ in kept] == [["load-following"], []]  # from the reference's run on
    assert "Not run: load-following." in verdict(kept[0][0]) and json.dumps(kept[0][0])
    assert set(kept[0][1].measured) == {"one always", "two always"} and kept[-1][0]["measured"] == measured


@pytest.mark.slow  # real seconds
@pytest.mark.parametrize("longer", (1.0, 1.3))
def test_drift_on_an_engine_that_is_slower_than_its_table(
    launch: Callable[..., Any], table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longer: float
) -> None:
    flags = [str(x) for name in ("a", "b", "c") for x in (f"--{name}", longer * getattr(TIMES, name))]
    small = dataclasses.replace(of("drift"), batch_sizes=(4, 32), kv_budgets=(0.25, 1.0), phase_s=5)
    monkeypatch.setattr("inferencegym_jax.live.scenarios.run.scenario_of", lambda _: small)
    endpoint = Endpoint(launch(*flags).url, "fake")
    path = written(table, tmp_path / "t.parquet")
    found = run_scenario(
        ScenarioRequest("drift", endpoint, path, seconds=20, repeats=1, warmup_s=5.0, max_num_seqs=64, pause_s=0.1)
    )
    assert set(found["measured"]) == set(small.policies)
    seen = found["how"]["calibration"]
    assert seen["decode"] == pytest.approx(longer, rel=0.1) and seen["prompt"] == pytest.approx(longer, rel=0.15)
    of_table = drift(small, table, 20).how
    for own, other in zip(found["how"]["kinds"], of_table["kinds"], strict=True):
        assert own["requests_per_s"] == pytest.approx(other["requests_per_s"] / longer, rel=0.15)
    assert found["how"]["tpot_objective_ms"] == pytest.approx(longer * of_table["tpot_objective_ms"], rel=0.1)
    for row in found["measured"].values():
        assert row["instances"]["mean"] == pytest.approx(1.0, rel=0.02)
    assert max(abs(gap) for gap in found["gap"].values()) < 0.2

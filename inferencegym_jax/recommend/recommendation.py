"""Which configuration should this engine run on this traffic?

``log + table -> all static actions and controllers (search) -> choice by replay of the flags -> Recommendation``

Which action is recommended, and why: ``choice.choose``. What would help where none is good enough: ``remedies``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.hardware.table_metadata import doubts
from inferencegym_jax.recommend.candidates import (
    controllers_that_fit,
    fixed_knobs,
    knobs_of,
    searched_actions,
    tiers_that_run,
    unique,
)
from inferencegym_jax.recommend.choice import Choice, choose, front
from inferencegym_jax.recommend.engine_flags import (
    USUAL_SHARE,
    Deployment,
    deployment,
    engine_flags,
    left_out,
    memory_share,
)
from inferencegym_jax.recommend.engine_replay import EngineReplay, Replayed
from inferencegym_jax.recommend.log_requests import LoggedRequests, load_requests
from inferencegym_jax.recommend.notices import about, deployment_notices, too_long_notice, traffic_notices
from inferencegym_jax.recommend.quality import (
    Objective,
    Quality,
    between,
    check_objective,
    gain_intervals,
    join,
    tail_interval,
)
from inferencegym_jax.recommend.remedies import Remedies, remedies
from inferencegym_jax.recommend.search import Judged, Search, environment
from inferencegym_jax.table import LatencyTable, load_table, profile_of
from inferencegym_jax.traffic.log_files import ReadOptions


@dataclass(frozen=True)
class Recommendation:
    """The answer.

    Attributes:
        knobs: of the recommended action; where nothing meets the objective, of the one that comes closest.
        current: knobs of what runs now.
        objective: what counts as good.
        results: name -> measures: "recommended" and "current" as replayed request by request under the printed flags,
            "promised" (the recommended action) and each controller as the search has them, second by second.
            "current" is missing where it does not fit into the memory.
        gains: "recommended" over current, both replayed, and each controller over what is promised of the recommended:
            changes with intervals.
        meets_slo: whether the replay meets the objective and the promise agrees with it.
        agrees: whether promise and replay are within three points.
        engine: what the flags set: memory_share, memory_gb, pool_tokens, max_model_len, token_budget; and gpus, those
            that are one engine (in the measures such an engine counts as one).
        busiest_hour: share of the busiest hour's requests within the objective, replayed.
        one_gpu: knobs and replayed measures of the best on one GPU, where two are recommended.
        two_engines: replayed measures of two engines of that, likewise.
        remedies: what would make the objective feasible, where nothing meets it.
        pareto: configurations that no other one beats in goodput, p99 TTFT and GPUs, by goodput, all replayed: those
            that the search promises to be so, and those that were replayed for the choice.
        flags: engine -> commands that set the recommended configuration, or each engine of the remedy.
        skipped: engine -> why it has no commands.
        searched: static actions tried.
        replayed: of them, how many were replayed request by request.
        traffic: about the log.
        notices: what a reader should know.
    """

    knobs: dict[str, Any]
    current: dict[str, Any]
    objective: Objective
    results: dict[str, dict[str, float]]
    gains: dict[str, dict[str, dict[str, float | None]]]
    meets_slo: bool
    agrees: bool
    engine: dict[str, float]
    busiest_hour: float
    one_gpu: dict[str, Any] | None
    two_engines: dict[str, float] | None
    remedies: Remedies | None
    pareto: list[dict[str, Any]]
    flags: dict[str, str]
    skipped: dict[str, str]
    searched: int
    replayed: int
    traffic: dict[str, Any]
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready numbers; the first keys are the recommended configuration's."""
        recommended = self.results["recommended"]
        first = {
            "recommended": self.knobs,
            "goodput": recommended["goodput"],
            "ttft_p99_ms": recommended["ttft_p99_ms"],
            "cost_per_1k": recommended["cost_per_1k"],
            "attainment": {"replayed": recommended["attainment"], "promised": self.results["promised"]["attainment"]},
            "meets_slo": self.meets_slo,
            "flags": self.flags,
        }
        rest = dataclasses.asdict(self)
        del rest["knobs"]
        return first | {name: value for name, value in rest.items() if name not in first}


def recommend(
    trace: str | Path,
    *,
    table: str | Path | LatencyTable | None = None,
    slo_ttft_ms: float = 300.0,
    slo_tpot_ms: float | None = None,
    attainment: float = 0.99,
    memory_gb: float | None = None,
    acceptance: float | None = None,
    current: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    controllers: Mapping[str, Policy] | None = None,
    unit: str | None = None,
    columns: str | Mapping[str, str | Sequence[str]] | None = None,
    start: str | float | None = None,
    end: str | float | None = None,
    last: str | float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recommendation:
    """Search all static actions of a table on a request log, run controllers on it, and replay the answer.

    Args:
        trace: request log: time, prompt tokens, output tokens; see ``load_trace``.
        table: latency table; default the shipped one.
        slo_ttft_ms: objective on a request's time to first token.
        slo_tpot_ms: objective on a request's time per output token.
        attainment: share of requests that must be within them.
        memory_gb: what the engine may use of a GPU; default: ``USUAL_SHARE`` of the memory of the table's GPU.
        acceptance: probability that a drafted token is accepted; default: measured lengths of task 4's traffic.
        current: knobs of what runs now, the others at their defaults.
        fixed: knobs that may not change, with their values; they bind the controllers too.
        controllers: name -> policy; default ``reactive`` and, where one ships, ``trained``.
        unit: how to read the log where it does not say so itself, and which part of it; see
            ``load_trace``.
        columns: see ``unit``.
        start: see ``unit``.
        end: see ``unit``.
        last: see ``unit``.
        progress: called with static actions done and in all.

    Raises:
        ValueError, TypeError: an argument out of range, or a knob that the table does not have; says what is allowed.
        FileNotFoundError, TraceError, TableError: the log or the table cannot be used, or no weights fit.
    """
    objective = check_objective(slo_ttft_ms, slo_tpot_ms, attainment)
    loaded = load_table(table)
    profile = profile_of(loaded)
    usual = USUAL_SHARE * profile.memory_gb
    asked = usual if memory_gb is None else between("memory_gb", memory_gb, 0.0, profile.memory_gb)
    memory = memory_share(asked, profile.memory_gb) * profile.memory_gb
    now, held = knobs_of(loaded, current, "current"), fixed_knobs(loaded, fixed)
    requests = load_requests(trace, ReadOptions.of(unit, columns, start, end, last))
    env, params = environment(loaded, requests, memory, acceptance)
    searched = searched_actions(env, params, held, memory)
    fits = float(profile.weights_gb[now["quant_tier"]]) + profile.runtime_gb < memory
    actions = unique([now, *searched] if fits else searched)
    named, said = controllers_that_fit(loaded, params, held, controllers)
    search = Search(env, params, requests, tuple(named.values()), objective)
    tiers = tiers_that_run(loaded)
    allowed = np.asarray(
        [
            all(action[name] == value for name, value in (held | {"kv_budget": 1.0}).items())
            and action["quant_tier"] in tiers
            for action in actions
        ]
    )
    engines = EngineReplay(loaded, requests, objective, params.engine.acceptance_lengths)
    one = _Answer(loaded, requests, objective, memory, actions, search.judge(actions, progress), search, engines, now)
    return one.recommendation(allowed, list(named), fits, [] if said is None else [said])


MEASURES = tuple(
    "goodput attainment ttft_p50_ms ttft_p99_ms tpot_ms tokens_per_sec cost_per_1k memory_gb gpus out_of_memory".split()
)


def measures(quality: Quality, i: int = 0) -> dict[str, float]:
    """The measures of one controller."""
    return {name: float(getattr(quality, name)[i]) for name in MEASURES}


@dataclass(frozen=True, eq=False)
class _Answer:
    """What the answer is put together from."""

    table: LatencyTable
    requests: LoggedRequests
    objective: Objective
    memory_gb: float
    actions: list[dict[str, Any]]
    judged: Judged
    search: Search
    engines: EngineReplay
    current: dict[str, Any]

    def deployment(self, knobs: Mapping[str, Any]) -> Deployment:
        return deployment(knobs, self.table, self.memory_gb, self.requests.longest)

    def replay(self, knobs: Mapping[str, Any], engines: int = 1, looked_at: int | None = None) -> Replayed:
        return self.engines.replay(self.deployment(knobs), engines, looked_at)

    def replay_if(self, index: int, least: float) -> Replayed | None:
        return self.engines.replay_if(self.deployment(self.actions[index]), least)

    def recommendation(
        self,
        allowed: np.ndarray,
        controllers: Sequence[str],
        current_fits: bool,
        said: list[str],
    ) -> Recommendation:
        """The answer; ``controllers`` are the names of those that were judged."""
        requests, statics = self.requests, self.judged.actions
        replay = functools.lru_cache(maxsize=None)(lambda i: self.replay(self.actions[i]))
        choice = choose(self.actions, statics, allowed, self.objective, self.replay_if, self.current)
        best, judged = choice.index, choice.replayed[choice.index]
        results = {"recommended": measures(judged.quality), "promised": measures(statics, best)}
        tail = tail_interval(judged.ttft_ms, requests)
        if tail is not None:
            results["recommended"] |= {"ttft_p99_low_ms": tail[0], "ttft_p99_high_ms": tail[1]}
        gains: dict[str, dict[str, dict[str, float | None]]] = {}
        if current_fits:
            now = replay(0)
            results["current"] = measures(now.quality)
            gains["recommended"] = self._gain(now.quality, judged.quality, now.ttft_ms, judged.ttft_ms)
        else:
            said = [*said, "the current configuration does not fit into the memory"]
        promised = self.search.ttft_ms(self.actions[best]) if controllers else np.empty(0)
        for i, name in enumerate(controllers):
            quality, ttft = self.judged.controllers, self.judged.controllers_ttft_ms
            gains[name] = self._gain(statics.take([best]), quality.take([i]), promised, ttft[:, i])
            results[name] = measures(quality, i)
        one_gpu, two_engines = self._other_than_two_gpus(choice, statics, allowed, replay)
        remedy = None if choice.meets else self._remedies(choice, judged)
        printed = self.actions[best] if remedy is None or remedy.knobs is None else remedy.knobs
        made = self.deployment(printed)
        skipped = left_out(made)
        notices = [
            *traffic_notices(self.table, requests),
            *said,
            *doubts(self.table.metadata, printed["quant_tier"]),
            *too_long_notice(requests, judged.pool_tokens),
            *deployment_notices(made, skipped),
        ]
        return Recommendation(
            knobs=self.actions[best],
            current=self.current,
            objective=self.objective,
            results=results,
            gains=gains,
            meets_slo=choice.meets,
            agrees=choice.agrees,
            engine={
                "memory_share": made.memory_share,
                "memory_gb": made.memory_gb,
                "pool_tokens": int(profile_of(self.table).pool_tokens(printed["quant_tier"], made.memory_gb)),
                "max_model_len": made.max_model_len,
                "token_budget": made.token_budget,
                "gpus": made.gpus,
            },
            busiest_hour=judged.busiest_hour,
            one_gpu=one_gpu,
            two_engines=two_engines,
            remedies=remedy,
            pareto=self._front(
                {i: choice.replayed.get(i) or replay(i) for i in [*front(statics, allowed), *choice.replayed]}
            ),
            flags=engine_flags(made),
            skipped=skipped,
            searched=len(self.actions),
            replayed=len(choice.replayed) + choice.stopped,
            traffic=about(requests),
            notices=tuple(notices),
        )

    def _front(self, replayed: Mapping[int, Replayed]) -> list[dict[str, Any]]:
        """Of those that were replayed the ones that no other beats; who never serves one in a
        hundred is not shown."""
        quality, indices = join([one.quality for one in replayed.values()]), list(replayed)
        best = front(quality, np.isfinite(quality.ttft_p99_ms))
        return [{"knobs": self.actions[indices[j]]} | measures(quality, j) for j in best]

    def _gain(
        self, before: Quality, after: Quality, ttft_before: np.ndarray, ttft_after: np.ndarray
    ) -> dict[str, dict[str, float | None]]:
        gain = gain_intervals(before, after, self.requests.log.rate)
        both = tail_interval(np.stack([ttft_before, ttft_after], axis=-1), self.requests)
        low, high = (None, None) if both is None else both
        with np.errstate(invalid="ignore"):  # of requests that never have a token
            change = float(after.ttft_p99_ms[0] - before.ttft_p99_ms[0])
        return gain | {"ttft_p99_ms": {"change": change, "low": low, "high": high}}

    def _other_than_two_gpus(
        self, choice: Choice, statics: Quality, allowed: np.ndarray, replay: Callable[[int], Replayed]
    ) -> tuple[dict[str, Any] | None, dict[str, float] | None]:
        """Where two GPUs are recommended: the best on one, and two engines of that."""
        single = np.flatnonzero(allowed & (statics.gpus == 1.0))
        if not self.actions[choice.index]["prefill_disagg"] or not len(single):
            return None, None
        tried = [i for i in choice.replayed if i in single] or [int(single[np.argmax(statics.goodput[single])])]
        i = max(tried, key=lambda i: float(replay(i).quality.attainment[0]))
        pair = self.replay(self.actions[i], engines=2)
        return {"knobs": self.actions[i]} | measures(replay(i).quality), measures(pair.quality)

    def _remedies(self, choice: Choice, judged: Replayed) -> Remedies:
        """What would make the objective feasible; of each number of GPUs the best that was replayed is tried."""
        order = sorted(choice.replayed, key=lambda i: -float(choice.replayed[i].quality.goodput[0]))
        of_gpus: dict[bool, int] = {}
        for i in [choice.index, *order]:
            of_gpus.setdefault(self.actions[i]["prefill_disagg"], i)
        profile, longest_gb = profile_of(self.table), None
        if self.requests.longest > judged.pool_tokens:
            made = self.deployment(self.actions[choice.index])
            pool_gb = self.requests.longest * profile.kv_bytes_per_token / 1e9
            longest_gb = made.weights_gb + made.runtime_gb + pool_gb
        return remedies(
            judged,
            [self.actions[of_gpus[apart]] for apart in sorted(of_gpus)],
            self.replay,
            lambda knobs: self.engines.alone(self.deployment(knobs)),
            self.objective,
            longest_gb,
            self.deployment(self.actions[choice.index]).gpus,
        )

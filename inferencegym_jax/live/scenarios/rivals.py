"""Who competes in a live scenario, and how fixed settings and thresholds are chosen: by replay, on days not sent.

``Setting, names -> policies, choices``. Chosen is what has the best score foretold; nothing is chosen on what is sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.tree_util import Partial

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.scenarios.described import Drift, SecondInstance
from inferencegym_jax.live.scenarios.drift import LONG, SHORT, switching
from inferencegym_jax.live.scenarios.judged import Segments, Totals, score, segments_of, static_reference
from inferencegym_jax.live.scenarios.second_instance import Setting
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.runs import Asked, TrialSettings, foretell
from inferencegym_jax.models import ServeAction, ServeObservation
from inferencegym_jax.policies.builtin import static
from inferencegym_jax.policies.engine_units import Engine, engine_of
from inferencegym_jax.policies.load_following import LoadPlan, Memory, act, follow_load
from inferencegym_jax.policies.names import policy_of
from inferencegym_jax.policies.policy_file import GENERAL, load_network
from inferencegym_jax.table.latency_table import data_path

TRAINING_SEED = 1 << 31  # of days that no evaluation sends
ONE, TWO, FOLLOWING = "one always", "two always", "load-following"
TUNED, FEWEST = "tuned", "fewest instances"  # searched settings of the load-following controller
BEST, NEXT, SWITCHING, OPEN = "best fixed pair", "next fixed pair", "switching", "open"
CHOICE_DAYS = 2  # not sent, on which what is best for second-instance is chosen; one alone chose what fails on others
SEARCH_DAYS = 4  # not sent, on which settings of the load-following controller are judged
SETTINGS = 32  # of it, of which all but two are drawn
LOWER = 0.01  # of the share on time that ``FEWEST`` may be below two always there, half of what it may be on a sent day
Tried: TypeAlias = Policy | ServeAction | Asked


@dataclasses.dataclass(frozen=True)
class Rivals:
    """Policies by name, which of them never change, and what was chosen for them (JSON-ready)."""

    policies: dict[str, Policy]
    fixed: tuple[str, ...]
    choices: dict[str, Any]


class Foretold:
    """Runs foretold on days that are not sent, each once.

    Args:
        setting: the scenario on this engine.
        settings: of the trial.
        seconds: length of a run.
        days: how many.
    """

    def __init__(self, setting: Setting, settings: TrialSettings, seconds: int, days: int = 1):
        self.setting, self.settings, self.seconds = setting, settings, seconds
        self.objective = Objective((setting.objective.ttft_ms,) * 3, setting.objective.tpot_ms)
        self.traffic = [setting.traffic(TRAINING_SEED + day) for day in range(days)]

    def segments(self, policy: Tried) -> Segments:
        """A policy on those days."""
        problem, settings = self.setting.problem, self.settings
        runs = [foretell(problem.table, sent, policy, problem.params, settings) for sent in self.traffic]
        return segments_of(runs, problem.spec, self.objective, settings.warmup_s, self.seconds)

    def totals(self, policy: Tried) -> Totals:
        """What a policy comes to on those days, arrays of shape (1,)."""
        one = self.segments(policy)
        return one.drawn(np.ones((1, len(one.asked)), np.int64))

    def scores(self, tried: Mapping[Any, Tried], fixed: Sequence[Any]) -> dict[Any, float]:
        """Score of each, against the best of those that are fixed."""
        return self.scored({key: self.totals(policy) for key, policy in tried.items()}, fixed)

    def scored(self, totals: Mapping[Any, Totals], fixed: Sequence[Any]) -> dict[Any, float]:
        """Score of what each came to, against the best of those that are fixed."""
        spec = self.setting.problem.spec
        reference = static_reference(spec, {key: totals[key] for key in fixed})
        return {key: float(score(spec, one, reference)[0]) for key, one in totals.items()}


def second_instance_rivals(
    scenario: SecondInstance,
    setting: Setting,
    settings: TrialSettings,
    seconds: int,
    names: Sequence[str],
    report: Callable[[str], None],
) -> Rivals:
    """The rivals of ``second-instance``.

    Args:
        scenario: as it was written down.
        setting: on this engine.
        settings: of the trial, with the spare's times.
        seconds: length of a run.
        names: those of the scenario ("one always", "two always"; "load-following": the rule tuned once for all that
            task 8 draws; "tuned", "fewest instances": that rule with settings searched on this table, see
            ``searched_plans``), "general", or a policy file.
        report: told what is searched.

    Raises:
        ValueError: a name that there is not.
        FileNotFoundError: no such file.
    """
    problem = setting.problem
    report(f"choosing batch sizes by replay, on {CHOICE_DAYS} days that are not sent")
    foretold = Foretold(setting, settings, seconds, CHOICE_DAYS)
    sizes = {
        (size, leased): ServeAction(batch_size=size, prefill_disagg=leased)
        for size in scenario.batch_sizes
        for leased in (False, True)
    }
    scores = foretold.scores(sizes, list(sizes))
    best = {key[1]: key for key in sorted(sizes, key=lambda key: scores[key])}
    actions = {ONE: sizes[best[False]], TWO: sizes[best[True]]}
    choices: dict[str, Any] = {
        name: {
            "batch_size": int(action.batch_size),
            "scores": {str(size): round(scores[size, leased], 4) for size in scenario.batch_sizes},
        }
        for leased, (name, action) in enumerate(actions.items())
    }
    engine = engine_of(problem.table, problem.params)
    shipped = LoadPlan(**load_network(data_path(GENERAL))[1]["plan"])
    plans = {FOLLOWING: shipped}
    if TUNED in names or FEWEST in names:
        report(f"searching {SETTINGS} settings of the load-following controller by replay, on {SEARCH_DAYS} such days")
        searched = searched_plans(
            Foretold(setting, settings, seconds, SEARCH_DAYS), shipped, actions, max(scenario.batch_sizes)
        )
        for name, (plan, found) in searched.items():
            plans[name] = plan
            choices[name] = dataclasses.asdict(plan) | {"foretold": found}
    policies: dict[str, Policy] = {}
    for name in names:
        if name in actions:
            policies[name] = static(actions[name])
        elif name in plans:
            policies[name] = Partial(follow_load, engine, plans[name].as_arrays())
        else:
            policies[name] = policy_of(name, problem, any_task=True)
    return Rivals(policies, tuple(name for name in names if name in actions), choices)


class Following:
    """The load-following controller, asked second by second; one compiled program for all settings."""

    def __init__(self, engine: Engine, plan: LoadPlan):
        self._engine, self._plan, self._memory = engine, plan.as_arrays(), Memory.start()

    def reset(self, seed: int = 0) -> None:
        """Start an episode; the controller draws nothing."""
        del seed
        self._memory = Memory.start()

    def ask(self, observation: ServeObservation) -> ServeAction:
        """The action of a second."""
        seen = jax.tree.map(lambda x: np.asarray(x, np.float32), observation)
        action, self._memory = _act(self._engine, self._plan, np.full(1, np.nan, np.float32), seen, self._memory)
        return jax.tree.map(lambda x: np.asarray(x).item(), action)


_act = jax.jit(act)


def searched_plans(
    foretold: Foretold, shipped: LoadPlan, fixed: Mapping[str, ServeAction], most: int, count: int = SETTINGS
) -> dict[str, tuple[LoadPlan, dict[str, float]]]:
    """Settings of the load-following controller, chosen among the shipped ones, those with the batch size of two
    always, and drawn ones that limit the running to a share of what keeps the objective on the time per token.

    Args:
        foretold: runs on days that are not sent.
        shipped: settings.
        fixed: actions of "one always" and "two always".
        most: running requests, up to which thresholds on them are drawn.
        count: of settings.

    Returns:
        ``TUNED``: the settings with the highest score foretold. ``FEWEST``: those that pay for the fewest instances
        among the settings whose share on time is foretold not more than ``LOWER`` below that of two always, or, where
        none has it, those with the highest share. Each with its score, share on time and instances, and the
        share on time of two always.
    """
    rng = np.random.default_rng(0)

    def spread(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    engine = engine_of(foretold.setting.problem.table, foretold.setting.problem.params)
    plans = [shipped, shipped.replace(batch_size=int(fixed[TWO].batch_size), slots_share=0.0, kv_budget=1.0)]
    while len(plans) < count:
        plans.append(
            plans[1].replace(
                average_s=spread(2.0, 60.0),
                up_load=rng.uniform(0.6, 1.4),
                down_share=rng.uniform(0.5, 1.0),
                up_waiting=spread(1.0, 50.0),
                up_running=spread(8.0, most),
                hold_s=spread(1.0, 60.0),
                slots_share=rng.uniform(0.5, 1.0),
            )
        )
    tried: dict[Any, Tried] = dict(fixed)
    tried |= {i: Following(engine, plan) for i, plan in enumerate(plans)}
    totals = {key: foretold.totals(policy) for key, policy in tried.items()}
    scores = foretold.scored(totals, list(fixed))
    on_time = {key: float(one.on_time_share[0]) for key, one in totals.items()}
    paid = {key: float(one.gpus[0]) for key, one in totals.items()}
    every = range(len(plans))
    kept = [i for i in every if on_time[i] >= on_time[TWO] - LOWER]
    fewest = min(kept, key=lambda i: paid[i]) if kept else max(every, key=lambda i: on_time[i])
    chosen = {TUNED: max(every, key=lambda i: scores[i]), FEWEST: fewest}
    return {
        name: (
            plans[i],
            {"score": scores[i], "on_time_share": on_time[i], "instances": paid[i], "of_two_always": on_time[TWO]},
        )
        for name, i in chosen.items()
    }


def drift_rivals(
    scenario: Drift,
    setting: Setting,
    alone: Sequence[Setting],
    settings: TrialSettings,
    seconds: int,
    max_num_seqs: int,
    names: Sequence[str],
    report: Callable[[str], None],
) -> Rivals:
    """The rivals of ``drift``.

    Args:
        scenario: as it was written down.
        setting: on this engine.
        alone: the setting of either kind alone, in the order ``LONG``, ``SHORT``.
        settings: of the trial.
        seconds: length of a run.
        max_num_seqs: the engine's own limit, of "open".
        names: among "best fixed pair", "next fixed pair", "switching", "open"; or a policy's.
        report: told what is searched.

    Raises:
        ValueError: a name that there is not.
    """
    pairs: dict[Any, Tried] = {
        (size, budget): ServeAction(batch_size=size, kv_budget=budget)
        for size in scenario.batch_sizes
        for budget in scenario.kv_budgets
    }

    def ranked(one: Setting, what: str) -> tuple[list[tuple[int, float]], dict[Any, float]]:
        report(f"foretelling {len(pairs)} fixed pairs {what}")
        scores = Foretold(one, settings, seconds).scores(pairs, list(pairs))
        return sorted(pairs, key=lambda pair: -scores[pair]), scores

    order, scores = ranked(setting, "on the traffic by turns")
    whats = "on long prompts alone", "on short ones alone"
    kinds = [ranked(one, what)[0][0] for one, what in zip(alone, whats, strict=True)]
    open_limit = ServeAction(batch_size=min(max_num_seqs, 512))
    actions = {BEST: pairs[order[0]], NEXT: pairs[order[1]], OPEN: open_limit}
    long, short = (ServeAction(batch_size=size, kv_budget=budget) for size, budget in (kinds[LONG], kinds[SHORT]))
    policies: dict[str, Policy] = {}
    for name in names:
        if name in actions:
            policies[name] = static(actions[name])
        elif name == SWITCHING:
            policies[name] = switching(long, short, setting.how["switch_at_prompt"])
        else:
            policies[name] = policy_of(name, setting.problem, any_task=True)
    choices = {
        BEST: order[0],
        NEXT: order[1],
        SWITCHING: {"long prompts": kinds[LONG], "short prompts": kinds[SHORT]},
        OPEN: int(open_limit.batch_size),
        "grid": [{"pair": pair, "score": scores[pair]} for pair in order],
    }
    return Rivals(policies, tuple(name for name in names if name in actions), choices)

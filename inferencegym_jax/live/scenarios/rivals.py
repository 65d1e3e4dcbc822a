"""Who competes in a live scenario, and how fixed settings and thresholds are chosen: by replay, on days not sent.

``Setting, names -> policies, choices``. Chosen is what has the best score foretold; nothing is chosen on what is sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.tree_util import Partial

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.scenarios.described import Drift, SecondInstance
from inferencegym_jax.live.scenarios.drift import LONG, SHORT, switching
from inferencegym_jax.live.scenarios.plan_search import DAYS, SEARCHED, SETTINGS, searched_in, searched_plans
from inferencegym_jax.live.scenarios.second_instance import Setting
from inferencegym_jax.live.scenarios.unsent_days import Foretold, Tried
from inferencegym_jax.live.trial.runs import TrialSettings
from inferencegym_jax.models import ServeAction
from inferencegym_jax.policies.builtin import static
from inferencegym_jax.policies.engine_units import engine_of
from inferencegym_jax.policies.load_following import LoadPlan, follow_load
from inferencegym_jax.policies.names import policy_of
from inferencegym_jax.policies.policy_file import GENERAL, load_network
from inferencegym_jax.registry import Problem
from inferencegym_jax.table.latency_table import data_path

ONE, TWO, FOLLOWING = "one always", "two always", "load-following"
BEST, NEXT, SWITCHING, OPEN = "best fixed pair", "next fixed pair", "switching", "open"
CHOICE_DAYS = 2  # not sent, on which what is best for second-instance is chosen; one alone chose what fails on others


@dataclasses.dataclass(frozen=True)
class Rivals:
    """Policies by name, which of them never change, and what was chosen for them (JSON-ready)."""

    policies: dict[str, Policy]
    fixed: tuple[str, ...]
    choices: dict[str, Any]


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
            ``plan_search``), "general", or a policy file.
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
    if set(SEARCHED) & set(names):
        report(f"searching {SETTINGS} settings of the load-following controller by replay, on {DAYS} such days")
        on_more_days = Foretold(setting, settings, seconds, DAYS)
        plans = searched_plans(on_more_days, _shipped_plan(), actions, TWO, max(scenario.batch_sizes))
        choices |= {n: dataclasses.asdict(plan) | {"foretold": figures} for n, (plan, figures) in plans.items()}
    policies = {name: rival_of(name, choices, problem) for name in names}
    return Rivals(policies, tuple(name for name in names if name in actions), choices)


def rival_of(name: str, choices: Mapping[str, Any], problem: Problem) -> Policy:
    """A rival of ``second-instance``, as it was chosen.

    Args:
        name: of it, or a policy's.
        choices: ``Rivals.choices``, which may have been JSON.
        problem: the scenario on the engine's table.

    Raises:
        ValueError: a name that there is not.
        FileNotFoundError: no such file.
    """
    if name in (ONE, TWO):
        return static(ServeAction(batch_size=choices[name]["batch_size"], prefill_disagg=name == TWO))
    if name == FOLLOWING or name in SEARCHED:
        plan = _shipped_plan() if name == FOLLOWING else searched_in(choices)[name]
        return Partial(follow_load, engine_of(problem.table, problem.params), plan.as_arrays())
    return policy_of(name, problem, any_task=True)


def _shipped_plan() -> LoadPlan:
    return LoadPlan(**load_network(data_path(GENERAL))[1]["plan"])


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

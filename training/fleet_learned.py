"""Learned policies of fleets against the rules: mean GPUs at 99 % on time, prices, differences paired by day.
``python -m training fleet-compare`` prints them.

``task, policy files -> frontiers over shifts of each -> rows``; on fleet-anywhere ``conditions -> prices``. A learned
policy's frontier shifts it by GPUs, as a rule's frontier moves its target: neither is trained again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import inferencegym_jax as ig
from inferencegym_jax.fleet.action import FLEET_KNOBS, GPUS
from inferencegym_jax.fleet.contest import contest
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.making import ANYWHERE, anywhere_params, draw_condition, fleet_spec_of
from inferencegym_jax.fleet.rules import REACTIVE, RulePlan, fixed, tuned_rule
from inferencegym_jax.fleet.spec import FleetSpec, get_fleet
from inferencegym_jax.fleet.state import DECISION_S, FleetParams
from inferencegym_jax.fleet.statistics import FleetStatistics, evaluate_fleet, share_on_time
from inferencegym_jax.models import check_whole
from inferencegym_jax.policies.fleet_control import FleetCarry, follow_rule, knobs_of
from inferencegym_jax.policies.fleet_numbers import fleet_numbers
from inferencegym_jax.policies.network import PolicyNetwork, first_carry, forward, mode
from inferencegym_jax.policies.policy_file import corrects, load_network, reads_fleet
from training.fleet_points import RESAMPLES, SETTINGS, seeds_of
from training.fleet_search import WANTED, frontier
from training.fleet_tables import setting_words

SEEDS = "learned, mean of the seeds"
COLLAPSE = 1.5
"""Times the rule's price, from which on a condition counts as one on which a policy collapsed."""
SHIFTS = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
"""GPUs by which a learned policy's frontier shifts it."""
TARGETS = (0.8, 0.72, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.36, 0.32, 0.28)
"""Utilisations over which a rule's frontier runs."""


def act_shifted(network: PolicyNetwork, key: jax.Array, seen: Any, carry: Any) -> Any:
    """A network's decision with GPUs added; what is added, and the rule that it corrects, stand in the carry."""
    del key
    shift, plan, memory = carry
    outputs, after = forward(network, fleet_numbers(seen), memory.network)
    if plan is None:
        raw_action = mode(outputs, FLEET_KNOBS)
        raw_action = raw_action.at[..., 0].add(shift * 2.0 / (GPUS - 1))
        return knobs_of(raw_action), (shift, plan, FleetCarry(memory.memory, after))
    shifted_plan = plan.replace(spare=plan.spare + shift)
    action, rule_memory = follow_rule(shifted_plan, jnp.tanh(outputs), seen, memory.memory)
    return action, (shift, plan, FleetCarry(rule_memory, after))


def learned(
    env: FleetEnvironment,
    params: FleetParams,
    path: str | Path,
    seeds: Any,
    shifts: Sequence[float] = (0.0,),
) -> FleetStatistics:
    """Statistics of a policy file at every shift on every seed, float64[shifts, seeds].

    Args:
        env: the fleet.
        params: one task, or a batch with one entry a seed.
        path: of the file, or the folder of a run.
        seeds: whole numbers.
        shifts: GPUs more.

    Raises:
        FileNotFoundError, ValueError: no policy file, or one of a single engine.
    """
    from inferencegym_jax.fleet.rules import rule_start

    network, metadata = load_network(path)
    if not reads_fleet(metadata):
        raise ValueError(f"policy = {str(path)!r}: trained on {metadata.get('task')!r}, a single engine")
    seeds = np.asarray(seeds)
    many = len(shifts) * len(seeds)

    def spread(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (many, *np.shape(x))), tree)

    plan = RulePlan(**metadata["plan"]).as_arrays() if corrects(metadata) else None
    size = 0 if network.gru is None else network.gru.size
    memory = FleetCarry(rule_start(RulePlan()), first_carry(network.history, size, numbers=network.numbers))
    shift_of_lane = np.repeat(np.asarray(shifts, np.float32), len(seeds))
    if np.ndim(params.task_id):
        params = jax.tree.map(lambda x: np.concatenate([np.asarray(x)] * len(shifts)), params)
    carry = shift_of_lane, None if plan is None else spread(plan), spread(memory)
    policy = Partial(act_shifted, network)
    statistics = evaluate_fleet(env, params, policy, np.tile(seeds, len(shifts)), carry=carry, carry_axis=0)
    shape = len(shifts), len(seeds)
    columns = {f.name: getattr(statistics, f.name) for f in dataclasses.fields(statistics)}
    return FleetStatistics(**{name: np.reshape(column, shape) for name, column in columns.items()})


def _at_99(statistics: FleetStatistics, rows: slice, pick: np.ndarray) -> float:
    gpus, on_time, judged = (x[rows][:, pick] for x in (statistics.mean_gpus, statistics.on_time, statistics.judged))
    return frontier(gpus.mean(axis=-1), share_on_time(on_time, judged), WANTED)


def _interval(values: np.ndarray) -> dict[str, float]:
    known = values[np.isfinite(values)]
    if len(known) < 0.9 * len(values):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = np.percentile(known, (2.5, 97.5))
    return {"mean": float(np.mean(known)), "low": float(low), "high": float(high)}


def compare(
    task: str | FleetSpec,
    files: Sequence[str | Path],
    days: int = 24,
    changes: Mapping[str, Any] | None = None,
    first: int = 0,
) -> dict[str, Any]:
    """Mean GPUs at 99 % of requests on time of the fixed sizes, the rules and learned policies.

    Args:
        task: a fleet task of one pool.
        files: of learned policies; several are training seeds.
        days: how many, of days apart.
        changes: fields of the task that differ.
        first: seed of the first: 0 for held-out days, from ``TRAINING_SEEDS`` on those that a choice is made on.

    Returns:
        ``{"task", "days", "clock", "start_s", "hours", "rows": {name: interval of GPUs}, "over_tuned": {name: interval
        of the relative difference to the rule tuned on the pool, paired by day}}``; of several files also ``SEEDS``,
        the mean over them.
    """
    spec = get_fleet(task).replace(**(changes or {}))
    env, params = ig.make_fleet(spec)
    seeds = seeds_of(spec, days, first)
    rules = {"reactive": REACTIVE, "tuned on the pool": tuned_rule(spec.name)}
    plans = [fixed(size) for size in range(1, spec.gpus + 1)]
    places = {"fixed size": slice(0, spec.gpus)}
    for name, plan in rules.items():
        places[name] = slice(len(plans), len(plans) + len(TARGETS))
        plans += [plan.replace(target=target) for target in TARGETS]
    by_rules = contest(env, params, plans, seeds)
    by_policy = {name: (by_rules, place) for name, place in places.items()}
    for file in files:
        by_policy[str(file)] = (learned(env, params, file, seeds, SHIFTS), slice(None))
    picks = np.random.default_rng(0).integers(days, size=(RESAMPLES, days))
    drawn = {name: np.asarray([_at_99(one, rows, pick) for pick in picks]) for name, (one, rows) in by_policy.items()}
    means = {name: _at_99(one, rows, np.arange(days)) for name, (one, rows) in by_policy.items()}
    if len(files) > 1:
        drawn[SEEDS] = np.mean([drawn[str(file)] for file in files], axis=0)
        means[SEEDS] = float(np.mean([means[str(file)] for file in files]))
    tuned = drawn["tuned on the pool"]
    return {
        "task": spec.name,
        "days": days,
        "clock": spec.clock,
        "start_s": spec.start_s,
        "hours": spec.decisions * DECISION_S * spec.clock / 3600.0,
        "rows": {name: _interval(values) | {"mean": means[name]} for name, values in drawn.items()},
        "over_tuned": {
            name: _interval(values / tuned - 1.0) | {"mean": means[name] / means["tuned on the pool"] - 1.0}
            for name, values in drawn.items()
        },
    }


def compare_anywhere(files: Sequence[str | Path], conditions: int = 96, first: int = 0) -> dict[str, Any]:
    """Prices of learned policies on fleet-anywhere's held-out conditions, over those of the shipped rule.

    Args:
        files: of learned policies.
        conditions: test conditions.
        first: their first seed.

    Returns:
        ``{"conditions", "rows": {file: {group: {"median", "low", "high", "worst", "dearest", "collapses", "price",
        "rule_price", "count"}}}}``: medians of the ratio of prices less 1 with the interval over conditions, the ratio
        of the worst prices, the largest ratio, how many are above ``COLLAPSE``; groups are all conditions, each pool,
        and objectives in and out of reach.
    """
    from inferencegym_jax.fleet.making import OUT_OF_REACH

    seeds = np.arange(first, first + conditions, dtype=np.uint32)
    specs = [draw_condition(int(seed)) for seed in seeds]
    env, _ = ig.make_fleet("fleet-anywhere")
    params = anywhere_params(seeds.tolist(), env.table)
    rule_price = contest(env, params, [REACTIVE], seeds).price[0]
    hopeless = np.asarray([(spec.slo_ttft_ms, spec.slo_tpot_ms) == OUT_OF_REACH for spec in specs])
    pools = np.asarray([spec.pool for spec in specs])
    groups = {"all": np.ones(conditions, bool)} | {pool: pools == pool for pool in sorted(set(pools.tolist()))}
    groups |= {"in reach": ~hopeless, "out of reach": hopeless}
    groups = {name: members for name, members in groups.items() if members.any()}
    rows: dict[str, Any] = {}
    for file in files:
        price = learned(env, params, file, seeds).price[0]
        ratio = price / rule_price
        rows[str(file)] = {}
        for name, members in groups.items():
            rng = np.random.default_rng(0)
            own = ratio[members]
            drawn = np.median(own[rng.integers(len(own), size=(RESAMPLES, len(own)))], axis=1) - 1.0
            low, high = np.percentile(drawn, (2.5, 97.5))
            rows[str(file)][name] = {
                "median": float(np.median(own) - 1.0),
                "low": float(low),
                "high": float(high),
                "worst": float(price[members].max() / rule_price[members].max()),
                "dearest": float(own.max()),
                "collapses": int((own > COLLAPSE).sum()),
                "price": float(price[members].mean()),
                "rule_price": float(rule_price[members].mean()),
                "count": int(members.sum()),
            }
    return {"conditions": conditions, "rows": rows}


def comparison(
    task: int | str, files: Sequence[str | Path], days: int = 24, windows: int = 24, first: int = 0
) -> dict[str, Any]:
    """Everything that ``python -m training fleet-compare`` prints.

    Args:
        task: a fleet task.
        files: of learned policies.
        days: at the fast clock; of fleet-anywhere conditions. At least 2.
        windows: of two hours at real time, of days apart; at least 2, or 0 for none. Of fleet-anywhere none.
        first: see ``compare``.

    Returns:
        ``{"task", "parts": [compare's, compare's]}``, of fleet-anywhere ``{"task"}`` and ``compare_anywhere``'s.

    Raises:
        ValueError, FileNotFoundError: no such task, too few days, or a file that cannot be used.
    """
    check_whole("days", days, 2)
    if windows != 0:
        check_whole("windows", windows, 2)
    spec = fleet_spec_of(task)
    if spec.name == ANYWHERE:
        return {"task": ANYWHERE, **compare_anywhere(files, days, first)}
    measured = [(days, SETTINGS[0]), (windows, SETTINGS[1])] if windows else [(days, SETTINGS[0])]
    return {"task": spec.name, "parts": [compare(spec, files, count, changes, first) for count, changes in measured]}


def markdown(compared: Mapping[str, Any]) -> str:
    """The table of ``comparison``."""
    if "parts" not in compared:
        return _price_table(compared)
    parts = compared["parts"]
    head = " | ".join(f"GPUs at 99 %, {setting_words(part)} | over the tuned rule" for part in parts)
    lines = [f"{compared['task']}: mean GPUs at 99 % of requests on time, 95 % intervals paired by day", ""]
    lines += [f"| policy | {head} |", "|" + " --- |" * (1 + 2 * len(parts))]
    for name in parts[0]["rows"]:
        cells = [
            cell
            for part in parts
            for cell in (_span(part["rows"][name], ".2f", "not reached"), _span(part["over_tuned"][name], "+.1%", ""))
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(interval: Mapping[str, float], form: str, unknown: str) -> str:
    mean, low, high = (interval[name] for name in ("mean", "low", "high"))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]" if np.isfinite((mean, low, high)).all() else unknown


def _price_table(compared: Mapping[str, Any]) -> str:
    lines = [
        f"{compared['task']}, {compared['conditions']} held-out conditions: price over that of the shipped rule, "
        "median [95 % interval over conditions]",
        "",
        f"| policy | conditions | number | price | mean price | worst price | dearest | above {COLLAPSE:g} |",
        "|" + " --- |" * 8,
    ]
    for name, groups in compared["rows"].items():
        for group, row in groups.items():
            median, mean = _span(row | {"mean": row["median"]}, "+.1%", ""), row["price"] / row["rule_price"] - 1.0
            lines.append(
                f"| {name} | {group} | {row['count']} | {median} | {mean:+.1%} | {row['worst']:.2f} | "
                f"{row['dearest']:.2f} | {row['collapses']} |"
            )
    return "\n".join(lines)

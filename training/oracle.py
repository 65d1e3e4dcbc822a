"""What control is worth: how much a policy could win that knows what comes.

The oracle searches over actions every second, with the true draws of the next seconds (they are counters, so any step
can be asked for ahead of time): each candidate action is held for ``horizon`` seconds, the one whose sum of the
objective is highest is taken for one second. The rivals' own sequences are among its candidates, episode by episode,
so it never falls below one of them. It is a lower bound of what a clairvoyant could reach, and no policy that sees only
the past need come near it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Environment, EnvParams, EpisodeStatistics, Problem, ServeAction
from inferencegym_jax.environment import transition
from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.episodes.static_search import static_actions
from inferencegym_jax.models import EPISODE_LENGTH, KNOBS
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies import NAMES, policy_of
from inferencegym_jax.scoring.grader import score_rate
from training.evaluation import columns, episodes
from training.objective import unrest
from training.tables import outcome_cells, outcome_heads

OBJECTIVES = ("return", "score")
BATCH_SIZES = (1, 8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 448, 512)
KV_BUDGETS = (0.1, 0.175, 0.25, 0.375, 0.5, 0.75, 1.0)
RESTLESS = 3  # tasks from this one on are graded on stability too
SPEC_LENGTHS = (0, 2)  # longer drafts lose at every batch size above 8
OUT_OF_MEMORY = 1e4  # what a second out of memory takes from a candidate's sum: more than anything else can give


def candidates(env: Environment, params: EnvParams) -> ServeAction:
    """The actions that the oracle chooses from, fields of shape (candidates,)."""
    actions = static_actions(env, params, {"batch_size": BATCH_SIZES, "kv_budget": KV_BUDGETS})
    actions = [action for action in actions if action["spec_length"] in SPEC_LENGTHS]
    return ServeAction(**{name: np.asarray([action[name] for action in actions]) for name in KNOBS}).as_arrays()


def play(problem: Problem, objective: str, seeds: Any, horizon: int = 1) -> EpisodeStatistics:
    """Episodes under the oracle, as ``ig.evaluate`` returns them.

    Args:
        problem: a task on its table and traffic.
        objective: "return" (the reward) or "score" (the grader's per-second terms, task 2's peak memory, unrest where
            it is graded).
        seeds: whole numbers, shape (episodes,).
        horizon: seconds that each candidate is held in the search.

    Returns:
        Of each episode the sequence with the highest objective: the search's or that of a built-in policy.

    Raises:
        ValueError: unknown objective, horizon below 1.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective = {objective!r}: must be one of {', '.join(OBJECTIVES)}")
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon = {horizon!r}: must be a whole number of at least 1")
    env, params = problem.env.suited_to(problem.params), problem.params
    actions = _search(
        env, problem.spec.id, objective, horizon, params, candidates(env, params), jnp.asarray(seeds, jnp.uint32)
    )
    rivals = [ig.evaluate(env, params, policy, seeds) for policy in _rivals(problem).values()]
    played = [ig.evaluate(env, params, _replay, seeds, carry=actions, carry_axis=0), *rivals]
    values = [problem.score(x) if objective == "score" else np.asarray(x.total_reward) for x in played]
    best, episode = np.argmax(values, axis=0), np.arange(len(values[0]))
    return jax.tree.map(lambda *x: np.stack(x)[best, episode], *played)


def _rivals(problem: Problem) -> dict[str, Policy]:
    """The built-in policies that there are for a problem, by name."""
    found: dict[str, Policy] = {}
    for name in NAMES:
        try:
            found[name] = policy_of(name, problem)
        except FileNotFoundError:  # no policy ships for the task
            continue
    return found


def _replay(key: jax.Array, observation: Any, carry: tuple[ServeAction, jax.Array]) -> Any:
    """The policy that plays the actions in its carry one after another."""
    del key, observation
    plan, step = carry
    return jax.tree.map(lambda x: x[step], plan), (plan, step + 1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _search(
    env: Environment, task: int, objective: str, horizon: int, params: EnvParams, options: ServeAction, seeds: jax.Array
) -> Any:
    spec = ig.get_task(task)

    def move(state: Any, action: ServeAction) -> Any:
        return transition(env.grid, state, action, params, env.trace, env.dynamics, env.reward)

    def gain(info: Any, reward: jax.Array, peak: jax.Array) -> jax.Array:
        if objective == "return":
            return reward
        metrics = info["metrics"]
        rate = score_rate(spec, params, metrics, info["outcome"])
        if task == 2:  # what a new peak takes from the score of the whole episode
            limit = params.memory_limit_gb
            new = jnp.maximum(metrics.gpu_memory_gb, peak)
            rate = rate - 0.05 * EPISODE_LENGTH * (jnp.maximum(new, limit) - jnp.maximum(peak, limit))
        return rate

    def try_out(state: Any, action: ServeAction, before: ServeAction, peak: jax.Array) -> jax.Array:
        def second(_: jax.Array, carry: Any) -> Any:
            state, peak, total = carry
            _, state, reward, _, info = move(state, action)
            total = total + gain(info, reward, peak) - OUT_OF_MEMORY * info["oom"]
            return state, jnp.maximum(peak, info["metrics"].gpu_memory_gb), total

        restless = objective == "score" and task >= RESTLESS
        start = jnp.where(state.time == 0, 0.0, -unrest(spec, action, before)) if restless else jnp.float32(0.0)
        return jax.lax.fori_loop(0, horizon, second, (state, peak, start))[2]

    def one(state: Any, before: ServeAction, peak: jax.Array) -> Any:
        values = jax.vmap(try_out, in_axes=(None, 0, None, None))(state, options, before, peak)
        action = jax.tree.map(lambda x: x[jnp.argmax(values)], options)
        _, state, _, _, info = move(state, action)
        return state, action, jnp.maximum(peak, info["metrics"].gpu_memory_gb)

    def body(carry: Any, _: None) -> tuple[Any, Any]:
        carry = jax.vmap(one)(*carry)
        return carry, carry[1]

    _, state = jax.vmap(env.reset_seed, in_axes=(0, None))(seeds, params)
    before = jax.tree.map(lambda x: jnp.broadcast_to(x, seeds.shape), ServeAction().as_arrays())
    start = (state, before, jnp.zeros(seeds.shape, jnp.float32))
    _, plan = jax.lax.scan(body, start, None, EPISODE_LENGTH)
    plan = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), plan)
    return plan, jnp.zeros(seeds.shape, jnp.int32)


def report(
    task: int | str, count: int = 32, horizon: int = 1, table: str | None = None, trace: str | None = None
) -> str:
    """The table "What control is worth" of one task, in Markdown.

    Args:
        task: id or name.
        count: episodes, seeds 0 to count - 1.
        horizon: seconds that each candidate is held in the search.
        table: a latency table of your own.
        trace: a request log of your own.

    Raises:
        ValueError: see ``play``; count below 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"episodes = {count!r}: must be a whole number of at least 1")
    problem, seeds = ig.problem(task, table=table, trace=trace), np.arange(count)
    rows = [(name.replace("_", " "), episodes(problem, policy, seeds)) for name, policy in _rivals(problem).items()]
    for objective in OBJECTIVES:
        rows.append((f"oracle for {objective}", columns(problem, play(problem, objective, seeds, horizon))))
    replayed = "" if problem.env.trace is None else f" on {problem.env.trace.name}"
    heads = ["policy", "score", "return", *outcome_heads(problem.spec)]
    lines = [
        f"Task {problem.spec.id}, {problem.spec.title}{replayed}: mean [95 % interval] of {count} episodes; "
        f"oracle: best of all actions for the next {horizon} s",
        "",
        f"| {' | '.join(heads)} |",
        "|" + " --- |" * len(heads),
    ]
    for name, values in rows:
        cells = (
            f"{x['mean']:.{digits}f} [{x['low']:.{digits}f}, {x['high']:.{digits}f}]"
            for x, digits in ((mean_interval(values["score"]), 3), (mean_interval(values["return"]), 1))
        )
        lines.append(f"| {' | '.join((name, *cells, *outcome_cells(problem.spec, values)))} |")
    own = "".join(f" --{name} {value}" for name, value in (("table", table), ("trace", trace)) if value)
    command = f"python -m training oracle --task {problem.spec.id} --episodes {count} --horizon {horizon}{own}"
    return "\n".join([*lines, "", f"`{command}`"])

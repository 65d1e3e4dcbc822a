"""The compiled fluid on the traffic of the reference: told by second what arrives, and summed up as the reference is.

``Requests -> seconds, dispersion -> serve_second, scanned and batched over runs -> the figures of summary.summarise``.
The only module here that imports the library; nothing of the reference engine reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.models import PREFILL_GPU, REPLICA, SHORT_OUTPUTS, EngineParams, EngineState, ServeAction
from inferencegym_jax.physics.first_token import share_within
from inferencegym_jax.physics.inflow import Arrivals
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.serving import serve_second
from inferencegym_jax.table import profile_of
from inferencegym_jax.tasks import engine_params
from tests.reference.cases import Case, requests_of
from tests.reference.settings import Settings
from tests.reference.traffic import CLASSES, Requests, dispersion, seconds

LOG_DRAIN_S = 300  # after a log's last request
LENGTH_S = 460  # of every case, one program for all: the reference's last request is finished in second 421
TASK = 4
TTFT_GRID_MS = np.geomspace(5.0, 1e6, 400).astype(np.float32)
UNBOUNDED = 2**30
CONSTANT = 0.01  # coefficient of variation below which lengths are told to be constant


class Traffic(NamedTuple):
    """One run's traffic as the step is told it: [seconds] each, and params of its dispersion."""

    requests: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    changes: dict[str, float]
    kind: str
    short: np.ndarray  # float32[len(SHORT_OUTPUTS)], shares of the requests that have few tokens


def traffic_of(requests: Requests, length_s: int) -> Traffic:
    """What a step of a second is told of these requests."""
    told, how = seconds(requests, length_s), dispersion(requests)
    some = told.count > 0
    return Traffic(
        told.count,
        np.where(some, told.prompt, requests.prompt.mean()),
        np.where(some, told.output, requests.output.mean()),
        {
            "prompt_cv": how.cv_prompt if how.cv_prompt > CONSTANT else 0.0,
            "output_cv": how.cv_output if how.cv_output > CONSTANT else 0.0,
            "length_correlation": how.correlation,
            "arrival_scv": how.arrival_scv,
        },
        requests.kinds[0],
        short_outputs(requests),
    )


def short_outputs(requests: Requests) -> np.ndarray:
    """Shares of the requests with up to each of ``SHORT_OUTPUTS`` tokens, and more than the one before."""
    below = [np.mean(requests.output <= most) for most in SHORT_OUTPUTS]
    return np.diff(below, prepend=0.0).astype(np.float32)


def params_of(settings: Settings, role: str, traffic: Traffic) -> EngineParams:
    """The engine's params for the reference's settings."""
    profile = profile_of(ig.load_table())
    changes: dict[str, Any] = traffic.changes | {
        "memory_gb": profile.memory_gb if settings.memory_gb is None else settings.memory_gb,
        "token_budget": settings.token_budget or profile.tokens_per_iteration,
        "acceptance_lengths": profile.acceptance_lengths[traffic.kind],
        "restart_s": settings.restart_s,
        "start_s": settings.start_s,
        "lease_s": settings.lease_s,
        "link_gb_s": settings.transfer_gb_s,
        "prefix_share": settings.prefix_share,
    }
    return engine_params(ig.get_task(TASK), ig.load_table(), "open_loop").replace(
        second_gpu=np.int32(REPLICA if role == "replica" else PREFILL_GPU),
        queue_capacity=np.int32(settings.queue_capacity or UNBOUNDED),
        **{name: np.asarray(value, np.float32) for name, value in changes.items()},
    )


def knobs_of(case: Case, length_s: int) -> tuple[ServeAction, str]:
    """The knobs in every second of a case, [seconds], and the role of its second GPU."""
    columns: dict[str, np.ndarray] = {}
    role = "none"

    def hold(settings: Settings, since: int) -> None:
        values = {
            "kv_budget": settings.kv_budget,
            "spec_length": settings.spec_length,
            "batch_size": settings.batch_size,
            "prefill_disagg": settings.second_gpu != "none",
            "quant_tier": settings.quant_tier,
        }
        for name, value in values.items():
            columns.setdefault(name, np.full(length_s, value))[since:] = value

    steps = [(0, case.engine_settings)]
    for change in case.changes:
        steps.append((int(change.time_s), change.of(steps[-1][1])))
    for since, settings in steps:
        hold(settings, since)
        role = role if settings.second_gpu == "none" else settings.second_gpu
    return ServeAction(**columns).as_arrays(), role


@jax.jit
def _play(
    traffic: tuple[jax.Array, ...],
    actions: ServeAction,
    shares: jax.Array,
    objective_ms: jax.Array,
    params: EngineParams,
    short: jax.Array,
) -> Any:
    grid, told = iterations_of(ig.load_table()), jnp.bool_(True)  # as a request log's

    def one(columns: tuple[jax.Array, ...], own: EngineParams, few: jax.Array) -> Any:
        def body(engine: EngineState, x: tuple[Any, ...]) -> Any:
            (count, prompt, output), action, is_first = x
            second, after = serve_second(
                grid, engine, action, Arrivals(count, prompt, output), is_first, shares, objective_ms, own, few, told
            )
            return after, second

        first = jnp.arange(columns[0].shape[0]) == 0
        return jax.lax.scan(body, EngineState.empty(), (columns, actions, first))[1]

    return jax.vmap(one)(traffic, params, short)


@jax.jit
def _shares(first: Any, chance: Any, wait: jax.Array, spread: jax.Array) -> jax.Array:
    """[levels, runs, seconds]: share of a second's requests whose first token comes within each of the grid's times."""
    return jax.vmap(lambda limit: share_within(first, chance, limit, wait, spread))(jnp.asarray(TTFT_GRID_MS))


def served(
    runs: Sequence[Traffic],
    actions: ServeAction,
    params: Sequence[EngineParams],
    classes: Sequence[float],
    objective: tuple[float, float],
) -> Any:
    """The seconds of all runs: ``serving.Second`` with leaves [runs, seconds, ...], float64."""
    stacked = jax.tree.map(
        lambda *x: jnp.stack(x),
        *(p.replace(slo_tpot_ms=np.full(3, objective[1], np.float32)) for p in params),
    )
    columns = tuple(jnp.asarray(np.stack([np.asarray(run[i]) for run in runs]), jnp.float32) for i in range(3))
    seconds_of = _play(
        columns,
        actions,
        jnp.asarray(classes, jnp.float32),
        jnp.full(3, objective[0], jnp.float32),
        stacked,
        jnp.asarray(np.stack([run.short for run in runs])),
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float64), seconds_of)


def _entering(entered: np.ndarray, arrived: np.ndarray, start: int, end: int) -> np.ndarray:
    """[runs, seconds]: of those that enter (or finish) in each second, who arrived in the window; first come, first
    served."""
    came = np.cumsum(arrived, axis=1)
    low, high = (came[:, start - 1] if start else np.zeros(len(came))), came[:, end - 1]
    until = np.cumsum(entered, axis=1)
    since = until - entered
    return np.clip(np.minimum(until, high[:, None]) - np.maximum(since, low[:, None]), 0.0, None)


def _ttft(second: Any, runs: Sequence[Traffic], classes: Sequence[float], window: tuple[int, int]) -> dict[str, float]:
    """TTFT of the requests that arrived in the window, by class and together: means over the runs."""
    figures: dict[str, list[float]] = {}
    arrived = np.stack([run.requests for run in runs])
    present = [i for i, share in enumerate(classes) if share > 0]
    cdfs, weights, means = [], [], []
    for i in present:
        mine = second.lines.classes[i]
        chance = second.flow.chance._replace(scale_ms=second.flow.chance.scale_ms * mine.last)
        to_jax = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
        first = second.first.after_place(1.0 - mine.last, mine.place_ms)
        cdfs.append(np.asarray(_shares(*to_jax((first, chance, mine.wait_ms, mine.spread_ms))), np.float64))
        weights.append(_entering(mine.entered, classes[i] * arrived, *window))
        means.append(mine.wait_ms + first.mean + chance.mean_ms)
    groups = [("", list(range(len(present))))]
    if len(present) > 1:
        groups += [(f"_{CLASSES[i]}", [j]) for j, i in enumerate(present)]
    for suffix, chosen in groups:
        for run in range(len(runs)):
            total = sum(weights[j][run].sum() for j in chosen)
            mean = sum((means[j][run] * weights[j][run]).sum() for j in chosen) / total
            cdf = sum((cdfs[j][:, run] * weights[j][run]).sum(axis=1) for j in chosen) / total
            figures.setdefault(f"ttft_mean_ms{suffix}", []).append(mean)
            for name, level in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
                value = np.exp(np.interp(level, np.maximum.accumulate(cdf), np.log(TTFT_GRID_MS)))
                figures.setdefault(f"ttft_{name}_ms{suffix}", []).append(float(value))
    return {name: float(np.mean(values)) for name, values in figures.items()}


def figures_of(
    runs: Sequence[Traffic],
    actions: ServeAction,
    params: Sequence[EngineParams],
    objectives: Sequence[tuple[float, float]],
    window: tuple[int, int],
    classes: Sequence[float] = (1.0, 0.0, 0.0),
) -> dict[str, float]:
    """Figures under the names of ``summary.summarise``, each the mean over the runs.

    TPOT is that of the requests that finish, weighed by their tokens (the reference's ``itl_mean_ms``). On time are
    those that the step itself counts, over all that it judges from the window's start to the end.
    """
    start, end = window
    found: dict[str, float] = {}
    second: Any = None
    for objective in objectives:
        second = served(runs, actions, params, classes, objective)
        outcome = second.outcome
        good = outcome.on_time[:, start:].sum(axis=1)
        judged = good + (outcome.late + outcome.rejected + outcome.failed)[:, start:].sum(axis=1)
        name = f"on_time_{objective[0]:g}_{objective[1]:g}"
        found[name] = float(np.mean(good.sum(axis=1) / judged.sum(axis=1)))
        if classes[0] < 1:
            for i, label in enumerate(CLASSES):
                found[f"{name}_{label}"] = float(np.mean(good[:, i] / judged[:, i]))
    arrived = np.stack([run.requests for run in runs])
    finished = _entering(second.completed, arrived, start, end) * (second.flow.output - 1.0)
    inside = slice(start, end)
    return found | {
        **_ttft(second, runs, classes, window),
        "itl_mean_ms": float(np.mean((second.per_token.mean * finished).sum(axis=1) / finished.sum(axis=1))),
        "tokens_per_s": float(second.tokens[:, inside].mean()),
        "decoding": float(second.running[:, inside].mean()),
        "preemption_events": float(second.preempted.sum(axis=1).mean()),
    }


def case_figures(case: Case, runs: int | None = None) -> dict[str, float]:
    """A case of the grid, served by the fluid: means over its runs, as ``cases.json`` has them of the reference."""
    traffic = [traffic_of(requests_of(case, seed), LENGTH_S) for seed in range(runs or case.runs)]
    actions, role = knobs_of(case, LENGTH_S)
    params = [params_of(case.engine_settings, role, run) for run in traffic]
    window = int(case.start_s), int(case.length_s)
    return figures_of(traffic, actions, params, case.objectives, window, case.classes)


def log_figures(requests: Requests, objectives: Sequence[tuple[float, float]]) -> dict[str, float]:
    """A request log, served by the fluid at the reference's usual settings: all of it counts."""
    settings, length_s = Settings(), int(requests.arrival_ms[-1] / 1000) + 1
    traffic = traffic_of(requests, length_s + LOG_DRAIN_S)
    action = ServeAction(batch_size=settings.batch_size).as_arrays()
    actions = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(traffic.requests),)), action)
    return figures_of([traffic], actions, [params_of(settings, "none", traffic)], objectives, (0, length_s))

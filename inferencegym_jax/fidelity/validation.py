"""Prediction of measured runs by the compiled step, and the fit of the two constants that kernels do not hold.

``MeasuredRun, table of its model and GPU -> environment fed the run's arrivals -> Prediction -> errors``. The table and
its engine profile come from the caller (``data/engine_table.py`` makes them from measured kernels); the step is
``Environment.step_env``, as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.fidelity.measured_runs import MeasuredRun
from inferencegym_jax.models import KNOBS, EnvParams, ServeAction
from inferencegym_jax.physics.kernels import most_tokens
from inferencegym_jax.table import profile_of
from inferencegym_jax.table.latency_table import LatencyTable, data_path
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params
from inferencegym_jax.traffic.request_log import RequestLog

LEVELS = (0.5, 0.9, 0.99)
SEED = 0
UNBOUNDED_QUEUE = 2**30
LARGEST_MS = 20.0  # of either constant
FIT_STEPS, FIT_DELTA_MS = 8, 0.05


class Constants(NamedTuple):
    """What kernels do not hold, ms."""

    overhead_ms: float  # c: scheduler and sampler, an iteration
    path_ms: float  # h: outside iterations, a request


@dataclass(frozen=True)
class EngineTable:
    """A latency table for one run, the memory that weights and KV cache may take, GB, and the constants that belong to
    its kernels (None: the shipped ones)."""

    table: LatencyTable
    memory_limit_gb: float
    constants: Constants | None = None


@dataclass(frozen=True)
class Prediction:
    """What the step says of a run; ms."""

    itl_mean_ms: float
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    latency_mean_ms: float
    concurrency: float  # mean requests in decode
    throughput_rps: float


def fitted_constants() -> tuple[Constants, list[dict[str, Any]]]:
    """The shipped constants and the measured runs that they were fitted on (``data/engine_constants.json``)."""
    shipped = json.loads(data_path("engine_constants.json").read_text())
    return Constants(float(shipped["overhead_ms"]), float(shipped["path_ms"])), shipped["fitted"]


def is_fitted(run: MeasuredRun, fitted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the constants were fitted on this very run: same model, rate and lengths."""
    mine = (run.model, run.rate_rps, run.mean_prompt_tokens, run.mean_output_tokens)
    return any(mine == (row["model"], row["rate_rps"], row["prompt"], row["output"]) for row in fitted)


def arrivals_of(run: MeasuredRun) -> RequestLog:
    """The run's requests, second by second: evenly spaced, or Poisson with a fixed seed; every second of the run's
    mean lengths."""
    seconds = max(1, int(np.ceil(run.duration_s)))
    if run.arrivals == "constant":
        due = np.floor(np.arange(seconds + 1) * run.rate_rps + 1e-9)
        counts = np.diff(due).astype(np.int32)
    else:
        counts = np.random.default_rng(SEED).poisson(run.rate_rps, seconds).astype(np.int32)
    requests = max(int(counts.sum()), 1)
    full = np.ones(seconds, np.float32)
    return RequestLog(
        counts, full * np.float32(run.mean_prompt_tokens), full * np.float32(run.mean_output_tokens), requests
    )


def environment_of(run: MeasuredRun, engine: EngineTable, constants: Constants) -> tuple[Environment, EnvParams, Any]:
    """Environment, params and action of a run: its arrivals and lengths, its engine's settings, no noise, no
    rejection."""
    log = arrivals_of(run)
    task = get_task(4)
    profile, table = profile_of(engine.table), engine.table
    if run.max_num_batched_tokens > most_tokens(profile):  # the lookups must reach as far
        table = dataclasses.replace(
            table, engine=dataclasses.replace(profile, tokens_per_iteration=run.max_num_batched_tokens)
        )
    params = make_params(task, table, NOT_NORMALISED, trace=log)
    params = params.replace(
        noise_sigma=np.float32(0.0),
        episode_length=np.int32(log.seconds),
        engine=params.engine.replace(
            overhead_ms=np.float32(constants.overhead_ms),
            path_ms=np.float32(constants.path_ms),
            prefix_share=np.float32(run.prefix_share),
            memory_gb=np.float32(engine.memory_limit_gb),
            token_budget=np.float32(run.max_num_batched_tokens),
            arrival_scv=np.float32(run.arrivals == "poisson"),
            queue_capacity=np.int32(UNBOUNDED_QUEUE),
        ),
    )
    most = int(KNOBS["batch_size"].high)
    action = ServeAction(batch_size=min(run.max_num_seqs, most)).as_arrays()
    return Environment(table, params, log), params, action


@functools.partial(jax.jit, static_argnums=(0, 1))
def _play(env: Environment, seconds: int, params: EnvParams, action: ServeAction) -> dict[str, jax.Array]:
    def body(state: Any, _: None) -> Any:
        _seen, state, _reward, _terminated, info = env.step_env(None, state, action, params)
        metrics, traffic = info["metrics"], info["workload"]
        return state, {
            "arrivals": traffic.arrivals,
            "finished": traffic.served,
            "tokens": metrics.tokens_per_sec,
            "tpot": metrics.tpot_ms,
            "mean": info["ttft_mean_ms"],
            "p50": metrics.ttft_p50_ms,
            "p90": info["ttft_p90_ms"],
            "p99": metrics.ttft_p99_ms,
            "concurrency": state.engine.phases.sum(),
        }

    _, state = env.reset_seed(jnp.uint32(SEED), params)
    return jax.lax.scan(body, state, None, length=seconds)[1]


def predict(run: MeasuredRun, engine: EngineTable, constants: Constants) -> Prediction:
    """Play the run on the compiled step.

    The mean ITL weighs seconds by their tokens, TTFT by their arrivals; a quantile over the run is taken from the
    mixture of the seconds' distributions, each of them linear between its 10th, 50th, 90th and 99th percentile.
    """
    env, params, action = environment_of(run, engine, constants)
    assert env.trace is not None
    played = {k: np.asarray(v, np.float64) for k, v in _play(env, env.trace.seconds, params, action).items()}
    tokens, arrivals = played["tokens"], played["arrivals"]
    itl = float((played["tpot"] * tokens).sum() / max(tokens.sum(), 1e-9))
    ttft = float((played["mean"] * arrivals).sum() / max(arrivals.sum(), 1e-9))
    known = np.stack([np.maximum(2 * played["p50"] - played["p90"], 0), played["p50"], played["p90"], played["p99"]])
    grid = np.linspace(0.005, 0.995, 100)
    values = np.stack([np.interp(grid, (0.1, 0.5, 0.9, 0.99), column) for column in known.T], axis=1)
    weights = np.broadcast_to(arrivals, values.shape).ravel()
    order = np.argsort(values.ravel())
    share = np.cumsum(weights[order]) / max(weights.sum(), 1e-9)
    p50, p90, p99 = (float(values.ravel()[order][min(np.searchsorted(share, q), len(order) - 1)]) for q in LEVELS)
    most = float(KNOBS["batch_size"].high)
    if run.max_num_seqs > most and played["concurrency"].max() > most - 1:
        raise ValueError(
            f"{run.source}: over {most:g} requests run at once, the most that a table holds, and max_num_seqs is"
            f" {run.max_num_seqs}"
        )
    return Prediction(
        itl_mean_ms=itl,
        ttft_mean_ms=ttft,
        ttft_p50_ms=p50,
        ttft_p90_ms=p90,
        ttft_p99_ms=p99,
        latency_mean_ms=ttft + itl * (run.mean_output_tokens - 1),
        concurrency=float(played["concurrency"].mean()),
        throughput_rps=float(played["finished"].sum() / env.trace.seconds),
    )


def compare(run: MeasuredRun, predicted: Prediction) -> dict[str, Any]:
    """One row of a report: the run's settings, predicted and measured values, and signed errors as shares (0.05 is 5 %
    high)."""
    measured = {
        "itl_mean": run.itl_mean_ms,
        "ttft_mean": run.ttft_mean_ms,
        "latency_mean": run.latency_mean_ms,
        **{f"ttft_{q}": value for q, value in run.ttft_quantiles_ms.items()},
    }
    row: dict[str, Any] = {
        "run": run.source,
        "model": run.model,
        "gpu": run.gpu,
        "rate_rps": run.rate_rps,
        "arrivals": run.arrivals,
        "mean_prompt_tokens": run.mean_prompt_tokens,
        "mean_output_tokens": run.mean_output_tokens,
        "concurrency": round(predicted.concurrency, 2),
    }
    for name, value in measured.items():
        guess = getattr(predicted, f"{name}_ms")
        row |= {
            f"{name}_ms": round(value, 3),
            f"{name}_predicted_ms": round(guess, 3),
            f"{name}_error": round(guess / value - 1, 5),
        }
    return row


def fit_constants(runs: Sequence[MeasuredRun], table_of: Callable[[MeasuredRun], EngineTable]) -> dict[str, Any]:
    """The constants that make the squared relative errors of mean ITL and mean TTFT least over ``runs``.

    Gauss-Newton with a numerical Jacobian: ITL hardly depends on ``path_ms``, TTFT on both, so a few steps do.

    Returns:
        ``overhead_ms``, ``path_ms`` and ``rows``: ``compare``'s row of every run at these constants.

    Raises:
        ValueError: no runs, or a constant below 0 or above 20 ms is best: the kernels are not this engine's.
    """
    if not runs:
        raise ValueError("runs: none given; at least one measured run is needed")
    engines = [table_of(run) for run in runs]

    def errors(x: np.ndarray) -> np.ndarray:
        guesses = [predict(r, e, Constants(*map(float, x))) for r, e in zip(runs, engines, strict=True)]
        pairs = zip(guesses, runs, strict=True)
        return np.array([(g.itl_mean_ms / r.itl_mean_ms - 1, g.ttft_mean_ms / r.ttft_mean_ms - 1) for g, r in pairs])

    x = np.array([2.0, 2.0])
    for _ in range(FIT_STEPS):
        here = errors(x).ravel()
        columns = [(errors(x + step).ravel() - here) / FIT_DELTA_MS for step in FIT_DELTA_MS * np.eye(2)]
        x = x - np.linalg.lstsq(np.stack(columns, axis=1), here, rcond=None)[0]
    constants = Constants(round(float(x[0]), 3), round(float(x[1]), 3))
    for name, value in constants._asdict().items():
        if not 0.0 <= value <= LARGEST_MS:
            raise ValueError(
                f"the best {name} is {value:g}, outside 0 to {LARGEST_MS:g}: these kernels are not those of the"
                " measured engine, model or GPU, or more of the prompts was cached than prefix_share says"
            )
    rows = [compare(run, predict(run, engine, constants)) for run, engine in zip(runs, engines, strict=True)]
    return {**constants._asdict(), "rows": rows}

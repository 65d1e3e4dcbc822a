"""A policy for one engine: PPO on the open-loop environment with the measured table and the trial's own traffic.

``table, trial -> scenario -> params -> training -> policy file``. What is maximised is the general grader's score:
tokens of seconds within both objectives, TTFT and time per output token, and their cost. The environment has one queue,
first come first served, where the gate lets urgent classes overtake; so its TTFT objective is that of the class that
can wait longest and still has one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes import parallel
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.trial.outcome import Objective, measures
from inferencegym_jax.live.trial.request import TrialRequest, scenario
from inferencegym_jax.live.trial.runs import predict
from inferencegym_jax.models import EnvParams
from inferencegym_jax.policies.network import network_policy
from inferencegym_jax.policies.policy_file import save_network
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from training.config import TrainConfig
from training.networks import to_policy
from training.trainer import make_train_on

GOODPUT_TASK = 4  # a task that the general grader scores; its traffic is not used
CONFIG = TrainConfig(
    task=GOODPUT_TASK, total_steps=4_000_000, environments=256, rollout_length=32, minibatches=8, start="middle"
).replace(score_share=1.0, entropy=1e-2, learning_rate=1e-3)


def own_memory_gb(table: LatencyTable, params: EnvParams) -> np.float32:
    """Memory of the measured engine with its own KV pool, GB, of which the observation's occupancy is a share, in
    training as on the engine; where the table does not tell the pool, the task's limit."""
    pool_gb = float(table.metadata.get("kv_cache_gb", "0"))
    return np.float32(max(table.base_memory_gb) + pool_gb if pool_gb else params.oom_limit_gb)


def training_params(request: TrialRequest, table: LatencyTable) -> EnvParams:
    """The trial's scenario as an open-loop task: its rates, prompts and objectives, and the engine of the table."""
    problem, _, how = scenario(request, table)
    scaled = problem.params
    _, opened = ig.make(request.task, table=table, dynamics="open_loop")
    slo = request.slo_ttft_ms or tuple(float(x) for x in np.asarray(scaled.slo_ms))
    return scaled.replace(
        oom_limit_gb=own_memory_gb(table, scaled),
        engine=opened.engine.replace(slo_tpot_ms=np.full(3, request.slo_itl_ms, np.float32)),
        slo_ms=np.full(3, max((x for x in slo if np.isfinite(x)), default=np.inf), np.float32),
        optimal_tps=np.float32(how["saturation_requests_per_s"] * table.output_length),
        cost_normaliser=opened.cost_normaliser,
    )


def goodput(request: TrialRequest, table: LatencyTable, policy: Policy) -> float:
    """What the replay predicts on other traffic of the trial's kind, as for ``best_static``."""
    problem, traffic, _ = scenario(request, table)
    params = problem.params
    slo = request.slo_ttft_ms or tuple(float(x) for x in np.asarray(params.slo_ms))
    sent = traffic(request.settings.seed + 1000)
    records = predict(table, sent, policy, params.replace(slo_ms=np.asarray(slo, np.float32)), request.settings)
    return measures(records, sent.seconds, Objective(slo, request.slo_itl_ms))["goodput"]


def learn(
    request: TrialRequest, out: Path, report: Callable[[str], None], config: TrainConfig = CONFIG, seeds: int = 3
) -> Path:
    """Train some seeds and write the one of the highest predicted goodput to ``out``, a file that ``trial`` and
    ``control`` take as a policy.

    The environment is a fluid of whole seconds; the replay, request by request and with the gate's classes, says which
    of the policies carries over.

    Raises:
        ValueError: the trial sends a log; a scenario of the environment is needed.
    """
    if request.trace is not None:
        raise ValueError(f"trace = {str(request.trace)!r}: learning takes the task's traffic, not a log")
    table = load_table(request.table)
    env, _ = ig.make(request.task, table=table, dynamics="open_loop")
    params = training_params(request, table)
    train = jax.jit(make_train_on(env, params, config), compiler_options=parallel.compiler_options())
    best = -1.0
    for seed in range(seeds):
        state, _, _ = train(np.uint32(seed))
        network = jax.tree.map(np.asarray, to_policy(state.variables, state.statistics, config.observed))
        found = goodput(request, table, network_policy(network))
        report(f"learned with seed {seed}: predicted goodput {found:.2f} requests/s")
        if found > best:
            best = found
            trial = {"task": request.task, "load": request.load, "slo_itl_ms": request.slo_itl_ms}
            metadata = {"table_digest": table.digest, "trial": trial, "seed": seed, "predicted_goodput": found}
            save_network(out, network, metadata | {"config": config.to_dict()})
    return out

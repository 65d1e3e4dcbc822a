"""A policy for one engine: PPO on the open-loop environment with the measured table and the trial's own traffic.

``table, trial -> scenario -> params -> training -> policy file``. What is maximised is the general grader's score:
tokens of seconds within both objectives, TTFT and time per output token, and their cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.live.compare import TrialRequest, scenario
from inferencegym_jax.models import EnvParams
from inferencegym_jax.table import LatencyTable, load_table
from inferencegym_jax.trained import save_network
from training.config import TrainConfig
from training.networks import to_policy
from training.trainer import initial_state, make_chunk

GOODPUT_TASK = 4  # a task that the general grader scores; its traffic is not used
CONFIG = TrainConfig(
    task=GOODPUT_TASK, total_steps=1_500_000, environments=256, rollout_length=32, minibatches=8, start="baseline"
).replace(score_share=1.0, entropy=1e-3, learning_rate=1e-3)


def training_params(request: TrialRequest, table: LatencyTable) -> EnvParams:
    """The trial's scenario as an open-loop task: its rates, prompts and objectives, and the engine of the table."""
    scaled, _, how = scenario(request, table)
    _, opened = ig.make(request.task, table=table, dynamics="open_loop")
    slo = request.slo_ttft_ms or tuple(float(x) for x in np.asarray(scaled.slo_ms))
    return scaled.replace(
        engine=opened.engine.replace(slo_tpot_ms=np.float32(request.slo_itl_ms)),
        slo_ms=np.asarray(slo, np.float32),
        optimal_tps=np.float32(how["saturation_requests_per_s"] * table.output_length),
        cost_normaliser=opened.cost_normaliser,
    )


def learn(request: TrialRequest, out: Path, report: Callable[[str], None], config: TrainConfig = CONFIG) -> Path:
    """Train and write ``out``, a file that ``trial`` and ``control`` take as a policy.

    Raises:
        ValueError: the trial sends a log; a scenario of the environment is needed.
    """
    if request.trace is not None:
        raise ValueError(f"trace = {str(request.trace)!r}: learning takes the task's traffic, not a log")
    table = load_table(request.table)
    env, _ = ig.make(request.task, table=table, dynamics="open_loop")
    params = training_params(request, table)
    chunk = jax.jit(make_chunk(env, params, config))
    state = initial_state(env, params, config, np.uint32(config.seed), config.hyper)
    for i in range(config.chunks):
        state, metrics, _ = jax.block_until_ready(chunk(state, config.hyper))
        report(f"learning {i + 1} of {config.chunks}: signal {float(np.mean(metrics['reward'])):.3f}")
    network = to_policy(*jax.tree.map(np.asarray, (state.variables, state.statistics)))
    trial = {key: value for key, value in dataclasses.asdict(request).items() if key in ("task", "load", "slo_itl_ms")}
    save_network(out, network, {"table_digest": table.digest, "trial": trial, "config": config.to_dict()})
    return out

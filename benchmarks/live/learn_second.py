"""A policy for ``second-instance`` on one engine: PPO on task 72 with the measured table, the scenario's traffic and
the spare's measured times.

``table, times of the spare -> Setting -> params -> training -> policy file``. It is a correction of the load-following
controller, as the general policy is, and begins as that controller. Nothing is trained or chosen on a day that is sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.live.learn import own_memory_gb
from inferencegym_jax.adapters.relative_views import CorrectedControl
from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes import parallel
from inferencegym_jax.live.scenarios.described import SecondInstance, scenario_of
from inferencegym_jax.live.scenarios.rivals import CHOICE_DAYS, FOLLOWING, ONE, TWO, second_instance_rivals
from inferencegym_jax.live.scenarios.second_instance import INSTANCES, Setting, second_instance
from inferencegym_jax.live.scenarios.unsent_days import TRAINING_SEED, Foretold, Tried
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.runs import TrialSettings
from inferencegym_jax.live.trial.traffic import mean_rate, scaled_params
from inferencegym_jax.models import EnvParams
from inferencegym_jax.policies.names import GENERAL
from inferencegym_jax.policies.policy_file import GENERAL as GENERAL_FILE
from inferencegym_jax.policies.policy_file import playable, save_network
from inferencegym_jax.table.latency_table import LatencyTable, data_path, load_table
from training import forms
from training.config import TrainConfig, task_config
from training.networks import to_policy
from training.trainer import make_train_on

SCENARIO = "second-instance"
DAYS = 16  # whose mean scale of the rates is trained on; none of them is sent
SEEDS = 3
FIXED = (ONE, TWO)


def config_of() -> TrainConfig:
    """The config of the scenario's task, on top of the controller that the general policy corrects."""
    return task_config(scenario_of(SCENARIO).task).replace(plan_of=str(data_path(GENERAL_FILE)))


def training_params(setting: Setting, table: LatencyTable) -> EnvParams:
    """The scenario as an open-loop task: its traffic at the mean scale of its days, objectives and spare, and the
    engine's own KV pool; cost and demand measured by two instances and the mean second."""
    stretches = setting.how["stretches"]
    params = scaled_params(setting.problem.params, float(np.mean([day["rate_scale"] for day in stretches])))
    rate = mean_rate(params, [day["day"] for day in stretches], int(params.episode_length) - 1)
    engine = params.engine.replace(
        demand_rps=np.float32(rate),
        demand_tps=np.float32(rate * float(params.engine.output_mean)),
        static_gpus=np.float32(INSTANCES),
    )
    limit = own_memory_gb(table, params)
    return params.replace(engine=engine, oom_limit_gb=limit, memory_limit_gb=limit)


def learn_second(
    table_path: Path,
    times: SpareTimes,
    seconds: int,
    max_num_seqs: int,
    out: Path,
    report: Callable[[str], None],
    config: TrainConfig | None = None,
    seeds: int = SEEDS,
) -> dict[str, Any]:
    """Train some seeds and write the one with the best score foretold on days that are not sent to ``out``, a file that
    ``trial``, ``control`` and ``--rivals`` take as a policy.

    Args:
        table_path: of the measured table.
        times: of the second instance.
        seconds: length of a run.
        max_num_seqs: the engine's own limit.
        out: file to write.
        report: told what is trained and found.
        config: of training; default ``config_of()``.
        seeds: how many are trained.

    Returns:
        score foretold of each seed, of the controller that they correct and of the general policy.

    Raises:
        TableError: the table says too little of an engine.
    """
    table, scenario = load_table(table_path), scenario_of(SCENARIO)
    assert isinstance(scenario, SecondInstance)
    config = config_of() if config is None else config
    days = [TRAINING_SEED + day for day in range(DAYS)]
    setting = second_instance(scenario, table, times, seconds, days)
    params = training_params(setting, table)
    settings = TrialSettings(warmup_s=scenario.warmup_s, max_num_seqs=max_num_seqs, spare=times)
    rivals = second_instance_rivals(scenario, setting, settings, seconds, (*FIXED, FOLLOWING, GENERAL), lambda _: None)
    view = CorrectedControl(Environment(table, params), forms.base_plan(config), params)
    train = jax.jit(make_train_on(view, params, config), compiler_options=parallel.compiler_options())
    tried: dict[Any, Tried] = dict(rivals.policies)
    networks = {}
    for seed in range(seeds):
        state, _, _ = train(np.uint32(seed))
        network = jax.tree.map(np.asarray, to_policy(state.variables, state.statistics, config.observed))
        networks[f"seed {seed}"] = network
        tried[f"seed {seed}"] = playable(network, forms.metadata(config), setting.problem)
        report(f"trained seed {seed}, {config.total_steps:,} seconds")
    foretold = Foretold(setting, settings, seconds, days=CHOICE_DAYS)
    scores = foretold.scores(tried, FIXED)
    for name, score in scores.items():
        report(f"{name}: score foretold {score:.4f}")
    best = max(networks, key=lambda name: scores[name])
    about = {"table_digest": table.digest, "chosen": best, "scores": scores, "spare": dataclasses.asdict(times)}
    own = forms.metadata(config) | {"task": config.task_name, "config": config.to_dict()}
    save_network(out, networks[best], own | about)
    return {"scores": scores, "chosen": best}

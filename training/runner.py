"""A training run on the host: chunks of compiled updates, metrics to CSV, checkpoints, an end that loses nothing.

``run(config, folder) -> Result``; the command line and the demo draw its ``Report`` as they like.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from inferencegym_jax import EpisodeStatistics
from inferencegym_jax.policies.network import PolicyNetwork
from inferencegym_jax.policies.policy_file import save_network
from training import forms
from training.config import TrainConfig
from training.devices import compiled_functions, make_mesh
from training.fleet_forms import FIELDS, FleetRun
from training.networks import to_policy
from training.trainer import TrainState, warm_up_steps

COLUMNS = (
    "update env_steps seconds return score reward policy_loss value_loss entropy kl clipped steps_per_second "
    "mean_tps mean_ttft_p50_ms peak_memory_gb mean_violations total_cost oom_share"
).split()
FLEET_COLUMNS = (*COLUMNS[:12], *FIELDS)
CHECKPOINT_SECONDS = 20.0


class NonFiniteLoss(RuntimeError):
    """Training met NaN or inf; the message names the update and where the last good state was kept."""


@dataclass(frozen=True)
class Report:
    """One evaluation during training."""

    row: dict[str, float]  # of columns_of
    done: float  # share of the run
    seconds_left: float


@dataclass(frozen=True)
class Result:
    """A finished or interrupted run."""

    state: TrainState
    network: PolicyNetwork
    rows: list[dict[str, float]]
    interrupted: bool
    seconds: float  # wall clock, compilation included


def bad_update(metrics: dict[str, np.ndarray], before: int) -> int | None:
    """The first update of a chunk with a loss that is not finite, None where all are."""
    finite = np.all([np.isfinite(metrics[name]) for name in ("policy_loss", "value_loss", "entropy")], axis=0)
    return None if finite.all() else before + int(np.argmin(finite)) + 1


def run(
    config: TrainConfig,
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    devices: int | None = None,
    tensorboard: bool = False,
    report: Callable[[Report], None] = lambda _: None,
) -> Result:
    """Train a policy.

    Args:
        config: the run.
        folder: where metrics.csv, config.json, checkpoints/ and policy.npz go; None keeps nothing.
        resume: go on from the folder's newest checkpoint, to the same parameters as a run that was never interrupted.
        devices: see ``devices.make_mesh``.
        tensorboard: write event files too (extra ``tensorboard``).
        report: called after every evaluation.

    Raises:
        ValueError: the config does not fit the devices, tensorboardX is missing, or (``CheckpointError``) the
            checkpoint does not fit the config.
        NonFiniteLoss: NaN or inf; the last good state has been saved.
    """
    started = time.perf_counter()
    writer = summary_writer() if tensorboard else None  # before anything is written
    mesh = make_mesh(config, devices)
    init, chunk = compiled_functions(config, mesh)
    state = init(np.uint32(config.seed), config.hyper)
    chief = jax.process_index() == 0
    store = None
    if folder is not None:
        from training.checkpoint import Checkpoints  # orbax takes a second to import

        store = Checkpoints(folder)
    if resume:
        if store is None:
            raise ValueError("resume: needs the folder of a run")
        state = store.restore(state, config)
    log = Log(Path(folder), config, writer, after=int(state.update) if resume else None) if folder and chief else None
    rows, interrupted, saved, first = [], False, time.perf_counter(), int(state.update)
    try:
        while int(state.update) < config.updates:
            before, tick = int(state.update), time.perf_counter()
            after, metrics, evaluation = jax.block_until_ready(chunk(state, config.hyper))
            metrics, evaluation = jax.tree.map(np.asarray, (metrics, evaluation))
            bad = bad_update(metrics, before)
            if bad is not None:
                if store is not None:
                    store.save(state, config)
                kept = (
                    f"the state after update {before} is kept in {store.folder}"
                    if store
                    else "no folder was given, nothing is kept"
                )
                raise NonFiniteLoss(
                    f"update {bad}: the loss is not finite; {kept}. A lower learning_rate usually helps."
                )
            state, now = after, time.perf_counter()
            row = summarise(config, metrics, evaluation, int(state.update), now - started, now - tick)
            rows.append(row)
            if log is not None:
                log.write(row)
            if store is not None and now - saved > CHECKPOINT_SECONDS and jax.process_count() == 1:
                store.save(state, config)
                saved = now
            pace = (now - started) / max(int(state.update) - first, 1)
            report(Report(row, int(state.update) / config.updates, pace * (config.updates - int(state.update))))
    except KeyboardInterrupt:
        interrupted = True
    if store is not None:
        if int(state.update) > 0:
            store.save(state, config)
        store.close()
    network = jax.tree.map(np.asarray, to_policy(state.variables, state.statistics, config.observed))
    if log is not None:
        log.close()
        save_network(Path(folder) / "policy.npz", network, metadata(config, int(state.update), rows))  # type: ignore[arg-type]
    return Result(state, network, rows, interrupted, time.perf_counter() - started)


def metadata(config: TrainConfig, updates: int, rows: list[dict[str, float]]) -> dict[str, Any]:
    """How a policy was trained, for its file."""
    last = {key: rows[-1][key] for key in ("env_steps", "return", "score")} if rows else {}
    return forms.metadata(config) | {
        "task": config.task_name,
        "algorithm": "PPO",
        "updates": updates,
        "config": config.to_dict(),
        "last_evaluation": last,
    }


def summarise(
    config: TrainConfig,
    metrics: dict[str, np.ndarray],
    found: EpisodeStatistics | FleetRun,
    update: int,
    seconds: float,
    chunk_seconds: float,
) -> dict[str, float]:
    """One row of metrics.csv: losses are means over the chunk, the rest is the evaluation's mean over episodes."""
    row = {name: float(np.mean(value)) for name, value in metrics.items()}
    row |= {
        "update": update,
        "env_steps": update * config.steps_per_update + warm_up_steps(config),
        "seconds": seconds,
        "return": float(found.total_reward.mean()),
        "score": float(np.mean(forms.score(config, found))),
        "steps_per_second": config.steps_per_update * config.evaluate_every / chunk_seconds,
    }
    columns = columns_of(config)
    row |= {name: float(getattr(found, name).mean()) for name in columns if name not in row}
    return {name: row[name] for name in columns}


def columns_of(config: TrainConfig) -> tuple[str, ...]:
    """Columns of a run's metrics.csv."""
    return FLEET_COLUMNS if config.is_fleet else tuple(COLUMNS)


class Log:
    """metrics.csv and config.json of a run, and TensorBoard events if asked."""

    def __init__(self, folder: Path, config: TrainConfig, writer: Any, after: int | None):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        path = folder / "metrics.csv"
        old = []
        if after is not None and path.is_file():
            with path.open() as file:
                old = [row for row in csv.DictReader(file) if int(float(row["update"])) <= after]
        self._file = path.open("w", newline="")
        self._csv: Any = csv.DictWriter(self._file, columns_of(config))
        self._csv.writeheader()
        self._csv.writerows(old)
        self._events = None if writer is None else writer(str(folder))

    def write(self, row: dict[str, float]) -> None:
        """One evaluation, on disk at once."""
        self._csv.writerow(row)
        self._file.flush()
        if self._events is not None:
            for name, value in row.items():
                self._events.add_scalar(name, value, int(row["env_steps"]))

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def summary_writer() -> Any:
    """TensorBoard's writer class.

    Raises:
        ValueError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard: tensorboardX is not installed; pip install '.[tensorboard]'") from error
    return SummaryWriter

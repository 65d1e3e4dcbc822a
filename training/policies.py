"""The policies that ship: trained by ``make policies``, written to ``data/policies/task<N>.npz``; that of a task which
is drawn for each episode is the general one, ``general.npz``."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import inferencegym_jax as ig
from inferencegym_jax.adapters.relative_views import network_on
from inferencegym_jax.models import EPISODE_LENGTH, check_whole
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.policy_file import save_network
from inferencegym_jax.tasks import shipped_specs
from inferencegym_jax.traffic.days import SEED_STRIDE
from training.checkpoint import Checkpoints
from training.config import check_number, task_config
from training.devices import compiled_functions
from training.evaluation import episodes
from training.forms import load_correction
from training.networks import to_policy
from training.progress import training_progress
from training.runner import metadata, run
from training.tables import percent
from training.trainer import VALIDATION_SEED

FOLDER = Path(__file__).resolve().parent.parent / "data" / "policies"
VALIDATION_EPISODES = 512  # of the usual length; of long episodes as many seconds
LEAST_EPISODES = 32


def validate(task: int | str, network: Any, about: dict[str, Any]) -> dict[str, float]:
    """Mean score, return and share of seconds out of memory on validation seeds, which choose among training seeds;
    held-out seeds stay untouched."""
    problem = ig.problem(task)
    # long episodes are dear, and as many seconds say as much
    count = max(VALIDATION_EPISODES * EPISODE_LENGTH // problem.spec.episode_length, LEAST_EPISODES)
    env, policy = network_on(network, about, problem)
    columns = episodes(problem, policy, VALIDATION_SEED + SEED_STRIDE * np.arange(count), env)
    return {name: float(columns[name].mean()) for name in ("score", "return", "oom_share")}


def rank(found: dict[str, float]) -> tuple[bool, float]:
    """What the best training seed has most of: a policy that is never out of memory comes before one that is."""
    return found["oom_share"] == 0, found["score"]


def build(
    console: Console,
    seeds: int = 1,
    devices: int | None = None,
    tasks: Sequence[int | str] | None = None,
    runs: Path | None = None,
) -> list[Path]:
    """Train every task on training seeds 0 to seeds - 1 and write the policy with the best validation score, of those
    that are never out of memory on the validation seeds where there is one.

    Args:
        console: for progress.
        seeds: training seeds a task.
        devices: see ``devices.make_mesh``.
        tasks: ids or names of tasks that ship; default: all of them.
        runs: folder that keeps each run, ``policy-task<N>-seed<S>``; one that was cut off goes on from its newest
            checkpoint. Default: nothing is kept.

    Raises:
        ValueError: seeds below 1, environments not divisible by devices, a task that does not ship, or a run in
            ``runs`` that is of another config or already whole.
    """
    specs = [ig.get_task(task) for task in tasks] if tasks else list(shipped_specs().values())
    for spec in specs:
        if spec.name not in shipped_specs():
            raise ValueError(
                f"task = {spec.name!r}: does not ship, nor will its policy; python -m training train --task {spec.name}"
            )
    check_whole("seeds", seeds)
    paths = []
    for spec in specs:
        task = spec.id
        best: tuple[dict[str, float], Any, dict[str, Any]] | None = None
        for seed in range(seeds):
            config = task_config(task).replace(seed=seed)
            folder = None if runs is None else runs / f"policy-task{task}-seed{seed}"
            begun = folder is not None and (folder / "checkpoints").is_dir()
            with training_progress(console, config) as report:
                result = run(config, folder, resume=begun, devices=devices, report=report)
            if not result.rows:
                raise ValueError(f"runs = {str(runs)!r}: {folder} is whole already; move it away to train anew")
            if result.interrupted:
                raise KeyboardInterrupt
            about = metadata(config, int(result.state.update), result.rows)
            scores = validate(task, result.network, about)
            if best is None or rank(scores) > rank(best[0]):
                about |= {
                    "validation": scores,
                    "made_by": "make policies",
                    "table_digest": ig.make(task)[0].table.digest,
                }
                about |= {
                    "date": datetime.date.today().isoformat(),
                    "seconds": round(result.seconds, 1),
                    "jax": jax.__version__,
                }
                best = (scores, result.network, about)
        assert best is not None
        path = FOLDER / ("general.npz" if spec.draws is not None else f"task{task}.npz")
        save_network(path, best[1], best[2])
        paths.append(path)
        console.print(
            f"task {task}: validation score {best[0]['score']:.4f}, return {best[0]['return']:.2f}, out of memory "
            f"{percent(best[0]['oom_share'])}; wrote {path}",
            highlight=False,
        )
    return paths


def export_run(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the policy of a run's newest checkpoint; returns the file.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ValueError: no such folder.
    """
    if not (Path(folder) / "checkpoints").is_dir():
        raise ValueError(
            f"run = {str(folder)!r}: no such run (it would hold a folder checkpoints); "
            f"python -m training train --out {folder}"
        )
    store = Checkpoints(folder)
    config = store.config()
    init, _ = compiled_functions(config, None)
    state = store.restore(jax.eval_shape(init, np.uint32(config.seed), config.hyper), config)
    store.close()
    path = Path(out) if out is not None else Path(folder) / "policy.npz"
    network = jax.tree.map(np.asarray, to_policy(state.variables, state.statistics, config.observed))
    save_network(path, network, metadata(config, int(state.update), []))
    return path


def with_settings(path: str | Path, changes: Mapping[str, float], out: str | Path) -> tuple[Path, dict[str, float]]:
    """A file's network of corrections on other settings of the load-following controller, without training.

    Args:
        path: a policy that corrects that controller.
        changes: field of ``LoadPlan`` -> value; the others stay.
        out: file to write. Its metadata say what the settings were that the network was trained on.

    Returns:
        (the file, what it comes to on the validation seeds of the task that it was trained for, see ``validate``).

    Raises:
        ValueError: another kind of policy, an unknown setting, or a value that is no finite number of at least 0.
    """
    network, about = load_correction("policy", path)
    settings = about["plan"]
    names = [one.name for one in dataclasses.fields(LoadPlan)]
    for name, value in changes.items():
        if name not in names:
            raise ValueError(f"setting {name!r} is unknown; allowed are {', '.join(names)}")
        check_number(name, value)
    about |= {"plan": settings | dict(changes), "trained_on_plan": about.get("trained_on_plan", settings)}
    scores = validate(about["task"], network, about)
    save_network(out, network, about | {"validation": scores})
    return Path(out), scores

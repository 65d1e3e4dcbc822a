"""One training run over several devices, in one process or many: JAX's own mesh, ``shard_map`` and distributed runtime.

Environments are split over the mesh, parameters are replicated, gradients and statistics are averaged by ``psum``.
Every device count computes the same minibatches (see ``trainer.make_update``), so parameters agree to the rounding of
a sum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from inferencegym_jax.episodes import parallel
from inferencegym_jax.models import check_whole
from training import forms
from training.config import Hyperparameters, TrainConfig
from training.trainer import Chunk, TrainState, initial_state, make_chunk

AXIS = "environments"
LEAST_SAMPLES = 256  # of a minibatch on each virtual device of a CPU


def prepare(devices: int | None) -> None:
    """Give this process that many virtual CPU devices, where it has no accelerator; before anything touches a device.

    Args:
        devices: None is one a core, for ``make_mesh`` to choose from; nothing happens if JAX has already started.

    Raises:
        ValueError: not a whole number of at least 1, or JAX has already started with fewer.
    """
    if devices is None:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", parallel.cores())
        return
    check_whole("devices", devices)
    if devices > 1:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:
            if jax.device_count() < devices:
                raise ValueError(f"devices = {devices}: JAX has already started with {jax.device_count()}") from None


def join(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Join JAX's distributed runtime; with no arguments the cluster (Slurm, Open MPI, Kubernetes, TPU) tells all three.

    Args:
        coordinator: "host:port" of process 0.
        processes: how many there are.
        process_id: 0 to processes - 1.
    """
    jax.distributed.initialize(coordinator, processes, process_id)


def usual(config: TrainConfig, there: int) -> int:
    """Devices of a run in one process that was told no number: on a CPU as many as there are with enough work for each.

    One device on many cores has XLA's threads share every small operation; devices meet once a minibatch.
    """
    if jax.default_backend() != "cpu":
        return 1
    samples = config.steps_per_update // config.minibatches
    unit = shared_unit(config)
    fitting = (
        n for n in range(there, 1, -1) if config.environments % (n * unit) == 0 and samples // n >= LEAST_SAMPLES
    )
    return next(fitting, 1)


def shared_unit(config: TrainConfig) -> int:
    """Environments that must stand on one device together: one, or with memory a block of them."""
    return config.column_block if config.has_gru else 1


def make_mesh(config: TrainConfig, devices: int | None = None) -> Mesh | None:
    """The mesh of a run; None for one device.

    Args:
        config: its environments must divide evenly.
        devices: how many to use of all processes' devices; default: all of them in a distributed run, on a CPU those
            that are worth it (``usual``), otherwise one.

    Raises:
        ValueError: more devices than there are, or environments not divisible by them.
    """
    there = jax.devices()
    count = devices or (len(there) if jax.process_count() > 1 else usual(config, len(there)))
    if count > len(there):
        raise ValueError(f"devices = {count}: there are {len(there)} ({there[0].platform})")
    unit = shared_unit(config)
    if config.environments % (count * unit):
        blocks = f" x {unit} (with memory, whole blocks of environments stand on a device)" if unit > 1 else ""
        raise ValueError(f"environments = {config.environments}: must be divisible by devices = {count}{blocks}")
    return Mesh(np.asarray(there[:count]), (AXIS,)) if count > 1 else None


def specs() -> TrainState:
    """Which parts of a ``TrainState`` are split over environments."""
    split = ("env_state", "observation", "action", "carry")
    parts: dict[str, Any] = {f.name: P(AXIS) if f.name in split else P() for f in dataclasses.fields(TrainState)}
    return TrainState(**parts)


def shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of every leaf of a (possibly abstract) ``TrainState``."""
    parts = specs()
    fields = {}
    for name in parts.__dataclass_fields__:
        spec = NamedSharding(mesh, getattr(parts, name))
        fields[name] = jax.tree.map(lambda _, spec=spec: spec, getattr(state, name))
    return TrainState(**fields)


def compiled_functions(config: TrainConfig, mesh: Mesh | None) -> tuple[Any, Chunk]:
    """(jitted ``init(seed, hyper)``, jitted ``chunk(state, hyper)``) of a run."""
    problem = config.problem()
    env, params = forms.view(config, problem), problem.params

    def init(seed: Any, hyper: Hyperparameters) -> TrainState:
        return initial_state(env, params, config, seed, hyper)

    if mesh is None:
        return jax.jit(init), jax.jit(make_chunk(env, params, config), compiler_options=parallel.compiler_options())
    abstract = jax.eval_shape(functools.partial(init, np.uint32(0)), config.hyper)
    chunk = jax.shard_map(
        make_chunk(env, params, config, AXIS, mesh.size),
        mesh=mesh,
        in_specs=(specs(), P()),
        out_specs=(specs(), P(), P()),
        check_vma=False,
    )
    sharded = jax.jit(init, out_shardings=shardings(mesh, abstract))
    return sharded, jax.jit(chunk, compiler_options=parallel.compiler_options())

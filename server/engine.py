"""The library's pure step behind a thin, fast door: one array in, one array out.

``Engine.kernel(task, config) -> Kernel``; ``Kernel.reset(seed) -> Outcome``; ``Kernel.step(state, action) -> Outcome``.
A jitted call that takes and returns sixty leaves costs hundreds of microseconds of dispatch and transfer; here state
and action travel as one int32 vector and all that the step answers comes back as another, floats by their bits, so
nothing is rounded.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS
from inferencegym_jax.registry import normalisers
from inferencegym_jax.staging import in_one_piece
from inferencegym_jax.tasks import CONFIG_KEYS, check_config

PARAMS_KEPT = 256  # (task, config) pairs whose params stay on the device
# The compiler rounds exp and log of a lone number and of a vector differently; a batch of two gives the vector's bits,
# which are those of every rollout of two or more episodes.
WIDTH = 2
ACTION = struct.Struct("<fiiii")  # the knobs in the order of KNOBS, as they lie in a session's record


class Outcome(NamedTuple):
    """What a reset or a step answers, in plain Python numbers; ``state`` is what to hand to the next step."""

    state: bytes
    observation: dict[str, Any]
    reward: float
    done: bool
    info: dict[str, Any]


class Layout:
    """A dataclass, or one of dataclasses, of float32, int32, uint32 and bool fields as a run of 32-bit words."""

    def __init__(self, example: Any):
        paths, self.structure = jax.tree.flatten_with_path(example)
        self.names = [".".join(str(key.name) for key in path) for path, _ in paths]
        leaves = [leaf for _, leaf in paths]
        self.shapes = [tuple(np.shape(leaf)) for leaf in leaves]
        self.dtypes = [np.dtype(leaf.dtype) for leaf in leaves]
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        codes = ["f" if dtype == np.float32 else "I" if dtype == np.uint32 else "i" for dtype in self.dtypes]
        self.struct = struct.Struct("<" + "".join(code * size for code, size in zip(codes, sizes, strict=True)))
        self.words = sum(sizes)
        ends = np.cumsum(sizes).tolist()
        self.spans = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        # fields that are no plain number: (name, start, end, is a vector, is bool)
        self.special = [
            (name, *span, bool(shape), dtype == np.bool_)
            for name, span, shape, dtype in zip(self.names, self.spans, self.shapes, self.dtypes, strict=True)
            if shape or dtype == np.bool_
        ]
        self.starts = [start for start, _ in self.spans]
        self.scalar = all(size == 1 for size in sizes)

    def pack(self, tree: Any) -> jax.Array:
        """int32[words] of a (traced) tree."""
        parts = []
        for leaf, dtype in zip(jax.tree.leaves(tree), self.dtypes, strict=True):
            value = jnp.asarray(leaf, dtype)
            value = value.astype(jnp.int32) if dtype == np.bool_ else jax.lax.bitcast_convert_type(value, jnp.int32)
            parts.append(jnp.reshape(value, (-1,)))
        return jnp.concatenate(parts)

    def unpack(self, words: jax.Array) -> Any:
        """The tree of a (traced) int32[words]."""
        leaves = []
        for (start, end), shape, dtype in zip(self.spans, self.shapes, self.dtypes, strict=True):
            part = jnp.reshape(words[start:end], shape)
            leaves.append(part != 0 if dtype == np.bool_ else jax.lax.bitcast_convert_type(part, dtype))
        return jax.tree.unflatten(self.structure, leaves)

    def read(self, buffer: bytes, offset: int = 0) -> dict[str, Any]:
        """The fields in a buffer as Python numbers, bools and lists: what ``models.plain`` gives of the tree."""
        values = self.struct.unpack_from(buffer, offset)
        fields = dict(zip(self.names, values if self.scalar else [values[i] for i in self.starts], strict=True))
        for name, start, end, vector, boolean in self.special:
            if vector:
                fields[name] = [bool(x) for x in values[start:end]] if boolean else list(values[start:end])
            else:
                fields[name] = bool(values[start])
        return fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Scalars:
    reward: Any  # float32
    timestep: Any  # int32
    oom: Any  # bool
    done: Any  # bool


class Program:
    """The compiled reset and step of one environment; serves every task and config of its table and its dynamics."""

    def __init__(self, env: ig.Environment, params: ig.EnvParams):
        self.env = env
        action = ig.ServeAction().as_arrays()
        observation, state = jax.eval_shape(lambda p: env.reset_seed(jnp.uint32(0), p), params)
        example = jax.eval_shape(lambda s, a, p: env.step_env(None, s, a, p), state, action, params)
        info = example[-1]
        scalar = _Scalars(example[2], info["timestep"], info["oom"], info["oom"])
        self.params = Layout(jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), params))
        self.state, self.action, self.observation = Layout(state), Layout(action), Layout(observation)
        self.metrics, self.workload, self.scalars = Layout(info["metrics"]), Layout(info["workload"]), Layout(scalar)
        order = (self.state, self.observation, self.scalars, self.metrics, self.workload)
        self.state_bytes = 4 * self.state.words
        offsets = np.cumsum([0] + [4 * layout.words for layout in order]).tolist()
        _, self.observation_at, self.scalars_at, self.metrics_at, self.workload_at, _ = offsets

        def reset(words: jax.Array, packed: jax.Array) -> jax.Array:
            task = self.params.unpack(packed)
            first, start = env.reset_seed(jax.lax.bitcast_convert_type(words[0], jnp.uint32), task)
            return jnp.concatenate([self.state.pack(start), self.observation.pack(first)])

        def step(words: jax.Array, packed: jax.Array) -> jax.Array:
            task = self.params.unpack(packed)
            return jax.vmap(one, in_axes=(0, None))(words, task)[0]

        def one(words: jax.Array, task: ig.EnvParams) -> jax.Array:
            before = self.state.unpack(words[: self.state.words])
            chosen = self.action.unpack(words[self.state.words :])
            answer = env.step_env(None, before, chosen, task)
            seen, after, gain, terminated, more = jax.lax.optimization_barrier(answer)
            done = terminated | env.is_truncated(after, task)
            rest = _Scalars(gain, more["timestep"], more["oom"], done)
            trees = (after, seen, rest, more["metrics"], more["workload"])
            return jnp.concatenate([layout.pack(tree) for layout, tree in zip(order, trees, strict=True)])

        # No hop to another thread within a call: half of its time or less. The open loop's last bits would change.
        whole = in_one_piece(step) if env.loops == "closed_loop" else step
        self.reset, self.step = jax.jit(reset), jax.jit(whole)


class Kernel:
    """One task with one config on a compiled program. Calls are pure and may run from several threads."""

    def __init__(self, program: Program, params: ig.EnvParams, spec: ig.TaskSpec, config: dict[str, float]):
        self.program, self.spec, self.config, self.params = program, spec, config, params
        self._packed = jax.device_put(np.asarray(program.params.pack(params)))
        table = program.env.table
        self._narrow = any(
            1 < len(table.axes[name]) < len(KNOBS[name].choices or (0, 1))
            for name in ("spec_length", "quant_tier", "prefill_disagg")
        )

    def reset(self, seed: int) -> Outcome:
        """Start the episode of a seed (0 to 2**32 - 1)."""
        program = self.program
        raw = np.asarray(program.reset(np.array([seed], np.uint32).view(np.int32), self._packed)).tobytes()
        observation = program.observation.read(raw, program.state_bytes)
        return Outcome(raw[: program.state_bytes], observation, 0.0, False, {})

    def step(self, state: bytes, action: bytes) -> Outcome:
        """One second of serving, no auto-reset.

        Args:
            state: from ``reset`` or ``step``.
            action: ``pack_action``'s words, already within their ranges.
        """
        program = self.program
        raw = np.asarray(
            program.step(np.frombuffer((state + action) * WIDTH, np.int32).reshape(WIDTH, -1), self._packed)
        ).tobytes()
        scalars = program.scalars.read(raw, program.scalars_at)
        info = {
            "timestep": scalars["timestep"],
            "metrics": program.metrics.read(raw, program.metrics_at),
            "workload": program.workload.read(raw, program.workload_at),
            "oom": scalars["oom"],
        }
        observation = program.observation.read(raw, program.observation_at)
        return Outcome(raw[: program.state_bytes], observation, scalars["reward"], scalars["done"], info)

    def pack_action(self, action: Mapping[str, Any]) -> bytes:
        """The knobs as 20 bytes.

        Args:
            action: all five knobs, within the ranges of ``models.KNOBS``.

        Raises:
            ValueError: the server's own latency table lacks that value of a knob.
        """
        if self._narrow:
            self.program.env.check_action(ig.ServeAction(**{name: action[name] for name in KNOBS}))
        return ACTION.pack(*(action[name] for name in KNOBS))


def read_actions(packed: bytes) -> list[dict[str, Any]]:
    """The actions of a session's record, one after the other, as knob dicts (the floats as the simulator used them)."""
    actions = []
    for kv, spec, batch, disagg, quant in ACTION.iter_unpack(packed):
        action = ig.ServeAction(np.float32(kv), spec, batch, bool(disagg), quant)
        actions.append(action.to_dict())
    return actions


class Engine:
    """Kernels of every task on one latency table and, where one is given, one request log; compiles when told to, keeps
    params of recent configs."""

    def __init__(self, table: str | Path | None = None, trace: str | Path | None = None):
        # A step is shorter than a hop to jax's dispatch thread and back, and its seventy small operations gain nothing
        # from a pool of threads, which cost a third of the processor time. Takes effect if jax has not started yet.
        os.environ.setdefault("PJRT_NPROC", "1")
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.table = ig.load_table(table)
        self.trace = None if trace is None else ig.load_trace(trace)
        self._programs: dict[ig.Environment, Program] = {}
        self._kernels: OrderedDict[tuple[Any, ...], Kernel] = OrderedDict()
        self._lock = threading.Lock()

    def kernel(self, task: int | str, config: Mapping[str, Any] | None = None) -> Kernel:
        """The kernel of a task (id or name) and a config.

        Raises:
            ValueError: see ``inferencegym_jax.make``.
        """
        spec = ig.get_task(task)
        overrides = check_config(config)
        key = (spec.id, *(overrides.get(name) for name in CONFIG_KEYS))
        with self._lock:
            kernel = self._kernels.get(key)
            if kernel is None:
                env, params = ig.make(spec.id, table=self.table, config=overrides, trace=self.trace)
                env = env.suited_to(params)  # without the other dynamics a step takes half the time
                program = self._programs.get(env)
                if program is None:
                    program = self._programs[env] = Program(env, params)
                kernel = self._kernels[key] = Kernel(program, params, spec, overrides)
                while len(self._kernels) > PARAMS_KEPT:
                    self._kernels.popitem(last=False)
            else:
                self._kernels.move_to_end(key)
            return kernel

    def normalisers(self, spec: ig.TaskSpec) -> dict[str, float]:
        """What the grader divides by for a task on this table and traffic."""
        return normalisers(spec, self.table, trace=self.trace)

    def replay(self, kernel: Kernel, seed: int, actions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The log that these actions give, bit for bit a session's: entries ``{"action", "reward", "metrics"}``.

        Raises:
            ValueError: the server's own latency table lacks a value of a knob; the action's index is named.
        """
        state, log = kernel.reset(seed).state, []
        for i, action in enumerate(actions):
            try:
                packed = kernel.pack_action(action)
            except ValueError as error:
                raise ValueError(f"actions[{i}]: {error}") from error
            outcome = kernel.step(state, packed)
            state = outcome.state
            log.append(
                {"action": {k: action[k] for k in KNOBS}, "reward": outcome.reward, "metrics": outcome.info["metrics"]}
            )
        return log

    def warm_up(self) -> None:
        """Compile reset and step of every task, so that no request waits for a compiler."""
        kernels = [self.kernel(spec.id) for spec in ig.task_specs().values()]
        programs = {id(kernel.program): kernel for kernel in kernels}.values()
        action = kernels[0].pack_action(ig.ServeAction().to_dict())
        with ThreadPoolExecutor() as pool:  # the compiler runs outside the interpreter's lock
            jobs = [pool.submit(kernel.reset, 0) for kernel in programs]
            jobs += [pool.submit(kernel.step, bytes(kernel.program.state_bytes), action) for kernel in programs]
            for job in jobs:
                job.result()

"""One environment stepped from Python, fast: one array in, one array out, and the result as plain Python numbers.

    step = SingleStep(env, params)
    outcome = step.reset(7)
    outcome = step.step(outcome.state, step.pack_action(ServeAction(batch_size=64)))

A jitted call that takes and returns sixty leaves costs a hundred microseconds and more of dispatch and transfer; here
state and action travel as one int32 vector and all that the step returns comes back as another, floats by their bits,
so nothing is rounded. Gymnasium's single environment and the server step this way; ``env.step`` is for ``jit``,
``vmap`` and ``scan``.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.models import KNOBS, EnvParams, ServeAction, check_seed
from inferencegym_jax.numerics.compile_units import in_one_piece

# The compiler rounds exp and log of a lone number and of a vector differently; a batch of two gives the vector's bits,
# which are those of every rollout of two or more episodes.
WIDTH = 2
_ACTION = struct.Struct("<" + "".join("f" if knob.kind == "float" else "i" for knob in KNOBS.values()))


class Outcome(NamedTuple):
    """What a reset or a step answers, in plain Python numbers; ``state`` is what to hand to the next step.

    ``info`` holds timestep, metrics, workload and oom; of an open-loop task also the outcome of its requests.
    """

    state: bytes
    observation: dict[str, Any]
    reward: float
    done: bool
    info: dict[str, Any]


class _Layout:
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


class _Compiled:
    """A function of arrays, compiled for its one shape at the first call.

    As fast as ``jit``; but the program does not go with ``jax.clear_caches()``, so that a long-lived process can let go
    of what tracing left, which is several times as large.
    """

    def __init__(self, function: Callable[..., jax.Array], *shapes: jax.ShapeDtypeStruct):
        self._function, self._shapes = function, shapes
        self._lock = threading.Lock()
        self._program: Any = None

    def __call__(self, *arguments: Any) -> jax.Array:
        if self._program is None:
            with self._lock:
                if self._program is None:
                    self._program = jax.jit(self._function).lower(*self._shapes).compile()
        return self._program(*arguments)


class _Program:
    """The compiled reset and step of one environment; serves every task and config of its table and its dynamics."""

    def __init__(self, env: Environment):
        self.env: Environment = env
        params = env.default_params
        action = ServeAction().as_arrays()
        observation, state = jax.eval_shape(lambda p: env.reset_seed(jnp.uint32(0), p), params)
        example = jax.eval_shape(lambda s, a, p: env.step_env(None, s, a, p), state, action, params)
        info = example[-1]
        scalar = _Scalars(example[2], info["timestep"], info["oom"], info["oom"])
        self.params = _Layout(jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), params))
        self.state, self.action, self.observation = _Layout(state), _Layout(action), _Layout(observation)
        self.metrics, self.workload, self.scalars = _Layout(info["metrics"]), _Layout(info["workload"]), _Layout(scalar)
        # a program of the closed loop alone counts no requests
        self.outcome = None if env.dynamics == "closed_loop" else _Layout(info["outcome"])
        order = (self.state, self.observation, self.scalars, self.metrics, self.workload)
        order += () if self.outcome is None else (self.outcome,)
        self.state_bytes = 4 * self.state.words
        offsets = np.cumsum([0] + [4 * layout.words for layout in order]).tolist()
        _, self.observation_at, self.scalars_at, self.metrics_at, self.workload_at, self.outcome_at, *_ = offsets

        def reset(words: jax.Array, packed: jax.Array) -> jax.Array:
            task = self.params.unpack(packed)
            first, start = env.reset_seed(jax.lax.bitcast_convert_type(words[0], jnp.uint32), task)
            return jnp.concatenate([self.state.pack(start), self.observation.pack(first)])

        def step(words: jax.Array, packed: jax.Array) -> jax.Array:
            task = self.params.unpack(packed)
            return jax.vmap(one, in_axes=(0, None))(words, task)[0]

        def one(words: jax.Array, task: EnvParams) -> jax.Array:
            before = self.state.unpack(words[: self.state.words])
            action = self.action.unpack(words[self.state.words :])
            stepped = env.step_env(None, before, action, task)
            observation, after, reward, terminated, info = jax.lax.optimization_barrier(stepped)
            done = terminated | env.is_truncated(after, task)
            scalars = _Scalars(reward, info["timestep"], info["oom"], done)
            trees = (after, observation, scalars, info["metrics"], info["workload"], info["outcome"])
            return jnp.concatenate([layout.pack(tree) for layout, tree in zip(order, trees, strict=False)])

        # No hop to another thread within a call: half of its time or less. The open loop's last bits would change.
        whole = in_one_piece(step) if env.dynamics == "closed_loop" else step
        task = jax.ShapeDtypeStruct((self.params.words,), np.int32)
        self.reset = _Compiled(reset, jax.ShapeDtypeStruct((1,), np.int32), task)
        self.step = _Compiled(
            whole, jax.ShapeDtypeStruct((WIDTH, self.state.words + self.action.words), np.int32), task
        )


@functools.lru_cache(maxsize=16)
def _program_of(env: Environment) -> _Program:
    """The program of an environment, one for all that are equal to it."""
    return _Program(env)


class SingleStep:
    """Reset and step of one task, state and action as bytes. Calls are pure and may run from several threads.

    Args:
        env: the environment; equal ones share the compiled program.
        params: the task (concrete, of one environment).
    """

    def __init__(self, env: Environment, params: EnvParams):
        self.env: Environment = env.suited_to(params)  # without the other dynamics a step takes half the time
        self.params: EnvParams = params
        self._program = _program_of(self.env)
        self.state_bytes: int = self._program.state_bytes
        self._counts_requests = bool(np.asarray(params.engine.open_loop))
        self._packed = jax.device_put(np.asarray(self._program.params.pack(params)))

    def reset(self, seed: int) -> Outcome:
        """Start the episode of a seed (0 to 4294967295); compiles at the first call.

        Raises:
            ValueError: another seed.
        """
        program = self._program
        words = np.array([check_seed(seed)], np.uint32).view(np.int32)
        raw = np.asarray(program.reset(words, self._packed)).tobytes()
        observation = program.observation.read(raw, program.state_bytes)
        return Outcome(raw[: program.state_bytes], observation, 0.0, False, {})

    def step(self, state: bytes, action: bytes) -> Outcome:
        """One second of serving, no auto-reset; compiles at the first call.

        Args:
            state: of ``reset`` or ``step``.
            action: of ``pack_action``.

        Raises:
            ValueError: state or action are not so many bytes.
        """
        if len(state) != self.state_bytes or len(action) != _ACTION.size:
            raise ValueError(
                f"state, action: {len(state)} and {len(action)} bytes; must be {self.state_bytes} and {_ACTION.size}"
            )
        program = self._program
        words = np.frombuffer((state + action) * WIDTH, np.int32).reshape(WIDTH, -1)
        raw = np.asarray(program.step(words, self._packed)).tobytes()
        scalars = program.scalars.read(raw, program.scalars_at)
        info = {
            "timestep": scalars["timestep"],
            "metrics": program.metrics.read(raw, program.metrics_at),
            "workload": program.workload.read(raw, program.workload_at),
            "oom": scalars["oom"],
        }
        if self._counts_requests and program.outcome is not None:
            info["outcome"] = program.outcome.read(raw, program.outcome_at)
        observation = program.observation.read(raw, program.observation_at)
        return Outcome(raw[: program.state_bytes], observation, scalars["reward"], scalars["done"], info)

    def pack_action(self, action: ServeAction | Mapping[str, Any]) -> bytes:
        """The knobs as bytes, four each: a float32 or an int32 in the order of ``KNOBS``.

        Args:
            action: Python numbers; a mapping has all knobs, and what else it has is not read.

        Raises:
            TypeError, ValueError: a knob out of its range, or that the latency table lacks; see ``check_action``.
        """
        if isinstance(action, Mapping):
            action = ServeAction(**{name: action[name] for name in KNOBS})
        self.env.check_action(action)
        return _ACTION.pack(*(getattr(action, name) for name in KNOBS))


def read_actions(packed: bytes) -> list[dict[str, Any]]:
    """Actions that ``pack_action`` packed, one after the other, as knob dicts; floats as the simulator used them."""
    return [
        {name: knob.plain(value) for (name, knob), value in zip(KNOBS.items(), values, strict=True)}
        for values in _ACTION.iter_unpack(packed)
    ]

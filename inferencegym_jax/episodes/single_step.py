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
import pickle
import struct
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.episodes import portable
from inferencegym_jax.episodes.forks import check_not_forked
from inferencegym_jax.episodes.on_demand import Compiled, Loaded, Part
from inferencegym_jax.episodes.packing import Layout
from inferencegym_jax.episodes.wrapped import check_played_by_step_env, episode_of, suited
from inferencegym_jax.models import KNOBS, EnvParams, Knob, ServeAction, check_seed, shown
from inferencegym_jax.numerics.compile_units import in_one_piece
from inferencegym_jax.spaces import ActionSpace

# The compiler rounds exp and log of a lone number and of a vector differently; a batch of two gives the vector's bits,
# which are those of every rollout of two or more episodes.
WIDTH = 2


@functools.cache
def _record(codes: str) -> struct.Struct:
    return struct.Struct(codes)


def _struct_of(knobs: Mapping[str, Knob]) -> struct.Struct:
    """How an action of these knobs is packed: four bytes each, a float32 or an int32."""
    return _record("<" + "".join("f" if knob.kind == "float" else "i" for knob in knobs.values()))


def knobs_of(env: Any, params: Any) -> Mapping[str, Knob] | None:
    """The knobs that an environment's actions are made of; None under a wrapper with an action space of its own."""
    if isinstance(getattr(type(env), "knobs", None), Mapping):
        return type(env).knobs
    return KNOBS if isinstance(env.action_space(params), ActionSpace) else None


class Outcome(NamedTuple):
    """What a reset or a step answers, in plain Python numbers; ``state`` is what to hand to the next step.

    ``info`` holds timestep, metrics, workload and oom; of an open-loop task also the outcome of its requests. Under a
    wrapper whose observations are an array, ``observation`` is one too.
    """

    state: bytes
    observation: Any
    reward: float
    done: bool
    info: dict[str, Any]
    action: Mapping[str, Any] = MappingProxyType({})  # the knobs that were asked for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Scalars:
    reward: Any  # float32
    timestep: Any  # int32
    oom: Any  # bool
    done: Any  # bool


class _Program:
    """The compiled reset and step of one environment; serves every task and config of its table and its dynamics.
    Pickled, it lacks both: see ``step_bytes``."""

    reset: Compiled | Part
    step: Compiled | Part

    def __init__(self, env: Any):
        params = env.default_params
        if knobs_of(env, params) is None:
            space = env.action_space(params)
            action = jnp.zeros(space.shape, space.dtype)
        else:
            action = (env.action_of({}) if hasattr(type(env), "knobs") else ServeAction()).as_arrays()
        observation, state = jax.eval_shape(lambda p: env.reset_seed(jnp.uint32(0), p), params)
        example = jax.eval_shape(lambda s, a, p: env.step_env(None, s, a, p), state, action, params)
        info = example[-1]
        scalar = _Scalars(example[2], info["timestep"], info["oom"], info["oom"])
        self.params = Layout(jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), params))
        self.state, self.action, self.observation = Layout(state), Layout(action), Layout(observation)
        self.metrics, self.workload, self.scalars = Layout(info["metrics"]), Layout(info["workload"]), Layout(scalar)
        self.knobs = Layout(info["action"])
        # a program of the closed loop alone counts no requests
        self.outcome = None if env.dynamics == "closed_loop" else Layout(info["outcome"])
        order = (self.state, self.observation, self.scalars, self.knobs, self.metrics, self.workload)
        order += () if self.outcome is None else (self.outcome,)
        self.state_bytes = 4 * self.state.words
        offsets = np.cumsum([0] + [4 * layout.words for layout in order]).tolist()
        _, self.observation_at, self.scalars_at, self.knobs_at, self.metrics_at, self.workload_at, *rest = offsets
        self.outcome_at = rest[0]

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
            done = terminated | env.is_truncated(episode_of(after), task)
            scalars = _Scalars(reward, info["timestep"], info["oom"], done)
            seen = info["action"], info["metrics"], info["workload"], info["outcome"]
            trees = (after, observation, scalars, *seen)
            return jnp.concatenate([layout.pack(tree) for layout, tree in zip(order, trees, strict=False)])

        # No hop to another thread within a call: half of its time or less. The open loop's last bits would change.
        whole = in_one_piece(step) if env.dynamics == "closed_loop" else step
        task = jax.ShapeDtypeStruct((self.params.words,), np.int32)
        self.reset = Compiled(reset, jax.ShapeDtypeStruct((1,), np.int32), task)
        self.step = Compiled(whole, jax.ShapeDtypeStruct((WIDTH, self.state.words + self.action.words), np.int32), task)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("reset", "step")}


def _of_bytes(made: bytes, again: Callable[[], bytes | None]) -> _Program:
    """The program of ``step_bytes``, which ``again`` gives once more whenever reset and step are loaded again."""
    program = pickle.loads(made)[0]
    both = Loaded(again, _reset_and_step, made)
    program.reset, program.step = Part(both, 0), Part(both, 1)
    return program


def _reset_and_step(made: bytes) -> list[bytes]:
    return pickle.loads(made)[1]


PROGRAMS_KEPT = 16  # of environments; the first made goes
_programs: dict[Any, _Program] = {}
_making = threading.Lock()


def _program_of(env: Any) -> _Program:
    """The program of an environment, one for all that are equal to it; made once, also where several ask at once. Who
    asks for one that is there does not wait for another that is being made."""
    program = _programs.get(env)
    if program is not None:
        return program
    with _making:
        if (program := _programs.get(env)) is None:
            again = functools.partial(_maker, env) if _maker is not None else lambda: None
            made = again()
            program = _Program(env) if made is None else _of_bytes(made, again)
            while len(_programs) >= PROGRAMS_KEPT:
                del _programs[next(iter(_programs))]
            _programs[env] = program
    return program


_maker: Callable[[Any], bytes | None] | None = None


def step_bytes(env: Any) -> bytes:
    """The compiled reset and step of an environment, for a process that had ``compile_with`` told where to get them.

    Raises:
        TypeError, AttributeError, pickle.PicklingError: the environment has parts that cannot be pickled.
    """
    program = _Program(env)
    reset, step = program.reset, program.step
    assert isinstance(reset, Compiled) and isinstance(step, Compiled)  # made here, not loaded
    return pickle.dumps((program, [portable.compiled(part.lowered()) for part in (reset, step)]))


def compile_with(maker: Callable[[Any], bytes | None] | None) -> None:
    """Have steps compiled elsewhere from now on: in another process on the same machine, with the same versions.

    Args:
        maker: of an environment, ``step_bytes`` as it came out there; None, or a maker that gives None: this process
            compiles itself.
    """
    global _maker
    _maker = maker


class SingleStep:
    """Reset and step of one task, state and action as bytes. Calls are pure and may run from several threads.

    Nothing is compiled, and JAX is not started, before the first call. Can be pickled and copied.

    Args:
        env: the environment, or a wrapper; equal ones share the compiled program.
        params: the task (concrete, of one environment).

    Raises:
        TypeError: a wrapper that changes ``step`` and not ``step_env``, through which it is played here.
    """

    def __init__(self, env: Any, params: EnvParams):
        check_played_by_step_env(env)
        self.env: Any = suited(env, params)  # without the other dynamics a step takes half the time
        self.params: EnvParams = params
        self._own: _Program | None = None
        self._counts_requests = bool(np.asarray(params.engine.open_loop))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the compiled program, which is found or made again."""
        return {name: value for name, value in vars(self).items() if name != "_packed"} | {"_own": None}

    @functools.cached_property
    def knobs(self) -> Mapping[str, Knob] | None:
        """See ``knobs_of``."""
        return knobs_of(self.env, self.params)

    @property
    def _program(self) -> _Program:
        # no cached_property: in Python 3.11 those of all instances wait for the one that is being computed
        if self._own is None:
            self._own = _program_of(self.env)
        return self._own

    @functools.cached_property
    def _packed(self) -> jax.Array:
        return jax.device_put(np.frombuffer(self._program.params.pack_concrete(self.params), np.int32))

    def hold(self) -> object | None:
        """What keeps reset and step in memory for as long as somebody has it, so that a call waits for nothing; None
        where they are still to be compiled, or loaded where another process compiled them (``on_demand``)."""
        program = self._own or _programs.get(self.env)
        held = None if program is None else (program.reset.hold(), program.step.hold())
        return None if held is None or None in held else held

    def load(self) -> None:
        """Compile reset and step, or load them, where a call would."""
        program = self._program
        program.reset.load()
        program.step.load()

    @property
    def state_bytes(self) -> int:
        """How long a state is."""
        return self._program.state_bytes

    def reset(self, seed: int) -> Outcome:
        """Start the episode of a seed (0 to 4294967295); compiles at the first call.

        Raises:
            ValueError: another seed.
        """
        check_not_forked()
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
        check_not_forked()
        program = self._program
        expected = program.state_bytes, 4 * program.action.words
        if (len(state), len(action)) != expected:
            raise ValueError(
                f"state, action: {len(state)} and {len(action)} bytes; must be {expected[0]} and {expected[1]}"
            )
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
        knobs = program.knobs.read(raw, program.knobs_at)
        return Outcome(raw[: program.state_bytes], observation, scalars["reward"], scalars["done"], info, knobs)

    def pack_action(self, action: Any) -> bytes:
        """An action as bytes: the knobs, four each, a float32 or an int32 in their table's order (``KNOBS``).

        Args:
            action: a ``ServeAction`` (of a fleet a ``FleetAction``) of Python numbers, or a mapping; knobs that it
                leaves out take the baseline's value, and what else it has is not read. Under a wrapper with an action
                space of its own, one of that.

        Raises:
            TypeError, ValueError: a knob out of its range, or that the latency table lacks; see ``check_action``. An
                action outside the wrapper's space.
        """
        knobs = self.knobs
        if knobs is None:
            return self._program.action.pack_concrete(self._own_action(action))
        if isinstance(action, Mapping):
            action = self.env.action_of({name: action[name] for name in knobs if name in action})
        else:
            self.env.check_action(action)
        return _struct_of(knobs).pack(*(getattr(action, name) for name in knobs))

    def _own_action(self, action: Any) -> Any:
        space = self.env.action_space(self.params)
        value = np.asarray(action)
        if value.shape != space.shape or not np.isfinite(value).all() or not space.contains(value):
            raise ValueError(f"action = {shown(action)}: must lie in {space}")
        return value


def read_actions(packed: bytes, knobs: Mapping[str, Knob] = KNOBS) -> list[dict[str, Any]]:
    """Actions that ``pack_action`` packed, one after the other, as knob dicts; floats as the simulator used them."""
    return [
        {name: knob.plain(value) for (name, knob), value in zip(knobs.items(), values, strict=True)}
        for values in _struct_of(knobs).iter_unpack(packed)
    ]

"""A task that is drawn anew for each episode: pool, load, objectives, delays, clock, GPU, memory, free knobs.

``TaskSpec.draws -> draws_of -> Draws``; ``Draws, params, seed -> drawn -> EnvParams``, a pure function of the episode's
seed. Seeds of training (from ``TRAINING`` on) draw from what is seen there; all others from that and what training
never sees.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import (
    CLASSES,
    DRAWN,
    KNOBS,
    REPLICA,
    TRAFFIC_DAY,
    DayTraffic,
    EngineParams,
    EnvParams,
    QuantTier,
    shown,
)
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.numerics.select import select
from inferencegym_jax.physics.capacity import work_ms
from inferencegym_jax.physics.kernels import Iterations
from inferencegym_jax.physics.stack import StackedIterations, stacked
from inferencegym_jax.table import EngineProfile
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.tasks import pools

DRAW = 40  # purposes of numerics.draws.hash4, four of them
TRAINING = 1 << 30  # seeds from here on are of training and its validation
OF_PROFILE: dict[str, str] = {
    "overhead_ms": "overhead_ms",
    "overhead_ms_per_sequence": "overhead_ms_per_sequence",
    "path_ms": "path_ms",
    "first_token_iterations": "first_token_extra_iterations",
    "token_budget": "tokens_per_iteration",
    "memory_gb": "memory_gb",
    "draft_share": "draft_share",
    "link_gb_s": "host_link_gb_s",
}
"""Field of ``EngineParams`` -> that of an engine profile that it comes from."""


class Choice(NamedTuple):
    """What one episode drew; int32 and float32."""

    pool: jax.Array
    engine: jax.Array
    objective: jax.Array
    kinds: jax.Array  # [..., KINDS], factor of each kind's rate
    load: jax.Array  # GPUs that the day's busiest hour needs
    memory_share: jax.Array  # of the GPU's
    start_s: jax.Array
    clock: jax.Array
    may_lease: jax.Array  # bool


@dataclass(frozen=True, eq=False)
class Draws:
    """All that a task draws from, as arrays; static, hashed by the task's entry and its engines.

    Attributes:
        text: the entry as JSON.
        stack: the engines.
        days: of each pool, leading axis (pools).
        work_ms: float32[engines, pools, KINDS], a request's of a saturated GPU.
        numbers: field of ``OF_PROFILE`` -> float32[engines].
        ttft_ms, tpot_ms: float32[tiers, 3], objectives by class.
        seen: how many of pools, engines and tiers, in this order, training draws from; the first of each.
    """

    text: str
    stack: StackedIterations
    days: DayTraffic
    work_ms: np.ndarray
    numbers: Mapping[str, np.ndarray]
    ttft_ms: np.ndarray
    tpot_ms: np.ndarray
    seen: tuple[int, int, int]

    def __hash__(self) -> int:
        """Hash of entry and engines."""
        return hash((self.text, self.stack))

    def __eq__(self, other: object) -> bool:
        """Whether the other draws from the same."""
        return isinstance(other, Draws) and (self.text, self.stack) == (other.text, other.stack)

    @functools.cached_property
    def entry(self) -> dict[str, Any]:
        """The task's entry."""
        return json.loads(self.text)

    def choice(self, seed: jax.Array) -> Choice:
        """What the episode of a seed drew.

        Args:
            seed: uint32, of one environment.
        """
        entry = self.entry
        # a day's windows are one condition's: what is drawn belongs to the seed's day alone
        words = [word for i in range(4) for word in counters.hash4(seed, jnp.zeros_like(seed, jnp.int32), DRAW + i)]
        in_training = seed >= jnp.uint32(TRAINING)

        def one_of(word: jax.Array, seen: int, count: int) -> jax.Array:
            return jnp.where(in_training, counters.whole(word, seen), counters.whole(word, count))

        def between(word: jax.Array, name: str) -> jax.Array:
            low, high = entry[name]
            return low + (high - low) * counters.uniform(word)

        def value(word: jax.Array, name: str) -> jax.Array:
            values = jnp.asarray(entry[name], jnp.float32)
            return values[counters.whole(word, len(entry[name]))]

        counts = len(self.days.rate), len(self.stack.engines), len(self.ttft_ms)
        picked = [one_of(words[i], self.seen[i], counts[i]) for i in range(3)]
        kinds = jnp.stack([jnp.exp(entry["kinds_sigma"] * counters.normal(word)) for word in words[3:7]], axis=-1)
        return Choice(
            *picked,
            kinds=kinds,
            load=between(words[7], "load"),
            memory_share=between(words[8], "memory_share"),
            start_s=value(words[9], "start_s"),
            clock=value(words[10], "clock"),
            may_lease=counters.uniform(words[11]) < entry["lease_share"],
        )

    def pick(self, table: Any, index: jax.Array) -> jax.Array:
        """Row ``index`` of a small array, as a sum: a gather is computed number by number."""
        rows = jnp.asarray(table, jnp.float32)
        row = jnp.zeros(jnp.shape(index) + rows.shape[1:], jnp.float32)
        for i in range(rows.shape[0]):
            flag = jnp.reshape(index == i, jnp.shape(index) + (1,) * (rows.ndim - 1))
            row = jnp.where(flag, rows[i], row)
        return row


def drawn(draws: Draws, params: EnvParams, seed: jax.Array) -> EnvParams:
    """The params of the episode of a seed; those of a task that draws nothing as they are.

    Args:
        draws: what is drawn from.
        params: the task; ``engine.table`` is ``DRAWN`` where it draws.
        seed: uint32, of one environment.
    """
    choice = draws.choice(seed)
    engine = _engine(draws, params.engine, choice)
    lease = jnp.asarray([name == "prefill_disagg" for name in KNOBS])
    drawn_params = params.replace(
        slo_ms=draws.pick(draws.ttft_ms, choice.objective),
        memory_limit_gb=engine.memory_gb,
        oom_limit_gb=engine.memory_gb,
        active=jnp.asarray(params.active) & (choice.may_lease | ~lease),
        engine=engine,
    )
    is_drawn = jnp.asarray(params.engine.table) == DRAWN
    own = params.replace(engine=params.engine.replace(table=jnp.zeros_like(engine.table)))
    own = jax.tree.map(lambda x, y: jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape), drawn_params, own)
    return select(is_drawn, drawn_params, own)


def _engine(draws: Draws, params: EngineParams, choice: Choice) -> EngineParams:
    day: DayTraffic = jax.tree.map(lambda table: draws.pick(table, choice.pool), draws.days)
    work = draws.pick(draws.pick(draws.work_ms, choice.engine), choice.pool)
    rates = day.rate * choice.kinds
    busiest = (day.hours * (rates * work)[..., None]).sum(axis=-2).max(axis=-1) / 1000.0
    share = choice.load / jnp.maximum(busiest, 1e-6)
    rates = rates * share
    scv = jnp.maximum(1.0 + (rates / jnp.maximum(day.rate, 1e-6)) * (day.gaps_scv - 1.0), 0.0)
    day = day.replace(clock=choice.clock, windows=jnp.asarray(params.day.windows, jnp.int32), rate=rates, gaps_scv=scv)
    total = rates.sum(axis=-1)
    shares = rates / jnp.maximum(total, 1e-6)[..., None]
    prompt, output = (shares * day.prompt_mean).sum(axis=-1), (shares * day.output_mean).sum(axis=-1)
    verified = (shares * day.output_mean)[..., None] / day.acceptance
    numbers = {name: draws.pick(draws.numbers[name], choice.engine) for name in OF_PROFILE}
    return params.replace(
        **{**numbers, "memory_gb": numbers["memory_gb"] * choice.memory_share},
        table=choice.engine,
        start_s=choice.start_s,
        slo_tpot_ms=draws.pick(draws.tpot_ms, choice.objective),
        day=day,
        rate=total,
        prompt_mean=prompt,
        output_mean=output,
        acceptance_lengths=jnp.maximum(output[..., None] / jnp.maximum(verified.sum(axis=-2), 1e-6), 1.0),
        demand_rps=total,
        demand_tps=total * output,
    )


def draws_of(entry: Mapping[str, Any], own: EngineProfile | None = None) -> Draws:
    """What a task's entry draws from.

    Args:
        entry: ``TaskSpec.draws``.
        own: the profile of a table of one's own, which then is every episode's, in its 16-bit format.

    Raises:
        ValueError: a pool or an engine that there is not, or a profile without a kind's acceptance lengths.
        TableError: engines that cannot be stacked.
    """
    names = [*entry["pools"], *entry.get("unseen_pools", ())]
    engines = [*entry["engines"], *entry.get("unseen_engines", ())]
    tiers = [*entry["objectives"], *entry.get("unseen_objectives", ())]
    seen = len(entry["pools"]), len(entry["engines"]), len(entry["objectives"])
    profiles = [(own, 0)] if own is not None else [engine_named(name) for name in engines]
    if own is not None:
        seen = (seen[0], 1, seen[2])
    stack = stacked(profiles)
    days = [pools.day_traffic(pools.resolve({"pool": name}), profiles[0][0]) for name in names]
    with jax.ensure_compile_time_eval():
        work = [[_work_ms(profile, tier, day) for day in days] for profile, tier in profiles]
    numbers = {
        name: np.asarray([getattr(profile, source) for profile, _ in profiles], np.float32)
        for name, source in OF_PROFILE.items()
    }
    ttft, tpot = (np.asarray([_by_class(tier[key]) for tier in tiers], np.float32) for key in ("ttft_ms", "tpot_ms"))
    joined: DayTraffic = jax.tree.map(lambda *xs: np.stack(xs).astype(np.float32), *days)
    return Draws(
        json.dumps(entry, sort_keys=True), stack, joined, np.asarray(work, np.float32), numbers, ttft, tpot, seen
    )


def _by_class(values: Any) -> list[float]:
    listed = list(values) if isinstance(values, Sequence) else [values]
    return [*listed, *[listed[-1]] * (CLASSES - len(listed))]


def _work_ms(profile: EngineProfile, tier: int, day: DayTraffic) -> np.ndarray:
    own: dict[str, Any] = {name: np.float32(getattr(profile, source)) for name, source in OF_PROFILE.items()}
    params = EngineParams(**own)
    return np.asarray(work_ms(Iterations(profile), params, day.prompt_mean, day.output_mean, tier))


@functools.cache
def engine_named(name: str) -> tuple[EngineProfile, int]:
    """The profile and weight format of an engine as entries name it, ``a100_sxm FP16``.

    Raises:
        ValueError: no such GPU or weight format.
    """
    gpu, _, tier = str(name).partition(" ")
    file = "traces_llama3_8b.engine.json" if gpu == "a100_sxm" else f"engines/llama3_8b_{gpu}.engine.json"
    if tier not in QuantTier.__members__:
        raise ValueError(f"draws engine = {shown(name)}: must be a GPU and one of {', '.join(QuantTier.__members__)}")
    try:
        return EngineProfile.load(data_path(file)), int(QuantTier[tier])
    except FileNotFoundError:
        raise ValueError(f"draws engine = {shown(name)}: no engine profile of {gpu!r} ships") from None


def check_draws(check: Any, entry: Mapping[str, Any]) -> None:
    """Raise for the first field of an entry that is out of range; ``check`` says the task (``tasks.checks``)."""
    needed = (
        "pools",
        "engines",
        "objectives",
        "load",
        "kinds_sigma",
        "memory_share",
        "start_s",
        "clock",
        "lease_share",
    )
    unseen = ("unseen_pools", "unseen_engines", "unseen_objectives")
    check.mapping("draws", entry, needed, (*needed, *unseen))
    for name in ("pools", "engines", "objectives", "start_s", "clock"):
        if isinstance(entry[name], str | Mapping) or not isinstance(entry[name], Sequence) or not entry[name]:
            check.fail(f"draws {name}", entry[name], "a list of at least one")
    for name in (*entry["pools"], *entry.get("unseen_pools", ())):
        if name not in pools.pools():
            check.fail("draws pools", name, f"one of {', '.join(pools.pools())}")
    for name in (*entry["engines"], *entry.get("unseen_engines", ())):
        engine_named(name)
    for tier in (*entry["objectives"], *entry.get("unseen_objectives", ())):
        check.mapping("draws objectives", tier, ("ttft_ms", "tpot_ms"), ("ttft_ms", "tpot_ms"))
        for key in ("ttft_ms", "tpot_ms"):
            for number in tier[key] if isinstance(tier[key], list | tuple) else [tier[key]]:
                check.number(f"draws objectives {key}", number, 1e-3, 1e9)
    for name, low, high in (("load", 1e-3, 100.0), ("memory_share", 0.1, 10.0)):
        if not isinstance(entry[name], list | tuple) or len(entry[name]) != 2:
            check.fail(f"draws {name}", entry[name], "two numbers, the lowest and the highest")
        check.number(f"draws {name}", entry[name][1], check.number(f"draws {name}", entry[name][0], low, high), high)
    for name, low, high in (("start_s", 0, 86400), ("clock", 1e-3, 86400)):
        for number in entry[name]:
            check.number(f"draws {name}", number, low, high)
    check.number("draws kinds_sigma", entry["kinds_sigma"], 0, 3)
    check.number("draws lease_share", entry["lease_share"], 0, 1)


def base_engine(params: EngineParams) -> EngineParams:
    """The engine's params of a task that draws, before a seed is known: its first second's are drawn."""
    return params.replace(table=np.int32(DRAWN), traffic=np.int32(TRAFFIC_DAY), second_gpu=np.int32(REPLICA))

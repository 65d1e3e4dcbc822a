"""The requests of one second: the task's own draws, the fitted traffic's, a day's, or a log's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import (
    EPISODE_LENGTH,
    SHORT_OUTPUTS,
    TRAFFIC_DAY,
    TRAFFIC_FITTED,
    TRAFFIC_OF_TASK,
    TRAFFIC_TRACE,
    EngineParams,
    EnvParams,
    EnvState,
    WorkloadState,
)
from inferencegym_jax.traffic import days
from inferencegym_jax.traffic import fitted as open_traffic
from inferencegym_jax.traffic.fitted import Requests
from inferencegym_jax.traffic.request_log import RequestLog


class Kinds(NamedTuple):
    """Of what kind a second's requests are, for the engine; float32."""

    shares: jax.Array  # [..., 3], by class
    prompt_cv: jax.Array
    output_cv: jax.Array
    length_correlation: jax.Array
    arrival_scv: jax.Array
    prefix_share: jax.Array
    acceptance_lengths: jax.Array  # [..., 5]
    short: jax.Array | None = None  # [..., len(SHORT_OUTPUTS)], shares with few output tokens; None: not known
    is_log: jax.Array | None = None  # bool, they are a log's; None: no batch of these has one

    def engine(self, params: EngineParams) -> EngineParams:
        """The engine's params in a second of such requests."""
        return params.replace(**{name: getattr(self, name) for name in OF_ENGINE})


OF_ENGINE = tuple(name for name in Kinds._fields if name not in ("shares", "short", "is_log"))


def replay(seed: jax.Array, step: jax.Array, rows: jax.Array, length: int) -> Requests:
    """Second ``(seed x length + step) mod seconds`` of a log: seed 0 starts at its first second, seed 1 one episode
    later.

    Args:
        seed: uint32.
        step: int32.
        rows: float32[seconds, 3]: requests, mean prompt, mean output.
        length: steps of an episode.
    """
    seconds = rows.shape[0]
    episode = (seed % jnp.uint32(seconds)).astype(jnp.int32) * (length % seconds) % seconds
    row = rows[(episode + step) % seconds]
    mean = jnp.maximum(rows[:, 0].mean(), 1e-6)
    return Requests(row[..., 0].astype(jnp.int32), row[..., 1], row[..., 2], row[..., 0] / mean)


def requests_of(
    trace: RequestLog | None,
    state: EnvState,
    params: EnvParams,
    task: WorkloadState | None,
    source: int | None = None,
) -> tuple[Requests, Kinds]:
    """The second's requests, and of what kind they are: the task's own draws, the fitted traffic's, a day's or a
    log's.

    Args:
        trace: the request log that params may say is replayed, or None.
        state: before the second.
        params: the task.
        task: the second's own draws; None where ``source`` is another.
        source: the only ``TRAFFIC_*`` of params, where that is known: nothing else is compiled, and what a task says
            of its requests stays a constant of a batch. None: as params say.
    """
    engine, seed, step = params.engine, state.seed, state.time
    shares = jnp.asarray(params.class_shares, jnp.float32)
    usual = Kinds(shares, *(jnp.asarray(getattr(engine, name), jnp.float32) for name in OF_ENGINE))

    def own() -> tuple[Requests, Kinds]:
        assert task is not None
        output = open_traffic.mean_output(seed, step, engine, task.arrivals)
        return Requests(task.arrivals, task.mean_prompt_len, output, jnp.ones_like(output)), usual

    def fitted() -> tuple[Requests, Kinds]:
        return open_traffic.draw_fitted(seed, step, engine), usual

    def by_day() -> tuple[Requests, Kinds]:
        drawn, mix = days.draw_day(seed, step, engine.day)
        kinds = Kinds(
            shares=mix.shares,
            prompt_cv=mix.prompt_cv,
            output_cv=mix.output_cv,
            length_correlation=mix.correlation,
            arrival_scv=mix.dispersion,
            prefix_share=mix.prefix_share,
            acceptance_lengths=mix.acceptance,
        )
        return Requests(*drawn, mix.rate / jnp.maximum(jnp.asarray(engine.rate), 1e-6)), kinds

    def logged() -> tuple[Requests, Kinds]:
        assert trace is not None
        few = jnp.asarray(trace.short_outputs, jnp.float32)
        kinds = usual._replace(short=few, is_log=jnp.bool_(True))
        return replay(seed, step, jnp.asarray(trace.rows), EPISODE_LENGTH), kinds

    # a batch of one task draws its own traffic only; where tasks are mixed, all are drawn and one is chosen
    sources = {TRAFFIC_OF_TASK: own, TRAFFIC_FITTED: fitted, TRAFFIC_DAY: by_day}
    if trace is not None:
        sources[TRAFFIC_TRACE] = logged
    if source in sources:
        return sources[source]()

    def alike(draw: Callable[[], tuple[Requests, Kinds]]) -> tuple[Requests, Kinds]:
        requests, kinds = draw()
        if trace is not None and kinds.is_log is None:
            unknown = jnp.zeros(len(SHORT_OUTPUTS), jnp.float32)
            kinds = kinds._replace(short=unknown, is_log=jnp.bool_(False))
        return requests, kinds

    return jax.lax.switch(engine.traffic, tuple(functools.partial(alike, draw) for draw in sources.values()))

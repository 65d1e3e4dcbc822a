"""``LiveEnv``: the environment's contract on a live server. A step is a real second, and metrics are measured, not
modelled.

``reset_seed``, ``step``, observation, metrics, workload, outcome, reward and log are those of ``Environment``, so that
a loop written for one runs on the other. What differs: time does not wait for the caller, a state cannot be stepped
twice, and only the knobs that a running engine has can be turned: batch_size always (admission), kv_budget where the
server tells the share of its KV cache in use (admission too: up to that share), quant_tier and prefill_disagg where
``instances`` name a server for them, prefill_disagg also where a ``spare``
engine can be leased. An engine is open-loop whatever the task: ``info["outcome"]`` counts its requests
in tasks 1 to 3 as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import httpx
import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import initial
from inferencegym_jax.live.capacity.knob import ADVICE, leases
from inferencegym_jax.live.capacity.settings import SpareSettings, check_apart
from inferencegym_jax.live.capacity.spare import Spare, opened
from inferencegym_jax.live.loop.observer import Snapshot
from inferencegym_jax.live.server.probe import probe
from inferencegym_jax.live.server.streaming import Endpoint, hide_user, open_client
from inferencegym_jax.live.trial.session import Record, Server, Session
from inferencegym_jax.live.trial.traffic import Traffic
from inferencegym_jax.models import KNOBS, EnvParams, EnvState, ServeAction, ServeObservation, check_action, plain
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.scoring.reward import request_reward
from inferencegym_jax.scoring.reward import reward as reward_of
from inferencegym_jax.spaces import Space, action_space, observation_space
from inferencegym_jax.table.derived_profile import shipped_profile

Result = TypeVar("Result")


class LiveEnv:
    """An environment whose dynamics are a server.

    Args:
        endpoint: the server.
        params: the task: its SLOs, weights and normalisers, from ``make(task, table=measured)``.
        traffic: gives the traffic of a seed, for example ``lambda seed: task_traffic(params, seed, 200, ...)``.
        spare: a second engine, which prefill_disagg starts and stops; an episode begins without it.
        instances: other servers by (quant_tier, prefill_disagg); their knobs become active, and new requests go there.
        step_seconds: 1, as the environment has it; shorter in tests only.
        base_memory_gb: memory of weights and runtime, to which the used share of the KV cache is added.
        drain_s: how long ``finish`` waits for requests in flight.
        quality_loss: of each weight format, for ``info["outcome"].quality``; default: the shipped profile's.

    Raises:
        EngineError: a server cannot be used; see ``engine.probe``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        params: EnvParams,
        traffic: Callable[[int], Traffic],
        *,
        spare: SpareSettings | None = None,
        instances: Mapping[tuple[int, bool], Endpoint] | None = None,
        step_seconds: float = 1.0,
        base_memory_gb: float = 0.0,
        drain_s: float = 30.0,
        quality_loss: Sequence[float] | None = None,
    ):
        if not 0 < step_seconds < np.inf:
            raise ValueError(f"step_seconds = {step_seconds}: must be a number above 0")
        self._traffic, self.step_seconds, self.base_memory_gb = traffic, step_seconds, base_memory_gb
        self.drain_s = drain_s
        self.quality_loss = shipped_profile().quality_loss if quality_loss is None else quality_loss
        self._choice = (int(KNOBS["quant_tier"].default), bool(KNOBS["prefill_disagg"].default))
        wanted = {**(instances or {}), self._choice: endpoint}
        if spare is not None:
            check_apart(endpoint.base_url, spare.url)
            if not leases(params):
                raise ValueError(
                    f"spare = {hide_user(spare.url)!r}: the task has no replica that can be leased; {ADVICE}"
                )
            if any(apart for _, apart in wanted):
                raise ValueError("instances: one is for prefill_disagg = true, which asks for the spare here")
        self.params = params
        self.log: list[dict[str, Any]] = []
        self.session: Session | None = None
        self._state: EnvState | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="live-env", daemon=True)
        self._thread.start()
        self._clients: list[httpx.AsyncClient] = []
        self._opened = contextlib.AsyncExitStack()
        self.spare: Spare | None = None
        self._second: Server | None = None
        try:
            self.servers = {key: self._run(self._connect(value)) for key, value in wanted.items()}
            if spare is not None:
                self.spare = self._run(self._opened.enter_async_context(opened(spare)))
                self._second = self._run(self._reach(spare))
        except BaseException:
            self.close()
            raise
        sees_cache = all(server.kv_usage is not None for server in self.servers.values())
        self.params = params.replace(active=_active(params, list(wanted), sees_cache, spare is not None))

    def __enter__(self) -> LiveEnv:
        """The environment itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def default_params(self) -> EnvParams:
        """The task, with the knobs that cannot be turned here switched off."""
        return self.params

    def action_space(self, params: EnvParams | None = None) -> Space:
        """The knobs; those that cannot be turned here are listed in ``locked``."""
        return action_space(self.params if params is None else params)

    def observation_space(self, params: EnvParams | None = None) -> Space:
        """The observation's fields."""
        del params
        return observation_space()

    def reset(self, key: jax.Array, params: EnvParams | None = None) -> tuple[ServeObservation, EnvState]:
        """Start an episode whose seed is drawn from a JAX key."""
        return self.reset_seed(int(random.seed_of_key(key)), params)

    def reset_seed(self, seed: int, params: EnvParams | None = None) -> tuple[ServeObservation, EnvState]:
        """Start the episode of a seed. What an earlier one has in flight is cancelled; traffic begins with the first
        step."""
        if params is not None and params is not self.params:
            raise ValueError("params: a live environment has one task; make another LiveEnv for another one")
        return self._begin(int(seed), 0)

    def _begin(self, seed: int, episode: int) -> tuple[ServeObservation, EnvState]:
        self.stop()
        if self.spare is not None:
            self._run(self.spare.end())
        observation, state = initial(jnp.asarray(seed, jnp.uint32), jnp.asarray(episode, jnp.int32), self.params)
        traffic = self._traffic(seed)

        async def make() -> Session:
            return Session(
                lambda: self.servers[self._choice],
                traffic,
                self.params.slo_ms,
                step_seconds=self.step_seconds,
                base_memory_gb=self.base_memory_gb,
                seed=seed,
                episode_length=int(self.params.episode_length),
                slo_tpot_ms=self.params.engine.slo_tpot_ms,
                spare=self.spare,
                second=self._second,
            )

        self.session = self._run(make())
        self.log = []
        self._state = state
        return observation, state

    def step(
        self, key: Any, state: EnvState, action: ServeAction, params: EnvParams | None = None
    ) -> tuple[ServeObservation, EnvState, Any, Any, Any, dict[str, Any]]:
        """One real second under ``action``; the six values of ``Environment.step``, auto-reset included.

        Raises:
            ValueError: a knob out of range, or a state that is not the last one: a live server cannot go back.
        """
        del key, params
        if self.session is None or state is not self._state:
            raise ValueError(
                "state: must be the one that the last reset or step returned; a live server cannot go back"
            )
        check_action(action)
        effective = self._effective(action)
        tier, apart = self._choice
        quality = 1.0 - float(self.quality_loss[tier])
        gpus = 2.0 if apart else 1.0
        wants_spare = self.spare is not None and bool(effective.prefill_disagg)
        snapshot = self._run(
            self.session.step(int(effective.batch_size), float(effective.kv_budget), gpus, quality, wants_spare)
        )
        reward = np.float32(self._reward(snapshot))
        after = self._after(state, snapshot)
        info = {
            "timestep": after.time,
            "metrics": snapshot.metrics,
            "workload": snapshot.workload,
            "outcome": snapshot.outcome,
            "violation_rate": snapshot.observation.slo_violation_rate,
            "oom": np.bool_(False),
            "ttft_mean_ms": np.float32(snapshot.ttft_mean_ms),
            "ttft_p90_ms": np.float32(snapshot.ttft_p90_ms),
            "seconds": snapshot.seconds,
            "action": effective,
            "final_observation": snapshot.observation,
        }
        entry = {"action": effective.to_dict(), "reward": float(reward), "metrics": plain(snapshot.metrics)}
        self.log.append(entry | {"outcome": plain(snapshot.outcome)})
        truncated = np.bool_(int(after.time) >= int(self.params.episode_length))
        info |= {"terminated": np.bool_(False), "truncated": truncated}
        observation = snapshot.observation
        self._state = after
        if truncated:
            info["log"], info["records"] = self.log, self.finish()
            episode = int(after.episode) + 1
            following = random.episode_seed(jnp.uint32(int(state.seed)), jnp.int32(episode))
            observation, after = self._begin(int(following), episode)
        return observation, after, reward, np.bool_(False), truncated, info

    def _reward(self, snapshot: Snapshot) -> Any:
        """The task's own reward: by request where it is an open-loop task, by the second where it is not."""
        if not int(self.params.engine.open_loop):
            return reward_of(snapshot.metrics, snapshot.workload, self.params)
        violated = snapshot.observation.slo_violation_rate
        return request_reward(snapshot.metrics, snapshot.workload, snapshot.outcome, violated, self.params)

    def _effective(self, action: ServeAction) -> ServeAction:
        """The action with the knobs that cannot be turned at their default, and the server that it asks for."""
        active = dict(zip(KNOBS, np.asarray(self.params.active), strict=True))
        values = {name: getattr(action, name) if active[name] else knob.default for name, knob in KNOBS.items()}
        wants_spare = bool(values["prefill_disagg"]) if self.spare is not None else None
        choice = (int(values["quant_tier"]), bool(values["prefill_disagg"]) and wants_spare is None)
        if choice in self.servers:
            self._choice = choice
        values["quant_tier"], values["prefill_disagg"] = self._choice
        if wants_spare is not None:
            values["prefill_disagg"] = wants_spare
        return ServeAction(**values)

    @staticmethod
    def _after(state: EnvState, snapshot: Snapshot) -> EnvState:
        workload, observation = snapshot.workload, snapshot.observation
        return dataclasses.replace(
            state,
            time=state.time + 1,
            queue=jnp.asarray(workload.queue_depth, jnp.int32),
            arrival_ema=jnp.asarray(workload.arrival_rate, jnp.float32),
            cost_so_far=jnp.asarray(observation.cost_so_far, jnp.float32),
        )

    def finish(self) -> list[Record]:
        """Let what has arrived finish (``drain_s`` at most) and return the record of every request."""
        if self.session is None:
            return []
        session, self.session = self.session, None
        self._run(session.drain(self.drain_s))
        return session.records

    def stop(self) -> list[Record]:
        """End the episode at once, cancelling what is in flight, and return the records."""
        if self.session is None:
            return []
        session, self.session = self.session, None
        self._run(session.stop())
        return session.records

    def close(self) -> None:
        """Stop, and close connections and thread."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self.stop()
        with contextlib.suppress(Exception):
            self._run(self._opened.aclose())
        for client in self._clients:
            with contextlib.suppress(Exception):
                self._run(client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connect(self, endpoint: Endpoint) -> Server:
        client = open_client(endpoint)
        self._clients.append(client)
        engine = await probe(client, endpoint)
        return Server(engine.endpoint, client, engine.kv_usage, engine.kv_cache_tokens)

    async def _reach(self, spare: SpareSettings) -> Server:
        """How the spare is reached: as the first server, which is of the same kind, without asking one that is off."""
        first = self.servers[self._choice]
        endpoint = dataclasses.replace(first.endpoint, base_url=spare.url)
        client = open_client(endpoint)
        self._clients.append(client)
        return dataclasses.replace(first, endpoint=endpoint, client=client)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _active(params: EnvParams, choices: list[tuple[int, bool]], sees_cache: bool, has_spare: bool) -> np.ndarray:
    """bool[5]: the task's active knobs that can be turned here.

    In the closed-loop tasks kv_budget is what running requests keep of their cache, which no engine has as a knob.
    """
    turnable = {
        "batch_size": True,
        "kv_budget": sees_cache and bool(params.engine.open_loop),
        "quant_tier": len({quant for quant, _ in choices}) > 1,
        "prefill_disagg": has_spare or len({disagg for _, disagg in choices}) > 1,
    }
    task = np.asarray(params.active)
    return np.array([bool(task[i]) and turnable.get(name, False) for i, name in enumerate(KNOBS)])

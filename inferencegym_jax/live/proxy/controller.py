"""Once a second: close the window, ask the policy, set the gate. When the policy fails, plain pass-through.

The policy runs in a thread of its own with a deadline, so that neither a slow nor a hanging one delays a token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import httpx

from inferencegym_jax.live.loop.admission_line import CLASSES
from inferencegym_jax.live.loop.gate import Gate
from inferencegym_jax.live.loop.observer import Observer, Snapshot
from inferencegym_jax.live.proxy.metrics import ControlMetrics
from inferencegym_jax.live.server.probe import read_metrics
from inferencegym_jax.models import ServeAction, ServeObservation, check_action
from inferencegym_jax.policies.policy_runner import PolicyError

log = logging.getLogger(__name__)


class Asks(Protocol):
    """Anything that turns an observation into an action: ``policy.PolicyRunner``."""

    def ask(self, observation: ServeObservation) -> ServeAction:
        """The action, or an exception."""
        ...


class Controller:
    """The loop and what it last saw and did.

    Args:
        gate: whose limits are set to the policy's batch_size and kv_budget; the other knobs cannot be changed from
            outside an engine.
        observer: fed by the proxy.
        policy: asked once every ``step_seconds``.
        name: what to call the policy in ``/status``.
        metrics: counts the policy's failures.
        step_seconds: 1, as in the environment; shorter in tests only.
        applies_kv_budget: whether the policy means by kv_budget the share of the KV pool up to which requests are
            admitted, as policies of open-loop tasks do.
    """

    def __init__(
        self,
        gate: Gate,
        observer: Observer,
        policy: Asks,
        name: str,
        metrics: ControlMetrics,
        step_seconds: float = 1.0,
        applies_kv_budget: bool = True,
    ):
        self.applies_kv_budget = applies_kv_budget
        self.gate, self.observer, self.policy, self.name, self.metrics = gate, observer, policy, name, metrics
        self.step_seconds = step_seconds
        self.started_s = time.perf_counter()
        self.fallback: str | None = "no second has passed yet"
        self.fallback_steps = 0
        self.action: ServeAction | None = None
        self.snapshot: Snapshot | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._asked: asyncio.Future[ServeAction] | None = None

    async def run(self, client: httpx.AsyncClient) -> None:
        """Loop until cancelled. A second that comes late is longer, and is divided by its own length."""
        last = time.perf_counter()
        due = last + self.step_seconds
        try:
            while True:
                await asyncio.sleep(max(due - time.perf_counter(), 0.0))
                engine = await read_metrics(client, timeout_s=self.step_seconds / 2)
                now = time.perf_counter()
                try:
                    if engine is not None:
                        self.gate.read_cache(engine.kv_usage, engine.kv_cache_tokens)
                    self.snapshot = self.observer.close(now, now - last, engine)
                    await self._decide(self.snapshot.observation)
                except Exception as error:  # whatever it is, requests go on
                    log.exception("the control loop failed")
                    self._fall_back(f"the control loop failed: {error}")
                last = now
                due = max(due + self.step_seconds, time.perf_counter())
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _fall_back(self, reason: str) -> None:
        if self.fallback is None or self.fallback_steps == 0:
            log.warning("policy %s: %s; passing everything through", self.name, reason)
        self.fallback = reason[:300]
        self.fallback_steps += 1
        self.metrics.policy_failures.inc()
        self.gate.limit, self.gate.kv_budget = None, 1.0

    async def _decide(self, observation: ServeObservation) -> None:
        try:
            action = await self._checked(observation)
        except (PolicyError, TimeoutError) as error:
            self._fall_back(str(error) or "no answer in time")
            return
        if self.fallback is not None and self.fallback_steps:
            log.warning("policy %s: answers again", self.name)
        self.fallback = None
        self.action = action
        self.gate.limit = int(action.batch_size)
        self.gate.kv_budget = float(action.kv_budget) if self.applies_kv_budget else 1.0

    async def _ask(self, observation: ServeObservation) -> ServeAction:
        if self._asked is not None and not self._asked.done():
            raise PolicyError("it still works on an earlier second")
        loop = asyncio.get_running_loop()
        self._asked = asyncio.ensure_future(loop.run_in_executor(self._thread, self.policy.ask, observation))
        self._asked.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(self._asked), self.step_seconds)
        except (PolicyError, TimeoutError):
            raise
        except Exception as error:
            raise PolicyError(f"the policy failed: {error}") from error

    async def _checked(self, observation: ServeObservation) -> ServeAction:
        action = await self._ask(observation)
        try:
            check_action(action)
        except (TypeError, ValueError) as error:
            raise PolicyError(str(error)) from None
        return action

    def _kv_budget_applies(self) -> str:
        """Whether the policy's kv_budget limits admission here, else why not."""
        if not self.applies_kv_budget:
            return "no: a policy of a closed-loop task means by it what running requests keep of their cache"
        return "yes" if self.gate.sees_cache else "no: the engine's /metrics do not tell the KV cache in use"

    def status(self) -> dict[str, Any]:
        """What ``GET /status`` answers."""
        gate = self.gate
        snapshot = self.snapshot
        return {
            "policy": self.name,
            "mode": "control" if self.fallback is None else "pass-through",
            "fallback": self.fallback,
            "fallback_steps": self.fallback_steps,
            "batch_size": gate.limit,
            "kv_budget": gate.kv_budget,
            "kv_budget_applies": self._kv_budget_applies(),
            "kv_cache_use": gate.cache_use(),
            "running": gate.inside,
            "waiting": dict(zip(CLASSES, gate.waiting_by_class, strict=True)),
            "queue_capacity": gate.capacity,
            "requests": {
                "entered": gate.entered,
                "admitted": gate.admitted,
                "finished": gate.left,
                "rejected": gate.rejected,
                "given_up": gate.given_up,
            },
            "action": self.action.to_dict() if self.action is not None else None,
            "observation": snapshot.observation.to_dict() if snapshot is not None else None,
            "steps": self.observer.steps,
            "uptime_s": time.perf_counter() - self.started_s,
        }

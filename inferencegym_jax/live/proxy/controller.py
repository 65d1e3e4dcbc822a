"""Once a second: close the window, ask the policy, set gate and spare. When the policy fails, plain pass-through.

The policy runs in a thread of its own with a deadline, so that neither a slow nor a hanging one delays a token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from inferencegym_jax.live.capacity.engines import Engines
from inferencegym_jax.live.capacity.knob import SECOND_GPU_KNOB
from inferencegym_jax.live.capacity.spare import Spare
from inferencegym_jax.live.loop.admission_line import CLASSES
from inferencegym_jax.live.loop.observer import Observer, Snapshot
from inferencegym_jax.live.proxy.metrics import ControlMetrics
from inferencegym_jax.live.proxy.policy_source import Asks
from inferencegym_jax.live.server.combined import Combined, read_all
from inferencegym_jax.models import ServeAction, ServeObservation, check_action
from inferencegym_jax.policies.policy_runner import PolicyError

log = logging.getLogger(__name__)


class Controller:
    """The loop and what it last saw and did.

    Args:
        observer: fed by the proxy. The limits of its gate are set to the policy's batch_size and kv_budget; the second
            GPU is the spare, where there is one; the other knobs cannot be changed from outside an engine.
        policy: asked once every ``step_seconds``.
        name: what to call the policy in ``/status``.
        metrics: counts the policy's failures.
        step_seconds: 1, as in the environment; shorter in tests only.
        applies_kv_budget: whether the policy means by kv_budget the share of the KV pool up to which requests are
            admitted, as policies of open-loop tasks do.
        observes: whether nothing that the policy answers is done.
    """

    def __init__(
        self,
        observer: Observer,
        policy: Asks,
        name: str,
        metrics: ControlMetrics,
        step_seconds: float = 1.0,
        *,
        applies_kv_budget: bool = True,
        observes: bool = False,
    ):
        self.applies_kv_budget, self.observes = applies_kv_budget, observes
        self.observer, self.policy, self.name, self.metrics = observer, policy, name, metrics
        self.gate = observer.gate
        self.engines: Engines[Any] = Engines(observer.gate, None)
        self.spare: Spare | None = None
        self.step_seconds = step_seconds
        self.started_s = time.perf_counter()
        self.fallback: str | None = "no second has passed yet"
        self.fallback_steps = 0
        self.action: ServeAction | None = None
        self.snapshot: Snapshot | None = None
        self._combined = Combined()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._asked: asyncio.Future[ServeAction] | None = None

    def replace(self, policy: Asks, name: str) -> None:
        """Ask another policy from the next second on; one that hangs hinders it in nothing."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._asked = None
        self.policy, self.name = policy, name

    async def run(
        self, engines: Engines[Any], clients: Mapping[str, httpx.AsyncClient], spare: Spare | None = None
    ) -> None:
        """Loop until cancelled. A second that comes late is longer, and is divided by its own length.

        Args:
            engines: that are controlled.
            clients: by which their metrics are read: "upstream" and, where there is one, "spare".
            spare: the second of them.
        """
        self.engines, self.spare = engines, spare
        last = time.perf_counter()
        due = last + self.step_seconds
        billed_s = 0.0
        try:
            while True:
                await asyncio.sleep(max(due - time.perf_counter(), 0.0))
                engine = await self._read(clients)
                now = time.perf_counter()
                before_s, billed_s = billed_s, engines.billed_s
                try:
                    if engine is not None:
                        self.gate.read_cache(engine.kv_usage, engine.kv_cache_tokens, engine.running)
                    gpus = 1.0 + (billed_s - before_s) / (now - last)
                    self.snapshot = self.observer.close(now, now - last, engine, gpus=gpus)
                    await self._decide(self.snapshot.observation)
                except Exception as error:  # whatever it is, requests go on
                    log.exception("the control loop failed")
                    self._fall_back(f"the control loop failed: {error}")
                last = now
                due = max(due + self.step_seconds, time.perf_counter())
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, clients: Mapping[str, httpx.AsyncClient]) -> Any:
        up = {"spare" if place.spare is not None else "upstream": place for place in self.engines.up}
        readings = await read_all({name: clients[name] for name in up}, self.step_seconds / 2)
        return self._combined.read(readings, {name for name, place in up.items() if place.serves})

    def _fall_back(self, reason: str) -> None:
        if self.fallback is None or self.fallback_steps == 0:
            log.warning("policy %s: %s; passing everything through", self.name, reason)
        self.fallback = reason[:300]
        self.fallback_steps += 1
        self.metrics.policy_failures.inc()
        self._open()  # the spare stays as it is: what was leased is not the policy's failure's to end

    def _open(self) -> None:
        self.engines.set_batch_size(None)
        self.gate.kv_budget = 1.0

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
        if self.observes:
            return
        self.engines.set_batch_size(int(action.batch_size))
        self.gate.kv_budget = float(action.kv_budget) if self.applies_kv_budget else 1.0
        if self.spare is not None:
            self.spare.ask(bool(getattr(action, SECOND_GPU_KNOB)))

    async def _ask(self, observation: ServeObservation) -> ServeAction:
        if self._asked is not None and not self._asked.done():
            raise PolicyError("it still works on an earlier second")
        loop = asyncio.get_running_loop()
        self._asked = asyncio.ensure_future(loop.run_in_executor(self._thread, self.policy.ask, observation))
        self._asked.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            async with asyncio.timeout(self.step_seconds):  # wait_for may lose a cancellation (Python 3.11)
                return await asyncio.shield(self._asked)
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

    @property
    def mode(self) -> str:
        """control, pass-through while the policy is out of use, or observe in a dry run."""
        if self.observes:
            return "observe"
        return "control" if self.fallback is None else "pass-through"

    def would_wait(self) -> int:
        """Requests that wait, or in a dry run would wait: those beyond the policy's batch_size on every engine."""
        if not self.observes or self.action is None or self.fallback is not None:
            return self.gate.waiting
        return max(self.gate.inside - int(self.action.batch_size) * len(self.engines.up), 0)

    def status(self) -> dict[str, Any]:
        """What ``GET /status`` answers."""
        gate = self.gate
        snapshot = self.snapshot
        return {
            "policy": self.name,
            "mode": self.mode,
            "fallback": self.fallback,
            "fallback_steps": self.fallback_steps,
            "batch_size": self.engines.batch_size,
            "limit": gate.limit,
            "kv_budget": gate.kv_budget,
            "kv_budget_applies": self._kv_budget_applies(),
            "kv_cache_use": gate.cache_use(),
            "running": gate.inside,
            "would_wait": self.would_wait(),
            "passed_on": self.engines.passed_on,
            "spare": self.spare.status() if self.spare is not None else None,
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

"""Another policy without a restart: ``POST /policy`` with a token, and SIGHUP, which reads the same name again.

A policy that cannot be read or does not suit changes nothing: the one in force goes on, and the answer, ``/status`` and
a metric say why. Reading and compiling happen in a thread; the first second under the new policy is the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from inferencegym_jax.live.proxy.controller import Controller
from inferencegym_jax.live.proxy.metrics import ControlMetrics
from inferencegym_jax.live.proxy.policy_source import Loads

log = logging.getLogger(__name__)
LARGEST_BODY = 10_000  # bytes


class Reloader:
    """Gives the controller another policy.

    Args:
        controller: that asks it.
        source: of policies by name; None: nothing can be loaded.
        token: that a request must show; empty: none may.
        metrics: counts what was loaded and what was refused.
    """

    def __init__(self, controller: Controller, source: Loads | None, token: str, metrics: ControlMetrics):
        self.controller, self.source, self.token, self.metrics = controller, source, token, metrics
        self.loaded_at = _now()
        self.failure: str | None = None
        self._one = asyncio.Lock()

    async def again(self) -> None:
        """Read the policy in force once more, as SIGHUP asks; a failure is reported."""
        with contextlib.suppress(ValueError):
            await self.load(self.controller.name)

    async def load(self, name: str) -> None:
        """Put the policy of a name in force.

        Raises:
            ValueError: why not; the one before stays.
        """
        async with self._one:
            try:
                if self.source is None:
                    raise ValueError("policy: this proxy was given one that has no name; nothing can be loaded")
                policy = await asyncio.to_thread(self.source.load, name)
            except (ValueError, TypeError, OSError) as error:
                self.failure = str(error)[:300]
                self.metrics.policy_reloads.labels("refused").inc()
                log.warning("policy %s: not loaded: %s", name, self.failure)
                raise ValueError(self.failure) from error
            self.controller.replace(policy, name)
            self.loaded_at, self.failure = _now(), None
            self.metrics.policy_reloads.labels("loaded").inc()
            log.warning("policy %s: loaded", name)

    async def answer(self, request: Request) -> Response:
        """``POST /policy``: the name in ``{"policy": ...}``, or the one in force read again where there is no body."""
        if not self.token:
            return _refusal(403, "no token was set when the proxy was started, so nobody may change its policy")
        shown = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(shown, f"Bearer {self.token}".encode()):
            return _refusal(401, "the header Authorization must be Bearer and the proxy's token")
        body = await request.body()
        name: Any = self.controller.name
        if body.strip():
            try:
                if len(body) > LARGEST_BODY:
                    raise ValueError
                name = json.loads(body)["policy"]
            except (ValueError, KeyError, TypeError, RecursionError):
                return _refusal(400, 'the body must be {"policy": NAME}, or empty for the one in force')
        if not isinstance(name, str) or not name.strip():
            return _refusal(400, f"policy = {str(name)[:60]!r}: must be the name of a policy")
        try:
            await self.load(name)
        except ValueError as error:
            return _refusal(400, str(error))
        return JSONResponse({"policy": self.controller.name, "loaded_at": self.loaded_at})

    def status(self) -> dict[str, Any]:
        """What ``GET /status`` says of it; JSON-ready."""
        return {"policy_loaded_at": self.loaded_at, "policy_refused": self.failure}


@contextlib.contextmanager
def on_hangup(call: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Run ``call`` at every SIGHUP, where this loop may have signals: on the main thread, of a POSIX system."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()

    def begin() -> None:
        task = loop.create_task(call())
        running.add(task)
        task.add_done_callback(running.discard)

    loop.add_signal_handler(hangup, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(hangup)


def _refusal(status: int, message: str) -> Response:
    kind = "invalid_request_error" if status == 400 else "authentication_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

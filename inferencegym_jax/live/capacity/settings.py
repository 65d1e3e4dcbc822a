"""How a spare engine is started, stopped and watched; checked where it is written down."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from urllib.parse import urlsplit

from inferencegym_jax.live.server.streaming import check_url, hide_user

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class SpareSettings:
    """A spare engine: either commands start and stop it, or it sleeps and is woken.

    Attributes:
        url: its root URL.
        start_cmd: shell command that starts it: one that stays in the foreground as long as the engine runs, or one
            that ends with status 0 once the start is under way (then there must be a ``stop_cmd``).
        stop_cmd: shell command that stops it; without it the start command's process group is ended.
        wake_path, sleep_path: of its HTTP endpoints, to which a POST wakes it and puts it to sleep (vLLM:
            ``/wake_up`` and ``/sleep?level=1``).
        health_path: answers 200 where it serves.
        lease_s: shortest time for which it is kept once it was asked for.
        start_timeout_s: from the start to the first healthy answer; beyond it the start has failed.
        stop_timeout_s: of a stop, until its health check no longer answers.
        health_every_s: between two health checks, and the longest that one may take.
        backoff_s, most_backoff_s: wait after a failed start or stop; doubled at each further one up to the longest.
    """

    url: str
    start_cmd: str | None = None
    stop_cmd: str | None = None
    wake_path: str | None = None
    sleep_path: str | None = None
    health_path: str = "/health"
    lease_s: float = 60.0
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 60.0
    health_every_s: float = 1.0
    backoff_s: float = 1.0
    most_backoff_s: float = 60.0

    def __post_init__(self) -> None:
        check_url("spare", self.url)
        commands = {"start-cmd": self.start_cmd, "stop-cmd": self.stop_cmd}
        paths = {"wake-path": self.wake_path, "sleep-path": self.sleep_path}
        for name, value in {**commands, **paths}.items():
            if value is not None and not value.strip():
                raise ValueError(f"{name} = {value!r}: must not be empty")
        named = [name for name, value in paths.items() if value is not None]
        if named and (self.start_cmd is not None or self.stop_cmd is not None):
            raise ValueError(
                f"{named[0]} = {paths[named[0]]!r}: contradicts the start and stop commands; a spare is either started "
                "and stopped, or woken and put to sleep"
            )
        if len(named) == 1:
            other = "sleep-path" if named[0] == "wake-path" else "wake-path"
            raise ValueError(f"{named[0]} = {paths[named[0]]!r}: needs {other} beside it")
        if not named and self.start_cmd is None:
            raise ValueError(
                f"spare = {hide_user(self.url)!r}: nothing says how it starts; give start-cmd (and stop-cmd), or "
                "wake-path and sleep-path"
            )
        for name, value in {**paths, "health-path": self.health_path}.items():
            if value is not None and not value.startswith("/"):
                raise ValueError(f"{name} = {value!r}: must begin with /")
        least = {"lease": (self.lease_s, 0.0)}
        above = {
            "start-timeout": self.start_timeout_s,
            "stop-timeout": self.stop_timeout_s,
            "health-every": self.health_every_s,
            "backoff": self.backoff_s,
            "most-backoff": self.most_backoff_s,
        }
        for name, (value, low) in least.items():
            if not low <= value < math.inf:
                raise ValueError(f"{name} = {value}: must be a number of seconds of at least {low:g}")
        for name, value in above.items():
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} = {value}: must be a number of seconds above 0")

    @property
    def sleeps(self) -> bool:
        """Whether it is woken and put to sleep, instead of started and stopped."""
        return self.wake_path is not None


def check_apart(upstream: str, spare: str) -> None:
    """Raise ``ValueError`` where the spare is the upstream: every name of this machine is one host."""
    if _place(upstream) == _place(spare):
        raise ValueError(
            f"spare = {hide_user(spare)!r}: is the upstream {hide_user(upstream)!r}; must be another engine"
        )


def _place(url: str) -> tuple[str, int | None, str]:
    parts = urlsplit(url)
    host = (parts.hostname or "").lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
        host = "localhost" if address.is_loopback or address.is_unspecified else str(address)
    except ValueError:
        pass  # a name
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return host, parts.port or PORTS.get(parts.scheme), path

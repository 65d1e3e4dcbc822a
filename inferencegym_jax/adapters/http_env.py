"""``HTTPGymEnv``: a Gymnasium environment whose episodes run on a server, over HTTP (``docs/server.md``).

Same spaces, actions and trajectories as ``gymnasium_env.InferenceGymEnv``. Needs the extras ``gym`` and ``client``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import httpx
import numpy as np
from gymnasium import spaces

from inferencegym_jax.adapters.gymnasium_spaces import (
    action_space,
    check_options,
    flatten,
    next_episode,
    observation_space,
    to_action,
)
from inferencegym_jax.models import OBSERVATION, ServeObservation, check_seed

TIMEOUT_SECONDS = 30.0


class ServerError(RuntimeError):
    """The server refused or could not be reached; the message says what it answered."""


class HTTPGymEnv(gymnasium.Env[np.ndarray, Any]):
    """One environment on a server, which holds the session.

    Args:
        base_url: for example "http://localhost:7860".
        task_id: id or name, as the server knows it.
        normalised: observations in [0, 1] (default) or in natural units.
        config: overrides of a reset, see ``make``.
        client: an ``httpx.Client`` of your own (proxies, tests); it is not closed by ``close``.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        base_url: str,
        task_id: int | str = 1,
        *,
        normalised: bool = True,
        config: Mapping[str, Any] | None = None,
        client: httpx.Client | None = None,
    ):
        self.task_id: int | str = task_id
        self.normalised: bool = normalised
        self.config: dict[str, Any] = dict(config or {})
        self.base_url: str = base_url.rstrip("/")
        self.action_space: spaces.Space[Any] = action_space()
        self.observation_space: spaces.Space[Any] = observation_space(normalised)
        self._client = client or httpx.Client(timeout=TIMEOUT_SECONDS)
        self._owns_client = client is None
        self._session: str | None = None
        self._seed: int | None = None
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; ``info`` holds its seed and session_id. Without a seed: the next one, as auto-reset would
        choose it. There are no options."""
        check_options(options)
        super().reset(seed=None if seed is None else check_seed(seed))
        self._seed, self._episode = next_episode(seed, self._seed, self._episode, self.np_random)
        body: dict[str, Any] = {"task_id": self.task_id, "seed": self._seed}
        if self.config:
            body["config"] = self.config
        response = self._post("/reset", body)
        self._session = response["session_id"]
        return self._observe(response), {"seed": self._seed, "session_id": self._session}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One second of serving; actions as ``InferenceGymEnv`` takes them. An episode ends by truncation."""
        if self._session is None:
            raise gymnasium.error.ResetNeeded("step before reset: call reset()")
        checked = to_action(action).to_dict()  # what a mapping leaves out is the server's to fill in
        knobs = {name: checked[name] for name in action} if isinstance(action, Mapping) else checked
        body = {"session_id": self._session, "action": knobs}
        response = self._post("/step", body)
        return (
            self._observe(response),
            float(response["reward"]),
            False,
            bool(response["done"]),
            response.get("info") or {},
        )

    def close(self) -> None:
        """Close the connection."""
        if self._owns_client:
            self._client.close()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles before the first reset; an episode is the server's and cannot be had twice.

        Raises:
            TypeError: an episode is under way, or the client is one's own.
        """
        if self._session is not None or not self._owns_client:
            what = "its episode is the server's" if self._session is not None else "its client is yours"
            raise TypeError(f"HTTPGymEnv cannot be copied or pickled: {what}; make another with the same arguments")
        return {name: value for name, value in vars(self).items() if name != "_client"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a connection of its own."""
        self.__dict__.update(state)
        self._client = httpx.Client(timeout=TIMEOUT_SECONDS)

    def _observe(self, response: Mapping[str, Any]) -> np.ndarray:
        fields = {name: np.asarray(response["observation"][name], np.float32) for name in OBSERVATION}
        return flatten(ServeObservation(**fields), self.normalised)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.base_url}{path}"
        try:
            response = self._client.post(url, json=body)
        except httpx.HTTPError as error:
            raise ServerError(f"POST {url}: no answer ({error}); is the server running (`make serve`)?") from error
        if not response.is_success:
            raise ServerError(f"POST {url}: {response.status_code} {response.text[:300]}")
        return response.json()

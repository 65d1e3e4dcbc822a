"""An OpenAI-compatible endpoint: where it is, what was asked of it, and chat completions with retries. Needs httpx."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

RETRY_STATUS = (408, 409, 425, 429, 500, 502, 503, 504, 529)
LONGEST_PAUSE_S = 30.0


class EndpointError(RuntimeError):
    """The endpoint cannot be used: not reached, refused (with ``status``), or its answer is no chat completion."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """Where the model is.

    Attributes:
        base_url: up to and with ``/v1``.
        model: as the endpoint knows it.
        api_key: sent as a bearer token where not empty; never printed.
        timeout_s: for one answer.
        tries: of one request, when the endpoint is busy or breaks off.
        input_price, output_price: of a million tokens, for the cost count.
    """

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    timeout_s: float = 60.0
    tries: int = 4
    input_price: float = 0.0
    output_price: float = 0.0

    @staticmethod
    def from_environment() -> Endpoint:
        """From OPENAI_BASE_URL (or API_BASE_URL), MODEL (or MODEL_NAME), OPENAI_API_KEY (or HF_TOKEN), and PRICE_INPUT
        and PRICE_OUTPUT (of a million tokens).

        Raises:
            EndpointError: no URL, no model, or a price that is no number; says which variable to set.
        """

        def first(*names: str) -> str:
            return next((os.environ[name] for name in names if os.environ.get(name)), "")

        url, model = first("OPENAI_BASE_URL", "API_BASE_URL"), first("MODEL", "MODEL_NAME")
        if not url.startswith(("http://", "https://")):
            raise EndpointError(
                f"OPENAI_BASE_URL = {url!r}: set it to an OpenAI-compatible endpoint, for example http://127.0.0.1:8000/v1"
            )
        if not model:
            raise EndpointError("MODEL is not set: set it to the model's name at the endpoint")
        prices = []
        for name in ("PRICE_INPUT", "PRICE_OUTPUT"):
            try:
                prices.append(float(os.environ.get(name) or 0.0))
            except ValueError:
                raise EndpointError(
                    f"{name} = {os.environ[name]!r}: must be a number, the price of a million tokens"
                ) from None
        return Endpoint(url.rstrip("/"), model, first("OPENAI_API_KEY", "HF_TOKEN", "API_KEY"), 60.0, 4, *prices)


@dataclass
class Usage:
    """A running count of what the model was asked and what it cost."""

    calls: int = 0
    retries: int = 0  # requests sent again: busy endpoint, broken connection
    malformed: int = 0  # answers that were no action
    held: int = 0  # decisions given up: the knobs stayed as they were
    input_tokens: int = 0
    output_tokens: int = 0
    uncounted: int = 0  # answers without a token count
    cost: float = 0.0

    def add(self, reported: Any, endpoint: Endpoint) -> None:
        """Count one answer."""
        self.calls += 1
        counts = [
            reported.get(key) if isinstance(reported, Mapping) else None
            for key in ("prompt_tokens", "completion_tokens")
        ]
        if not all(isinstance(count, int) and not isinstance(count, bool) for count in counts):
            self.uncounted += 1
            return
        prompt_tokens, completion_tokens = int(counts[0] or 0), int(counts[1] or 0)
        self.input_tokens += prompt_tokens
        self.output_tokens += completion_tokens
        self.cost += (prompt_tokens * endpoint.input_price + completion_tokens * endpoint.output_price) / 1e6


class ChatClient:
    """Chat completions over HTTP with retries; one connection pool for all calls."""

    def __init__(self, endpoint: Endpoint, usage: Usage, pause: Callable[[float], None] = time.sleep):
        try:
            import httpx
        except ImportError:
            raise ImportError("language-model agents need httpx: pip install 'inferencegym-jax[client]'") from None
        headers = {"authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        self._errors = (httpx.TransportError,)
        self._http = httpx.Client(timeout=endpoint.timeout_s, headers=headers)
        self.endpoint: Endpoint = endpoint
        self.usage: Usage = usage
        self._pause = pause

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request: the message of its first choice.

        Raises:
            EndpointError: not reached after all tries, refused (status and reason are given), or no chat completion.
        """
        url, tries = f"{self.endpoint.base_url}/chat/completions", self.endpoint.tries
        problem = ""
        for attempt in range(tries):
            if attempt:
                self.usage.retries += 1
            wait = min(0.5 * 2**attempt, LONGEST_PAUSE_S)
            try:
                response = self._http.post(url, json=dict(body))
            except self._errors as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return self._message(response)
                problem = f"status {response.status_code}: {response.text[:300]}"
                if response.status_code not in RETRY_STATUS:
                    raise EndpointError(f"{url}: {problem}", response.status_code)
                wait = _retry_after(response.headers.get("retry-after"), wait)
            if attempt + 1 < tries:
                self._pause(wait)
        raise EndpointError(f"{url}: gave up after {tries} tries; last: {problem}")

    def _message(self, response: Any) -> dict[str, Any]:
        try:
            completion = response.json()
            message = completion["choices"][0]["message"]
        except (ValueError, LookupError, TypeError):
            raise EndpointError(f"{self.endpoint.base_url}: not a chat completion: {response.text[:300]}") from None
        if not isinstance(message, dict):
            raise EndpointError(f"{self.endpoint.base_url}: not a chat completion: {response.text[:300]}")
        self.usage.add(completion.get("usage"), self.endpoint)
        return message


def _retry_after(text: str | None, otherwise: float) -> float:
    try:
        return min(max(float(text or ""), 0.0), LONGEST_PAUSE_S)
    except ValueError:
        return otherwise

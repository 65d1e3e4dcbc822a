"""What the proxy reads of the traffic that it passes on: class, prompt length, tokens. It changes none of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inferencegym_jax.live.loop.admission_line import CLASSES

GENERATION_PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/generate")
PRIORITY_HEADER = b"x-priority"
CHARACTERS_A_TOKEN = 4  # rule of thumb for English text; ids are counted exactly
_NAMES = {name: i for i, name in enumerate(CLASSES)} | {"best-effort": 2, "0": 0, "1": 1, "2": 2}


class BadPriority(ValueError):
    """A priority that is none of the allowed ones."""


@dataclass(frozen=True)
class Seen:
    """What a generation request says of itself."""

    klass: int
    prompt_tokens: float
    streams: bool


def read_request(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Seen:
    """Class, estimated prompt length and whether it streams.

    The class is the ``x-priority`` header's (interactive, batch, best_effort or 0, 1, 2), else that of the body's
    ``priority`` as vLLM reads it (lower is sooner: 0 and below interactive, 1 batch, 2 and above best effort), else
    interactive.

    Raises:
        BadPriority: naming the value and what is allowed.
    """
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        data = {}
    return Seen(_klass(headers, data), prompt_tokens(data), data.get("stream") is True)


def _klass(headers: Iterable[tuple[bytes, bytes]], data: dict[str, Any]) -> int:
    for name, value in headers:
        if name.lower() == PRIORITY_HEADER:
            text = value.decode("latin-1").strip().lower()
            if text not in _NAMES:
                raise BadPriority(f"x-priority = {text[:40]!r}: must be {', '.join(CLASSES)}, or 0, 1, 2")
            return _NAMES[text]
    priority = data.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise BadPriority(
            f"priority = {str(priority)[:40]!r}: must be a whole number (0 interactive, 1 batch, 2 best effort)"
        )
    return min(max(priority, 0), 2)


def prompt_tokens(data: dict[str, Any]) -> float:
    """Tokens of a request's prompt: exact for token ids, a quarter of the characters for text."""
    prompt = data.get("prompt", data.get("messages", data.get("input", "")))
    if isinstance(prompt, list) and all(isinstance(x, int) for x in prompt):
        return float(len(prompt))
    return _characters(prompt) / CHARACTERS_A_TOKEN


def _characters(part: Any) -> int:
    if isinstance(part, str):
        return len(part)
    if isinstance(part, list):
        return sum(CHARACTERS_A_TOKEN if isinstance(x, int) else _characters(x) for x in part)
    if isinstance(part, dict):
        return _characters(part.get("content", part.get("text", "")))
    return 0


class EventCounter:
    """Counts server-sent events in a stream of chunks, wherever the chunks are cut; about one token an event."""

    def __init__(self) -> None:
        self._tail = b""
        self.total = 0

    def feed(self, chunk: bytes) -> int:
        """Events that end in this chunk, without the closing ``[DONE]``."""
        text = self._tail + chunk
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        *ended, self._tail = text.split(b"\n\n")
        count = sum(1 for event in ended if b"data:" in event and b"data: [DONE]" not in event)
        self.total += count
        return count


def completion_tokens(body: bytes) -> int:
    """``usage.completion_tokens`` of an answer in one piece; 0 where it has none."""
    try:
        return int(json.loads(body)["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return 0

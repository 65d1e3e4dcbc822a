"""What the proxy reads of requests that it passes on: route, class, prompt length. It changes none of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inferencegym_jax.live.loop.admission_line import CLASSES

# ends of the paths by which engines generate: vLLM, SGLang, TensorRT-LLM, TGI, llama.cpp, Ollama
GENERATING = (
    "/completions",
    "/completion",
    "/responses",
    "/messages",
    "/generate",
    "/generate_stream",
    "/invocations",
    "/infill",
    "/audio/transcriptions",
    "/audio/translations",
    "/api/chat",
)
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


def generates(method: str, path: str) -> bool:
    """Whether a request makes the engine generate, however its path is written (slashes, dots, a prefix)."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return method == "POST" and ("/" + "/".join(segments)).endswith(GENERATING)


def read_request(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Seen:
    """Class, estimated prompt length and whether it streams.

    The class is the ``x-priority`` header's (interactive, batch, best_effort or 0, 1, 2), else that of the body's
    ``priority`` as vLLM reads it (lower is sooner: 0 and below interactive, 1 batch, 2 and above best effort; null is
    none), else interactive. A body that cannot be read (no JSON, nested too deep, compressed) says nothing.

    Raises:
        BadPriority: naming the value and what is allowed.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
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
    priority = data.get("priority")
    if priority is None:
        return 0
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise BadPriority(
            f"priority = {_short(priority)}: must be a whole number (0 interactive, 1 batch, 2 best effort)"
        )
    return min(max(priority, 0), 2)


def _short(value: Any) -> str:
    try:
        return f"{str(value)[:40]!r}"
    except RecursionError:
        return f"a {type(value).__name__}"


def prompt_tokens(data: dict[str, Any]) -> float:
    """Tokens of a request's prompt: exact for token ids, a quarter of the characters for text."""
    prompt = data.get("prompt", data.get("messages", data.get("input", data.get("inputs", ""))))
    if isinstance(prompt, list) and all(isinstance(x, int) for x in prompt):
        return float(len(prompt))
    return _characters(prompt) / CHARACTERS_A_TOKEN


def _characters(prompt: Any) -> int:
    """Characters of all texts in it, a token id counted as one token's; without recursion, however deep it is."""
    count, parts = 0, [prompt]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, list):
            ids = sum(1 for x in part if isinstance(x, int))
            count += CHARACTERS_A_TOKEN * ids
            parts += [x for x in part if not isinstance(x, int)]
        elif isinstance(part, dict):
            parts.append(part.get("content", part.get("text", "")))
    return count

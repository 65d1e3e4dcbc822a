"""What a client sent that is wrong: as an exception, and told again in a few words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MOST_TOLD = 8  # errors that one answer names
TEXT = 80  # characters of a client's text in an answer


class BadInput(ValueError):
    """Input that only the library could judge; its message names field and value."""


def clean(text: str) -> str:
    """Text that UTF-8 can carry: half a surrogate pair, which JSON's escapes can write, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def short(value: Any, depth: int = 3) -> Any:
    """What was given, fit for an error message: JSON-ready, finite, and not longer than a line."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if abs(value) < 2**63 else "an integer of more than 63 bits"
    if isinstance(value, dict) and depth and len(value) <= 4:
        return {clean(str(key)[:40]): short(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth and len(value) <= 4:
        return [short(item, depth - 1) for item in value]
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)} entries"
    if isinstance(value, str | bytes | bytearray):
        return clean(str(value if len(value) <= TEXT else value[: TEXT - 3])) + ("..." if len(value) > TEXT else "")
    return f"a {type(value).__name__}"


def told(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pydantic's errors as an answer tells them: an entry for each of the first few, and how many more there are.

    Args:
        errors: of ``ValidationError.errors()``: type, loc, msg, input.

    Returns:
        Entries of field, message, loc and, where something was given, given.
    """
    details = []
    for entry in errors[:MOST_TOLD]:
        loc = [short(part) for part in entry["loc"][:10]]
        detail = {"field": ".".join(str(part)[:40] for part in loc), "message": entry["msg"], "loc": loc}
        if "input" in entry and entry["type"] != "missing":
            detail["given"] = short(entry["input"])
        details.append(detail)
    if len(errors) > MOST_TOLD:
        details.append({"field": "body", "message": f"{len(errors) - MOST_TOLD} more errors", "loc": ["body"]})
    return details


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """The same as one line of text, for answers that have no fields."""
    parts = []
    for detail in told(errors):
        value = f" = {detail['given']!r}" if "given" in detail else ""
        parts.append(f"{detail['field']}{value}: {detail['message']}")
    return "; ".join(parts)

"""Knobs and other names with values as people type them: ``batch_size=64,kv_budget=0.5``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inferencegym_jax.models import KNOBS, ServeAction, check_action, shown


def pairs(text: str, what: str) -> dict[str, str]:
    """``a=1,b=2`` as a dict of texts.

    Args:
        text: the parts, separated by commas.
        what: what the text is called in messages.

    Raises:
        ValueError: a part is not ``name=value``, or a name comes twice.
    """
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{what} {text!r}: {part!r} must be name=value")
        if name in values:
            raise ValueError(f"{what} {text!r}: {name} is given twice")
        values[name] = value
    return values


def numbers(entries: Mapping[str, str], what: str) -> dict[str, float]:
    """Texts of numbers as numbers, name by name.

    Args:
        entries: name -> text.
        what: the option that they were typed in, for messages.

    Raises:
        ValueError: a text is no number.
    """
    values: dict[str, float] = {}
    for name, text in entries.items():
        try:
            values[name] = float(text)
        except ValueError:
            raise ValueError(f"{what} {name} = {shown(text)}: must be a number") from None
    return values


def knob_values(text: str, what: str) -> dict[str, Any]:
    """``batch_size=64,prefill_disagg=true`` as the knobs that it names, checked.

    Raises:
        ValueError, TypeError: unknown knob, or a value out of its range.
    """
    values: dict[str, Any] = {}
    for name, word in pairs(text, what).items():
        if name not in KNOBS:
            raise ValueError(f"{what}: unknown knob {shown(name)}; allowed are {', '.join(KNOBS)}")
        try:
            value = json.loads(word.lower())
        except ValueError:
            raise ValueError(f"{what}: {name} = {shown(word)}: must be {KNOBS[name].allowed}") from None
        values[name] = bool(value) if KNOBS[name].kind == "bool" and value in (0, 1) else value
    check_action(ServeAction(**values))
    return values

"""How much one request may hold, so that the work of reading it is bounded before it is begun.

Sizes in bytes, counts of JSON values, times in seconds. Reading a body costs in proportion to its values and to its
errors, not to its bytes; so values are counted before anything is built of them, and checking stops at the first bad
entry of a list (``schemas``).
"""

from __future__ import annotations

import json
import re
from typing import Any

from server.bad_input import BadInput

SMALL_BODY = 64_000  # bytes of any body but a log's and a rollout's
LOG_BODY = 4_500_000  # bytes: 1,800 seconds, the longest episode that ships, with all that a step answers are 3.6 MB
OWN_LIMIT = {"/grader": LOG_BODY}
LARGE = "/rollout"  # has what MAX_BODY_BYTES allows
BODIES_AT_ONCE = 64_000_000  # bytes of all bodies that are being read or worked on
BODY_S = 30.0  # a body must have arrived after so long
MOST_EPISODES = 65_536  # of one rollout, whatever ROLLOUT_EPISODES says
MOST_KEYS = 100  # of one JSON object; a log's metrics have the most, about thirty
MOST_OBJECTS = 120_000  # objects and arrays of one body: 256 episodes of 200 actions are 51,456
MOST_VALUES = 600_000  # of one body
MESSAGE = 64_000  # bytes of a WebSocket message
MESSAGE_VALUES = 300  # of a WebSocket message or an MCP request
MESSAGE_DEPTH = 20
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may be half of a pair


class TooMuch(BadInput):
    """More values than a request may hold."""


def body_limit(path: str, most: int) -> int:
    """Bytes that a body on a path may have; ``most`` is the setting MAX_BODY_BYTES, above which none goes."""
    return most if path == LARGE else min(most, OWN_LIMIT.get(path, SMALL_BODY))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise TooMuch(f"an object of {len(pairs)} keys; at most {MOST_KEYS}")
    return dict(pairs)


_decoder = json.JSONDecoder(object_pairs_hook=_object)


def read_json(body: bytes) -> Any:
    """The value of a JSON body.

    Raises:
        json.JSONDecodeError: it is no JSON.
        TooMuch: it holds more values or keys than a request may, or text that no UTF-8 can carry.
        ValueError, RecursionError: an integer of thousands of digits, arrays a thousand deep.
        UnicodeDecodeError: the bytes are not UTF-8.
    """
    if body.count(b"{") + body.count(b"[") > MOST_OBJECTS:
        raise TooMuch(f"more than {MOST_OBJECTS} objects and arrays in one body")
    if body.count(b",") > MOST_VALUES:
        raise TooMuch(f"more than {MOST_VALUES} values in one body")
    value = _decoder.decode(body.decode("utf-8-sig"))
    if SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise TooMuch("half of a surrogate pair is no character") from None
    return value


def excess(value: Any, most: int = MESSAGE_VALUES, deepest: int = MESSAGE_DEPTH) -> str | None:
    """What there is too much of in a message's value, or None. Looks at no more than ``most`` values."""
    pending, seen = [(value, 0)], 1
    while pending:
        item, depth = pending.pop()
        inside = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else ()
        seen += len(inside)
        if seen > most:
            return f"more than {most} values in one message"
        if inside and depth >= deepest:
            return f"more than {deepest} levels in one message"
        pending.extend((part, depth + 1) for part in inside)
    return None

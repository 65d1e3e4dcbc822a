"""Tokens of the answers that the proxy passes on, counted beside the bytes: nothing is held back or changed.

``chunks -> (inflate) -> EventCounter | usage``. A compression that the standard library cannot read makes an answer
opaque: its tokens are not counted, and the metrics say how many answers those were.
"""

from __future__ import annotations

import json
import zlib

KEEP_ANSWER = 1_000_000  # bytes of an answer in one piece that are kept to read its token count
LONGEST_STEP = 1_000_000  # bytes that one chunk is inflated to; what is beyond makes the answer opaque
LINE_START = 32  # bytes of a line that tell what it is


class EventCounter:
    """Counts server-sent events in a stream of chunks, wherever they are cut; about one token an event.

    Lines end in LF, CR LF or CR alone. Only the beginning of the line under way is kept.
    """

    def __init__(self) -> None:
        self._line = b""
        self._after_cr = False
        self._has_data = self._is_done = False
        self.total = 0

    def feed(self, chunk: bytes) -> int:
        """Events that end in this chunk, without the closing ``[DONE]``."""
        if not chunk:
            return 0
        if self._after_cr and chunk.startswith(b"\n"):  # of the CR LF that was cut
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *ended, rest = chunk.split(b"\n")
        count = 0
        for part in ended:
            line, self._line = self._line + part[:LINE_START], b""
            if line.startswith(b"data:"):
                self._has_data = True
                self._is_done |= line[5:].strip() == b"[DONE]"
            elif not line:
                count += self._has_data and not self._is_done
                self._has_data = self._is_done = False
        self._line = (self._line + rest[:LINE_START])[:LINE_START]
        self.total += count
        return count


class AnswerCounter:
    """The tokens of one answer.

    Args:
        content_type: of the answer.
        encoding: its ``Content-Encoding``.
    """

    def __init__(self, content_type: str, encoding: str):
        words = [word.strip().lower() for word in encoding.split(",") if word.strip()]
        inflates = words in (["gzip"], ["x-gzip"], ["deflate"])
        self._inflater = zlib.decompressobj(47) if inflates else None  # zlib's or gzip's header, whichever is there
        self.opaque = bool(words) and not inflates and words != ["identity"]
        self.streams = "text/event-stream" in content_type.lower()
        self._events = EventCounter()
        self._kept = b""

    def feed(self, chunk: bytes) -> int:
        """Tokens of events that end in this chunk; 0 of an answer in one piece."""
        if self.opaque:
            return 0
        if self._inflater is not None:
            try:
                chunk = self._inflater.decompress(chunk, LONGEST_STEP)
            except zlib.error:
                self.opaque = True
                return 0
            if self._inflater.unconsumed_tail:
                self.opaque = True
                return 0
        if self.streams:
            return self._events.feed(chunk)
        if len(self._kept) < KEEP_ANSWER:
            self._kept += chunk
        return 0

    def whole(self) -> int:
        """Tokens of an answer in one piece, as its usage says; 0 where it has none."""
        return 0 if self.streams or self.opaque else completion_tokens(self._kept)


def completion_tokens(body: bytes) -> int:
    """``usage.completion_tokens`` of an answer in one piece; 0 where it has none."""
    try:
        tokens = json.loads(body)["usage"]["completion_tokens"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 10**9 else 0

"""When clients see the tokens that the request-by-request engine makes: at the end of the iteration that makes them, or
as many iterations later as the engine profile says."""

from __future__ import annotations

import math
from collections import deque


class TokensSeen:
    """First and last tokens of every request, on their way to the clients.

    Args:
        count: requests.
        extra: iterations after its own until a token is seen (``first_token_extra_iterations``).
        path_ms: on the way outside iterations.
    """

    def __init__(self, count: int, extra: int, path_ms: float):
        self.first_token: list[float] = [math.nan] * count
        self.finish: list[float] = [math.nan] * count
        self.extra: int = extra
        self.path_ms: float = path_ms
        self._made: list[tuple[int, bool]] = []  # in the iteration that ends
        self._before: deque[list[tuple[int, bool]]] = deque([] for _ in range(extra))  # in those before it

    def made(self, request: int, is_last: bool) -> None:
        """A request has its next token; others than the first and the last need not be told."""
        self._made.append((request, is_last))

    def made_elsewhere(self, now: float) -> None:
        """What was made since the last iteration was made on another GPU: as if in that iteration."""
        if self._before:
            self._before[-1].extend(self._made)
        else:
            self._show(self._made, now)
        self._made = []

    def ended(self, at: float) -> None:
        """An iteration has ended."""
        self._before.append(self._made)
        self._made = []
        self._show(self._before.popleft(), at)

    def awaited(self) -> list[int]:
        """Requests whose tokens are made and not seen."""
        return [request for one in self._before for request, _ in one]

    def _show(self, tokens: list[tuple[int, bool]], at: float) -> None:
        at += self.path_ms
        for request, is_last in tokens:
            if math.isnan(self.first_token[request]):
                self.first_token[request] = at
            if is_last:
                self.finish[request] = at

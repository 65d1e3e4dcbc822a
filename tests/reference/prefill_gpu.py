"""A GPU that computes prompts for an engine and hands their keys and values on.

The engine takes slot and room for a request before it sends the prompt here, so nothing waits with its keys and values
in this GPU's memory for a place to decode. Prompts are computed first come first served, several in an iteration while
the token budget allows. Times are ms.
"""

from __future__ import annotations

import math
from typing import Any

from tests.reference.batching import Engine, PrefillQueue, Request
from tests.reference.iteration import Batch, IterationTimes
from tests.reference.settings import Settings


class PrefillGpu(PrefillQueue):
    """The second GPU in the role "prefill".

    Args:
        profile: the JSON of an engine profile.
        settings: token budget, weights, and the link to `engine`.
        engine: that decodes what is computed here.
    """

    def __init__(self, profile: dict[str, Any], settings: Settings, engine: Engine):
        self.profile, self.engine, self.settings = profile, engine, settings
        self.times = IterationTimes(profile, settings.quant_tier)
        self.queue: list[Request] = []
        self.chunks: list[tuple[Request, int, int]] = []
        self.event, self.phase = math.inf, "idle"
        self.link_free = 0.0  # when the last transfer ends
        self.switched = False

    @property
    def waiting(self) -> int:
        """Prompts in the queue, those under way included."""
        return len(self.queue)

    @property
    def running(self) -> int:
        """None holds a slot here."""
        return 0

    def put(self, request: Request) -> None:
        """A prompt to compute."""
        self.queue.append(request)
        request.gpu = self.engine.number

    def drop(self, request: Request) -> None:
        """Forget a request that its engine has preempted."""
        self.queue = [other for other in self.queue if other is not request]
        self.chunks = [chunk for chunk in self.chunks if chunk[0] is not request]

    def change(self, settings: Settings) -> None:
        """Other settings; other weights are loaded after the iteration under way."""
        self.switched |= settings.quant_tier != self.settings.quant_tier
        self.settings = settings

    def begin(self, now: float) -> None:
        """Schedule the next chunks."""
        if self.switched:
            self.switched, self.chunks = False, []
            self.times = IterationTimes(self.profile, self.settings.quant_tier)
            self.phase, self.event = "restart", now + 1000 * self.settings.restart_s
            return
        budget = self.settings.token_budget or int(self.profile["tokens_per_iteration"])
        self.chunks = []
        for request in self.queue:
            take = min(budget, request.target - request.computed)
            if take <= 0:
                break
            self.chunks.append((request, request.computed, request.computed + take))
            budget -= take
        if not self.chunks:
            self.phase, self.event = "idle", math.inf
            return
        complete = sum(end == request.target for request, _, end in self.chunks)
        self.phase = "iteration"
        self.event = now + self.times.iteration(Batch(0, 0, [chunk[1:] for chunk in self.chunks], complete))

    def end(self, now: float) -> None:
        """Hand on the prompts that are complete, one after the other over the link."""
        for request, _, end in self.chunks:
            request.computed = end
            if end == request.target:
                self.queue.remove(request)
                bytes_moved = request.target * self.profile["kv_bytes_per_token"]
                self.link_free = max(self.link_free, now) + bytes_moved / (self.settings.transfer_gb_s * 1e6)
                self.engine.ready.append((self.link_free, request))
        self.chunks = []
        self.phase, self.event = "idle", math.inf

"""How long one iteration of the request-by-request engine takes: sums over the kernels of an engine profile, ms.

Whole numbers of tokens and requests are looked up in lists; only the context between two nodes is interpolated.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from inferencegym_jax.physics.kernels import resample
from inferencegym_jax.table import EngineProfile


class IterationTimes:
    """Look-ups of one weight format.

    Args:
        profile: the kernels.
        tier: weight format, 0 to 2.
        token_budget: most tokens of an iteration.
        batch_size: most requests of one.
        longest: most tokens of a request.
    """

    def __init__(self, profile: EngineProfile, tier: int, token_budget: int, batch_size: int, longest: int):
        tokens = np.arange(max(token_budget, batch_size) + batch_size + 2)
        self.products: list[float] = resample(profile.products_tokens, profile.products_ms[tier], tokens).tolist()
        self.head: list[float] = resample(profile.head_tokens, profile.head_ms, tokens).tolist()
        lengths = np.arange(longest + 1)
        self.prompt_attention: list[float] = resample(
            profile.prefill_tokens, profile.prefill_attention_ms, lengths
        ).tolist()
        self.prompt_attention[0] = 0.0
        sequences = np.arange(batch_size + 2)
        columns = [resample(profile.decode_sequences, column, sequences) for column in profile.decode_attention_ms.T]
        self.rows: list[list[float]] = np.stack(
            columns, axis=-1
        ).tolist()  # one of contexts for each number of requests
        self.contexts: list[float] = profile.decode_context.tolist()
        self.overhead: float = profile.overhead_ms
        self.each: float = profile.overhead_ms_per_sequence
        self.draft_share: float = profile.draft_share

    def iteration(
        self, decoding: int, context: int, chunks: Sequence[tuple[int, int, int]], complete: int, drafts: int
    ) -> float:
        """ms of an iteration.

        Args:
            decoding: requests that decode.
            context: tokens that they hold together.
            chunks: (request, first, end) of each prompt chunk.
            complete: chunks that end their prompt, so that a token is sampled from each.
            drafts: drafted for each decoding request.
        """
        tokens = decoding * (drafts + 1)
        total = self.overhead + self.each * (decoding + len(chunks))
        if decoding:
            row, nodes, mean = self.rows[decoding], self.contexts, context / decoding
            attention = row[0]
            if mean > nodes[0]:
                low = min(bisect.bisect_right(nodes, mean) - 1, len(nodes) - 2)
                place = (mean - nodes[low]) / (nodes[low + 1] - nodes[low])
                attention = row[low] + place * (row[low + 1] - row[low])
            total += attention + self.head[tokens + complete]
            if drafts:
                draft = self.products[decoding] + self.head[decoding] + attention
                total += drafts * self.draft_share * draft
        elif complete:
            total += self.head[complete]
        prompts = 0
        for _, first, end in chunks:
            prompts += end - first
            total += self.prompt_attention[end] - self.prompt_attention[first]
        return total + self.products[tokens + prompts]

    def decode_only(self, decoding: int, drafts: int) -> Callable[[int], float]:
        """``iteration`` without prompts as a function of the context alone, the same to the last bit."""
        tokens = decoding * (drafts + 1)
        row, nodes, last = self.rows[decoding], self.contexts, len(self.contexts) - 2
        fixed, head, products = self.overhead + self.each * decoding, self.head[tokens], self.products[tokens]
        drafting, share = self.products[decoding] + self.head[decoding], drafts * self.draft_share
        low, start, end, at_start, rise = 0, -1.0, -1.0, 0.0, 0.0  # segment of contexts that was looked up last

        def time(context: int) -> float:
            nonlocal low, start, end, at_start, rise
            mean = context / decoding
            attention = row[0]
            if mean > nodes[0]:
                if not start <= mean < end:
                    low = min(bisect.bisect_right(nodes, mean) - 1, last)
                    start, end = nodes[low], nodes[low + 1]
                    at_start, rise = row[low], row[low + 1] - row[low]
                attention = at_start + (mean - start) / (end - start) * rise
            total = fixed + (attention + head)
            if drafts:
                total += share * (drafting + attention)
            return total + products

        return time

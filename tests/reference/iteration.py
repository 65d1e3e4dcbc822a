"""How long one iteration of the reference engine takes, read from an engine profile and nothing else.

A profile (``data/*.engine.json``) holds times of kernels; here they become lookups, with interpolation of their own,
and ``IterationTimes.iteration`` adds up what one iteration holds. All times are ms, all lengths tokens.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROFILE = Path(__file__).resolve().parents[2] / "data" / "traces_llama3_8b.engine.json"
LONGEST = 65536  # tokens of a request
TIERS = ("FP16", "INT8", "INT4")


def load_profile(path: str | Path = PROFILE) -> dict[str, Any]:
    """The JSON of an engine profile as it stands in the file."""
    return json.loads(Path(path).read_text())


def digest(profile: dict[str, Any]) -> str:
    """Hash of a profile's numbers: texts (source, licence) may change without making a result old."""
    texts = {name for name, value in profile.items() if isinstance(value, str)} | {"notes"}
    whole = json.dumps({name: value for name, value in profile.items() if name not in texts})
    numbers = json.loads(whole, parse_int=float)  # 2 and 2.0 are one number
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


def line(nodes: Sequence[float], values: Sequence[float], size: int) -> list[float]:
    """Values at 0, 1, ..., size: the first below the nodes, linear between, the last segment extended beyond."""
    at = np.arange(size + 1, dtype=float)
    found = np.interp(at, nodes, values)
    if len(nodes) > 1:
        slope = (values[-1] - values[-2]) / (nodes[-1] - nodes[-2])
        found = np.where(at > nodes[-1], values[-1] + slope * (at - nodes[-1]), found)
    return found.tolist()


@dataclass(frozen=True)
class Batch:
    """What one iteration holds.

    Attributes:
        decoding: requests that decode.
        context: tokens that they hold together.
        chunks: (first, end) of each prompt chunk: tokens first..end of its prompt are computed, those before are held.
        finished_prompts: chunks that end their prompt, so that a token is sampled from each.
        drafts: tokens drafted for each decoding request.
    """

    decoding: int
    context: int
    chunks: Sequence[tuple[int, int]] = ()
    finished_prompts: int = 0
    drafts: int = 0


class IterationTimes:
    """Lookups of one weight format.

    Args:
        profile: the JSON of an engine profile.
        tier: 0 FP16, 1 INT8, 2 INT4.
    """

    def __init__(self, profile: dict[str, Any], tier: int = 0):
        products, head, prefill = (profile[name] for name in ("products_ms", "head_ms", "prefill_attention_ms"))
        decode = profile["decode_attention_ms"]
        self.products = line(products["tokens"], products["ms"][tier], 8192)
        self.head = line(head["tokens"], head["ms"], 8192)
        self.prefill_attention = line(prefill["tokens"], prefill["ms"], LONGEST)
        self.prefill_attention[0] = 0.0
        columns = [line(decode["sequences"], column, 1024) for column in zip(*decode["ms"], strict=True)]
        self.decode_rows = list(zip(*columns, strict=True))  # one row of contexts for each number of sequences
        self.contexts: list[float] = decode["context"]
        self.overhead: float = profile["overhead_ms"]
        self.overhead_per_sequence: float = profile["overhead_ms_per_sequence"]
        self.draft_share: float = profile["draft_share"]

    def decode_attention(self, sequences: int, context: float) -> float:
        """All layers' attention of that many decoding requests of this mean context, ms."""
        row, nodes = self.decode_rows[sequences], self.contexts
        if context <= nodes[0]:
            return row[0]
        low = min(bisect.bisect_right(nodes, context) - 1, len(nodes) - 2)
        place = (context - nodes[low]) / (nodes[low + 1] - nodes[low])
        return row[low] + place * (row[low + 1] - row[low])

    def iteration(self, batch: Batch) -> float:
        """ms from the start of an iteration to its end."""
        n, drafts = batch.decoding, batch.drafts
        prompt_tokens = sum(end - first for first, end in batch.chunks)
        total = self.overhead + self.overhead_per_sequence * (n + len(batch.chunks))
        total += self.products[n * (drafts + 1) + prompt_tokens]
        total += self.head[n * (drafts + 1) + batch.finished_prompts] if n or batch.finished_prompts else 0.0
        attention = self.decode_attention(n, batch.context / n) if n else 0.0
        total += attention
        for first, end in batch.chunks:
            total += self.prefill_attention[end] - self.prefill_attention[first]
        if drafts and n:
            total += drafts * self.draft_share * (self.products[n] + self.head[n] + attention)
        return total


def pool_tokens(profile: dict[str, Any], tier: int = 0, memory_gb: float | None = None) -> int:
    """Tokens whose keys and values fit beside the weights."""
    memory = profile["memory_gb"] if memory_gb is None else memory_gb
    free = memory - profile["weights_gb"][tier] - profile["runtime_gb"]
    if free <= 0:
        raise ValueError(
            f"memory_gb is {memory}: the weights ({profile['weights_gb'][tier]} GB in {TIERS[tier]}) and the runtime "
            f"({profile['runtime_gb']} GB) do not fit"
        )
    return int(free * 1e9 / profile["kv_bytes_per_token"])


def tokens_accepted(acceptance_length: float, drafts: int) -> float:
    """Probability that a draft token is accepted, such that a verification yields `acceptance_length` on average.

    A verification yields 1 + (accepted drafts before the first refused one); with probability a for each, its mean is
    1 + a + ... + a^drafts. Solved for a by bisection.
    """
    if not 1 <= acceptance_length <= drafts + 1:
        raise ValueError(f"acceptance_length is {acceptance_length}: {drafts} drafts yield 1 to {drafts + 1} tokens")
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(drafts + 1)) < acceptance_length else (low, middle)
    return high

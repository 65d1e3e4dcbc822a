"""Requests as arrays: what a run of the reference is given, and the same traffic counted by second for the fluid.

arrivals, lengths, classes -> Requests -> serve(...)
                                      \\-> seconds(...) and dispersion(...) -> the fluid
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

CLASSES = ("interactive", "batch", "best_effort")


@dataclass(frozen=True)
class Requests:
    """Requests in order of arrival.

    Attributes:
        arrival_ms: [requests] float64, ascending.
        prompt: [requests] int64 tokens, at least 1.
        output: [requests] int64 tokens, at least 1.
        priority: [requests] int64, 0 interactive, 1 batch, 2 best effort.
        kind: [requests] int64, index into kinds.
        kinds: names of the kinds of traffic, as in the profile's acceptance lengths.
    """

    arrival_ms: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    priority: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    kind: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    kinds: tuple[str, ...] = ("chat",)

    def __post_init__(self):
        count = len(self.arrival_ms)
        for name in ("priority", "kind"):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.zeros(count, np.int64))
        for name in ("prompt", "output", "priority", "kind"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {count} arrivals")
        if count and (not np.isfinite(self.arrival_ms).all() or (np.diff(self.arrival_ms) < 0).any()):
            raise ValueError("arrival_ms must be finite and ascending")
        if count and min(self.prompt.min(), self.output.min()) < 1:
            raise ValueError("prompt and output must be at least 1 token")
        if count and not 0 <= self.priority.min() <= self.priority.max() <= 2:
            raise ValueError("priority must be 0, 1 or 2")

    def __len__(self) -> int:
        return len(self.arrival_ms)


def requests_at(arrival_ms: ArrayLike, prompt: ArrayLike, output: ArrayLike, priority: ArrayLike = ()) -> Requests:
    """Requests from plain lists or arrays, [requests] each."""
    return Requests(
        np.asarray(arrival_ms, np.float64),
        np.asarray(prompt, np.int64),
        np.asarray(output, np.int64),
        np.asarray(priority, np.int64),
    )


@dataclass(frozen=True)
class Seconds:
    """Traffic counted by second of arrival: what a fluid with steps of a second is told.

    Attributes:
        count: [seconds] float64 requests.
        prompt, output: [seconds] float64 mean tokens of the second's requests, 0 where nobody arrives.
        by_class: [seconds, 3] float64 requests of each class.
        by_kind: [seconds, kinds] float64 requests of each kind.
    """

    count: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    by_class: np.ndarray
    by_kind: np.ndarray


def seconds(requests: Requests, length: int | None = None) -> Seconds:
    """Counts and mean lengths by second of arrival.

    Args:
        requests: at least one where length is not given.
        length: seconds in the result; those after the last arrival are empty. By default up to the last arrival.
    """
    second = (requests.arrival_ms / 1000).astype(int)
    length = int(second.max()) + 1 if length is None else length
    if len(second) and second.max() >= length:
        raise ValueError(f"length is {length} s, the last request arrives in second {second.max()}")
    count = np.bincount(second, minlength=length).astype(float)
    present = np.maximum(count, 1)

    def by(index: np.ndarray, size: int) -> np.ndarray:
        return np.bincount(second * size + index, minlength=length * size).reshape(length, size).astype(float)

    return Seconds(
        count,
        np.bincount(second, requests.prompt, length) / present,
        np.bincount(second, requests.output, length) / present,
        by(requests.priority, 3),
        by(requests.kind, len(requests.kinds)),
    )


@dataclass(frozen=True)
class Dispersion:
    """How a second's requests differ among themselves.

    Attributes:
        cv_prompt, cv_output: standard deviation within a second over the mean of all requests, unbiased (count - 1).
        correlation: of prompt and output within a second.
        arrival_scv: variance of the counts in tenths of a second given the second's count, over that of a uniform
            spread: 1 for Poisson arrivals.
    """

    cv_prompt: float
    cv_output: float
    correlation: float
    arrival_scv: float


def dispersion(requests: Requests, tenths: int = 10) -> Dispersion:
    """Measured on the requests; a second with one request says nothing about lengths."""
    second = (requests.arrival_ms / 1000).astype(int)
    count = np.bincount(second)
    freedom = (count[count > 0] - 1).sum()
    apart = []
    for lengths in (requests.prompt, requests.output):
        mean = np.bincount(second, lengths) / np.maximum(count, 1)
        apart.append(lengths - mean[second])
    (vp, cov), (_, vo) = (np.array(apart) @ np.array(apart).T / max(freedom, 1)).tolist()
    part = np.bincount((requests.arrival_ms * tenths / 1000).astype(int), minlength=len(count) * tenths)
    spread = (part.reshape(len(count), tenths) - count[:, None] / tenths) ** 2
    return Dispersion(
        cv_prompt=vp**0.5 / requests.prompt.mean(),
        cv_output=vo**0.5 / requests.output.mean(),
        correlation=cov / (vp * vo) ** 0.5 if vp * vo > 0 else 0.0,
        arrival_scv=float(spread.sum() / (count.sum() * (1 - 1 / tenths))),
    )

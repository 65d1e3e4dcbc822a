"""What became of a second's requests: what tasks of the open loop are scored by."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from inferencegym_jax.models.engine import Scalar
from inferencegym_jax.models.quantity import Quantity

OUTCOME: dict[str, Quantity] = {
    "asked": Quantity(description="requests that arrived", unit="requests", size=3, exogenous=True),
    "on_time": Quantity(
        description="requests that finished within both latency objectives of their class", unit="requests", size=3
    ),
    "late": Quantity(
        description="requests that missed one: counted when their wait passes it, else at first token or finish",
        unit="requests",
        size=3,
    ),
    "rejected": Quantity(description="requests turned away by a full waiting line", unit="requests", size=3),
    "failed": Quantity(description="requests lost by the engine", unit="requests", size=3),
    "present": Quantity(
        description="requests that wait or run at the second's end and are not late so far", unit="requests", size=3
    ),
    "tokens_asked": Quantity(description="output tokens of the second's arrivals", unit="tokens", exogenous=True),
    "on_time_tokens": Quantity(description="output tokens of the requests that finished on time", unit="tokens"),
    "gpu_seconds": Quantity(
        description="GPUs paid for in this second", unit="GPU-seconds", title="GPUs paid for", digits=0, chart="sum"
    ),
    "quality": Quantity(
        description="what the weight format keeps of the 16-bit model's answers, 1 at most", unit="share", digits=3
    ),
}
"""Unit and meaning of each number of an outcome; those of size 3 are by class: interactive, batch, best effort."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RequestOutcome:
    """What became of requests in one second of an open-loop task, by class: interactive, batch, best effort.

    Each request is counted once, when its fate is known, and ``asked = on_time + late + rejected + failed + the growth
    of present``, class by class, to float32 rounding. Requests are real numbers: the physics is a fluid. All zeros in
    the closed-loop tasks, which are not scored by request. Sums over seconds are an episode's.
    """

    asked: Scalar  # float32[3], requests that arrived
    on_time: Scalar  # float32[3], finished with TTFT and TPOT within their class's objectives
    late: Scalar  # float32[3], missed one: counted when the wait passes the objective, else at first token or finish
    rejected: Scalar  # float32[3], turned away by a full waiting line
    failed: Scalar  # float32[3], lost by the engine
    present: Scalar  # float32[3], not yet judged at the second's end: waiting or running, and not late so far
    tokens_asked: Scalar  # float32, output tokens of the second's arrivals
    on_time_tokens: Scalar  # float32, output tokens of the requests that finished on time
    gpu_seconds: Scalar  # float32, GPUs paid for in this second
    quality: Scalar  # float32, what the weight format keeps of the 16-bit model's answers, 1 at most

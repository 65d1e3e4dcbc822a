"""What a task's score is made of: each component's weight, once, and what it measures in words.

The grader computes the components, the LLM agents' prompt states them, the reward of ``wrappers.ScoreReward`` is made
of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from inferencegym_jax.scoring.episode_log import is_scored_by_request
from inferencegym_jax.tasks import TaskSpec

ON_TIME_SLACK = 0.02  # of the share on time: fewer GPUs count as cheaper only while no more of it is given up
COST_OF_STATIC = 0.5  # the cost component of the best static action
JITTER = 0.5  # step-to-step change of the knobs, in units of their highest values, at which stability is 0
VIOLATIONS = 100.0  # violations a second at which task 3's component is 0
MEMORY_GB = 10.0  # above the task's limit, at which task 2's component is 0
CLASSES = ("interactive", "batch", "best effort")
COST_BUDGET = 5.0  # of an episode, where a task states none


@dataclass(frozen=True)
class Component:
    """One term of a score."""

    weight: float
    meaning: str  # how it is computed over an episode, before it is clipped to [0, 1]


def formula(spec: TaskSpec) -> dict[str, Component]:
    """The components of a task's score by name, in the order in which they are listed; the score is their weighted sum,
    clipped to [0, 1].

    An open-loop task is scored by request, a closed-loop one by the second: tasks 1 and 2 have formulas of their own,
    every other that of task 3.
    """
    if is_scored_by_request(spec):
        parts = {
            "goodput_share": Component(0.40, "output tokens of the requests on time / output tokens asked"),
            "on_time_share": Component(
                0.20, f"requests on time{_weighted(spec)} / requests asked ({_objectives(spec)})"
            ),
            "cost": Component(
                0.30,
                f"{1.0 + COST_OF_STATIC:g} - GPU-seconds / the GPU-seconds of the best fixed setting, at most"
                f" {COST_OF_STATIC:g} while on_time_share is more than {ON_TIME_SLACK:g} below that setting's",
            ),
            "stability": Component(
                0.10,
                f"1 - (sum over {', '.join(spec.active_knobs)} of the standard deviation of the change from second to"
                f" second / the knob's highest value) / {JITTER:g}",
            ),
        }
        if "quant_tier" in spec.active_knobs:
            parts["quality_lost"] = Component(-1.0, "what the weight format loses of the 16-bit model's answers")
        return parts
    if spec.id == 1:
        return {"throughput": Component(1.0, "mean tokens/s / the best fixed setting's, above a floor")}
    if spec.id == 2:
        limit = 0.0 if spec.memory_limit_gb is None else spec.memory_limit_gb
        return {
            "latency": Component(0.5, f"1 - mean median TTFT / {spec.slo_ttft_ms[0]:g} ms"),
            "memory": Component(0.5, f"1 - (peak GPU memory - {limit:g} GB) / {MEMORY_GB:g} GB"),
        }
    return {
        "throughput": Component(0.40, "mean tokens/s / the best fixed setting's"),
        "slo": Component(0.30, f"1 - mean violations a second / {VIOLATIONS:g}"),
        "cost": Component(0.20, f"1 - sum of cost_per_1k / {spec.cost_budget or COST_BUDGET:g}"),
        "stability": Component(
            0.10,
            "1 - (standard deviation of the change from second to second of batch_size / 512 + that of kv_budget)"
            f" / {JITTER:g}",
        ),
    }


def score_text(spec: TaskSpec) -> str:
    """The formula of a task's score in words, one component a line."""
    lines = [
        f"Score of the {spec.episode_length} seconds, what you are graded on: the sum of these, each within [0, 1]"
        " before its weight:"
    ]
    lines += [f"- {part.weight:+g} x {name}: {part.meaning}" for name, part in formula(spec).items()]
    return "\n".join(lines)


def stability_weight(spec: TaskSpec) -> float:
    """What stability weighs in a task's score; 0 where it is no part of it."""
    parts = formula(spec)
    return parts["stability"].weight if "stability" in parts else 0.0


def _weighted(spec: TaskSpec) -> str:
    return ", weighted by class," if len(set(spec.class_weights)) > 1 else ""


def _objectives(spec: TaskSpec) -> str:
    """When a request is on time, in words, class by class where there are several."""
    texts = list[str]()
    rows = zip(CLASSES, spec.slo_ttft_ms, spec.tpot_objectives_ms, spec.class_shares, strict=True)
    used = [(name, first, token) for name, first, token, share in rows if share > 0]
    for name, first, token in used:
        parts = [
            *([] if math.isinf(first) else [f"first token within {first:g} ms"]),
            *([] if math.isinf(token) else [f"at most {token:g} ms a token"]),
        ]
        text = " and ".join(parts) or "always"
        texts.append(f"{name}: {text}" if len(used) > 1 else text)
    return f"on time: {'; '.join(texts)}"

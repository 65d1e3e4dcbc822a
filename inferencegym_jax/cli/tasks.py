"""``inferencegym tasks``: what there is to control."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

from inferencegym_jax.cli.output import JSON, answers, number, print_json, table
from inferencegym_jax.models import KNOBS
from inferencegym_jax.tasks import task_specs


def tasks(json_output: Annotated[bool, JSON] = False) -> None:
    """List the tasks (traffic, objectives, the knobs that each leaves to the agent) and the knobs."""
    specs = list(task_specs().values())
    if json_output:
        print_json([asdict(spec) for spec in specs])
        return
    rows = [
        (
            str(spec.id),
            spec.name,
            spec.difficulty,
            "/".join("none" if math.isinf(slo) else number(slo) for slo in _objectives(spec)),
            number(spec.memory_limit_gb),
            ", ".join(spec.active_knobs),
        )
        for spec in specs
    ]
    console = answers()
    console.print(table(("id", "name", "difficulty", "TTFT SLO ms", "memory GB", "knobs"), rows, left=6))
    console.print()
    for spec in specs:
        console.print(f"{spec.id}  {spec.description}")
    console.print()
    knobs = [(name, knob.allowed, str(knob.default).lower(), knob.description) for name, knob in KNOBS.items()]
    console.print(table(("knob", "allowed", "default", "meaning"), knobs, left=4))


def _objectives(spec: object) -> tuple[float, ...]:
    slo, shares = spec.slo_ttft_ms, spec.class_shares  # type: ignore[attr-defined]
    return tuple(limit for limit, share in zip(slo, shares, strict=True) if share > 0)

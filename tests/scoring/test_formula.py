"""The formula of a score is stated once: what the grader weighs is what the prompt says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.agents.prompts import system_prompt
from inferencegym_jax.scoring.formula import formula, score_text, stability_weight
from tests.server.twins import random_actions

SPECS = list(ig.task_specs().values())


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, marks=[pytest.mark.slow] if spec.episode_length > 200 else []) for spec in SPECS],
    ids=lambda spec: spec.name,
)
def test_a_score_is_the_weighted_sum_of_the_components_that_the_formula_names(spec: ig.TaskSpec) -> None:
    result = ig.verify(spec, 3, None, random_actions(3, 200))
    parts = formula(spec)
    assert list(parts) == list(result["breakdown"])
    total = sum(part.weight * result["breakdown"][name] for name, part in parts.items())
    assert result["score"] == pytest.approx(np.clip(total, 0.0, 1.0), abs=1e-9)
    assert sum(part.weight for part in parts.values() if part.weight > 0) == pytest.approx(1.0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_agents_prompt_states_the_graders_formula(spec: ig.TaskSpec) -> None:
    prompt = system_prompt(spec)
    assert score_text(spec) in prompt
    for name, part in formula(spec).items():
        assert f"- {part.weight:+g} x {name}: {part.meaning}" in prompt


def test_quality_is_in_the_formula_where_the_agent_chooses_the_weight_format_alone() -> None:
    with_tier = ig.get_task(4)
    knobs = tuple(name for name in with_tier.active_knobs if name != "quant_tier")
    without = dataclasses.replace(with_tier, name="other", id=99, title="Other", active_knobs=knobs)
    assert ("quality_lost" in formula(with_tier)) == ("quant_tier" in with_tier.active_knobs)
    assert "quality_lost" not in formula(without)


def test_stability_weighs_what_the_formula_says() -> None:
    assert [stability_weight(ig.get_task(task)) for task in (1, 2, 3, 4)] == [0.0, 0.0, 0.1, 0.1]

"""What a language model is told, and how its answer becomes an action.

Every range, unit and meaning comes from ``models.KNOBS`` and ``models.OBSERVATION``. No network in here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from inferencegym_jax.models import (
    KNOBS,
    OBSERVATION,
    REWARD_WEIGHTS,
    ServeAction,
    check_action,
    finite_number,
    plain,
    shown,
)
from inferencegym_jax.models.metrics import COST_UNIT
from inferencegym_jax.scoring.formula import score_text
from inferencegym_jax.tasks import TaskSpec

TOOL = "set_knobs"


def knob_schema(name: str) -> dict[str, Any]:
    """JSON schema of one knob."""
    knob = KNOBS[name]
    if knob.kind == "bool":
        rule: dict[str, Any] = {"type": "boolean"}
    elif knob.kind == "choice":
        rule = {"type": "integer", "enum": list(knob.choices)}
    else:
        kind, number = ("integer", int) if knob.kind == "int" else ("number", float)
        rule = {"type": kind, "minimum": number(knob.low), "maximum": number(knob.high)}
    return rule | {"description": knob.description}


def action_schema(knobs: Sequence[str] = tuple(KNOBS)) -> dict[str, Any]:
    """JSON schema of an action over these knobs; strict: all of them, nothing else."""
    return {
        "type": "object",
        "properties": {name: knob_schema(name) for name in knobs},
        "required": list(knobs),
        "additionalProperties": False,
    }


def action_tool(knobs: Sequence[str]) -> dict[str, Any]:
    """The tool that sets these knobs, as the chat-completions API takes it."""
    function = {
        "name": TOOL,
        "description": "Set the serving engine's knobs for the seconds until you are asked again.",
        "parameters": action_schema(knobs),
    }
    return {"type": "function", "function": function}


def system_prompt(spec: TaskSpec) -> str:
    """The task in words: goal, objectives, knobs, and how to answer."""
    classes = zip(("interactive", "batch", "best effort"), spec.slo_ttft_ms, spec.class_shares, strict=True)
    objectives = [
        f"{name} ({share:.0%} of requests): {'none' if math.isinf(slo) else f'{slo:g} ms'}"
        for name, slo, share in classes
        if share > 0
    ]
    objective = "; ".join(objectives) if len(objectives) > 1 else f"{spec.slo_ttft_ms[0]:g} ms"
    terms = [f"{spec.reward[key]:g} x {weight.term}" for key, weight in REWARD_WEIGHTS.items() if key in spec.reward]
    lines = [
        "You control a GPU server that runs a large language model."
        " Once in a while you see what it measured and set its knobs.",
        f"Task: {spec.title}. {spec.description}",
        f"An episode is {spec.episode_length} seconds. Objective on the time to first token (TTFT): {objective}."
        f" {memory_text(spec)}",
        score_text(spec),
        f"The reward that you see each second, a guide: {' - '.join(terms)}, each relative to a reference.",
        "A request that finds all slots taken waits, and waiting counts into its TTFT.",
        "Knobs:",
        *(f"- {name}: {KNOBS[name].allowed}; {KNOBS[name].description}" for name in spec.active_knobs),
        f"Answer with one call of the tool {TOOL}, or, without tools, with one JSON object holding"
        f" {', '.join(spec.active_knobs)} and nothing else. A knob that you leave out is set to its default:"
        f" {', '.join(f'{name} {json.dumps(KNOBS[name].default)}' for name in spec.active_knobs)}.",
    ]
    return "\n".join(lines)


def memory_text(spec: TaskSpec) -> str:
    """What the task asks of GPU memory, and what happens when it runs out."""
    wish = "" if spec.memory_limit_gb is None else f"Keep GPU memory under {spec.memory_limit_gb:g} GB. "
    if spec.dynamics == "open_loop":
        return f"{wish}A request that outgrows the KV cache is preempted and computed again."
    limit = "what the GPU has" if spec.gpu_memory_gb is None else f"{spec.gpu_memory_gb:g} GB"
    return (
        f"{wish}Above {limit} the engine is out of memory: it serves nobody in that second, and who waited still waits."
    )


def observation_text(observation: Any, action: ServeAction, reward: float | None, knobs: Sequence[str]) -> str:
    """One observation as lines of ``name: value unit``, the knobs in force and the last reward.

    Args:
        observation: a ``ServeObservation`` of one environment, or its dict.
        action: what is set now.
        reward: of the last second; None at the start.
        knobs: which knobs to show.
    """
    values = observation if isinstance(observation, Mapping) else plain(observation)
    lines = []
    for name, field in OBSERVATION.items():
        value = values[name]
        text = ", ".join(f"{x:.2f}" for x in value) if isinstance(value, list | tuple) else f"{value:.4g}"
        unit = "" if field.unit in ("share", COST_UNIT) else f" {field.unit}"
        lines.append(f"{name}: {text}{unit}")
    now = action.to_dict()
    lines.append("knobs now: " + json.dumps({name: now[name] for name in knobs}))
    if reward is not None:
        lines.append(f"reward of the last second: {reward:.3f}")
    return "\n".join(lines)


class MalformedAnswer(ValueError):
    """An answer that is no action; the message is what the model is told."""


def parse_action(
    message: Mapping[str, Any], knobs: Sequence[str], baseline: Mapping[str, Any] | None = None
) -> ServeAction:
    """The action in a chat message: of its tool call, else of the one JSON object in its text.

    Args:
        message: ``choices[0].message`` of a chat completion.
        knobs: those that the task leaves free; the others stay at the baseline's value.
        baseline: value of every knob that an answer leaves out; default: ``Knob.default``.

    Raises:
        MalformedAnswer: no JSON object, an unknown knob, or a value out of range.
    """
    calls = message.get("tool_calls") or []
    if calls:
        function = calls[0].get("function") if isinstance(calls[0], Mapping) else None
        if not isinstance(function, Mapping) or function.get("name") != TOOL:
            raise MalformedAnswer(f"call the tool {TOOL}, no other")
        text = function.get("arguments")
        knob_values = text if isinstance(text, Mapping) else _json_object(str(text))
    else:
        knob_values = _json_object(_text(message.get("content")))
    unknown = [name for name in knob_values if name not in KNOBS]
    if unknown:
        raise MalformedAnswer(f"unknown knob {shown(unknown[0])}; allowed are {', '.join(knobs)}")
    values = {name: _value(name, knob_values[name]) for name in knobs if name in knob_values}
    action = ServeAction(**{**(baseline or {}), **values})
    try:
        check_action(action)
    except (TypeError, ValueError) as error:
        raise MalformedAnswer(str(error)) from None
    return action


def _text(content: Any) -> str:
    if isinstance(content, list):  # parts, as some servers answer
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _value(name: str, value: Any) -> Any:
    """Whole numbers that came as 64.0, and nothing else, are mended."""
    number = finite_number(value)
    if (
        KNOBS[name].kind in ("int", "choice")
        and isinstance(value, float)
        and number is not None
        and number == int(number)
    ):
        return int(number)
    return value


def _json_object(text: str) -> Mapping[str, Any]:
    """The last JSON object in a text; models wrap it in prose, in a code fence or behind their reasoning."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    decoder, last, at = json.JSONDecoder(), None, text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            at = text.find("{", at + 1)
            continue
        last, at = value, text.find("{", end)
    if not isinstance(last, Mapping):
        raise MalformedAnswer("no JSON object found in the answer; answer with one, or call the tool")
    return last

"""The live scenarios as they were written down before any run: ``data/live_scenarios.json``, with its reasons.

``name -> scenario_of -> SecondInstance | Drift``.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from inferencegym_jax.models import shown
from inferencegym_jax.table.latency_table import data_path

FILE = "live_scenarios.json"


@dataclass(frozen=True)
class Common:
    """What every live scenario states.

    Attributes:
        title: in a line.
        task: whose knobs, classes and grader it has.
        policies: the rivals, in the order of the first repeat.
        reference: the one that differences are taken to.
        batch_sizes: that fixed policies choose from.
        seconds: length of a run, unless said otherwise.
        repeats: runs of each policy, unless said otherwise.
        warmup_s: seconds of each run that are not counted, unless said otherwise.
        why: the reasons.
    """

    title: str
    task: str
    policies: tuple[str, ...]
    reference: str
    batch_sizes: tuple[int, ...]
    seconds: int
    repeats: int
    warmup_s: float
    why: tuple[str, ...]


@dataclass(frozen=True)
class SecondInstance(Common):
    """A window of a day under policies that may lease a second instance.

    Attributes:
        peak: load of the busiest ``peak_s`` seconds of a day, as a share of what the two instances can serve together
            within the objective on the time per token.
        peak_s: seconds.
        mean_prompt_share: mean prompt before the cut, as a share of the longest that was measured.
    """

    peak: float
    peak_s: int
    mean_prompt_share: float


@dataclass(frozen=True)
class Kind:
    """Requests of one kind: prompt as a share of the longest that was measured, output as a share of the mean one."""

    prompt_share: float
    output_share: float


@dataclass(frozen=True)
class Drift(Common):
    """Two kinds of requests by turns, on one instance.

    Attributes:
        phase_s: seconds for which a kind comes.
        load: of each kind, as a share of what the engine can serve of it within the objective on the time per token.
        long: prompts.
        short: prompts.
        kv_budgets: that fixed pairs choose from, beside ``batch_sizes``.
    """

    phase_s: int
    load: float
    long: Kind
    short: Kind
    kv_budgets: tuple[float, ...]


LiveScenario: TypeAlias = SecondInstance | Drift
_FORMS: dict[str, type[SecondInstance] | type[Drift]] = {"second-instance": SecondInstance, "drift": Drift}
NAMES = tuple(_FORMS)


@functools.cache
def scenario_of(name: str) -> LiveScenario:
    """The scenario of a name.

    Raises:
        ValueError: there is none; says which there are.
    """
    if name not in _FORMS:
        raise ValueError(f"scenario = {shown(name)}: must be one of {', '.join(NAMES)}")
    entry: dict[str, Any] = json.loads(data_path(FILE).read_text(encoding="utf-8"))[name]
    values: dict[str, Any] = {key: _frozen(value) for key, value in entry.items()}
    return _FORMS[name](**values)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return Kind(**cast(dict[str, Any], value))
    return tuple(cast(list[Any], value)) if isinstance(value, list) else value

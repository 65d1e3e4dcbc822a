"""The comparison grid: traffic, settings and objectives of every case, as data.

A case says what is asked of the engine; ``requests_of(case, seed)`` draws it, ``run(case, seed, profile)`` serves it
with the reference, ``python -m tests.reference.run_cases`` serves all of them. Rates are shares of a capacity that the
reference itself has determined (``capacity``: how many requests a second it finishes while a line stands before it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.serving import Result, serve
from tests.reference.settings import Change, Settings
from tests.reference.traffic import Requests

FIGURES = Path(__file__).with_name("cases.json")


@dataclass(frozen=True)
class Lengths:
    """Prompt and output tokens: lognormal with these means, cv (0: constant) and correlation, cut at the longest."""

    prompt: float
    output: float
    cv_prompt: float = 0.0
    cv_output: float = 0.0
    correlation: float = 0.0
    longest_prompt: int = 14050
    longest_output: int = 1000

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """[count] int64 prompts and outputs, at least 1 token each."""
        spread = np.log1p(np.array([self.cv_prompt, self.cv_output]) ** 2)
        common = np.log1p(self.correlation * self.cv_prompt * self.cv_output)
        normal = random.multivariate_normal((0, 0), [[spread[0], common], [common, spread[1]]], count)
        tokens = np.array([self.prompt, self.output]) * np.exp(normal - spread / 2)
        whole = np.clip(np.rint(tokens), 1, [self.longest_prompt, self.longest_output]).astype(np.int64)
        return whole[:, 0], whole[:, 1]


# Azure LLM inference trace 2023, conversation (Azure Public Dataset, CC BY 4.0): means of the log, cv and correlation
# within a second, longest request of the log. From `python -m tests.reference.azure conv`.
AZURE = Lengths(1155, 211, 0.954, 0.724, -0.091)
CONSTANT = Lengths(1155, 211)
# Mean lengths of HumanEval's and ShareGPT's requests; their dispersion is taken to be Azure's.
CODING = Lengths(171, 98, 0.954, 0.724, -0.091)
CHAT = Lengths(161, 338, 0.954, 0.724, -0.091)

SMALL_GB = 28.0  # of which a pool of 72,000 tokens is left: about 50 requests of Azure's lengths


@dataclass(frozen=True)
class Engine:
    """A capacity to relate rates to: lengths and settings."""

    lengths: Lengths
    settings: Settings = Settings()
    kind: str = "chat"


ENGINES = {
    "constant": Engine(CONSTANT),
    "dispersed": Engine(AZURE),
    "coding": Engine(CODING, kind="coding"),
    "chat": Engine(CHAT),
    "small_pool": Engine(AZURE, Settings(memory_gb=SMALL_GB)),
    "small_pool_constant": Engine(CONSTANT, Settings(memory_gb=SMALL_GB)),
}

USUAL = ((500.0, 50.0), (2000.0, 100.0))


@dataclass(frozen=True)
class Case:
    """One cell of the grid.

    Attributes:
        name: unique.
        engine: name in ENGINES; its capacity is the unit of `load`.
        load: (seconds, share of the capacity) one after the other; arrivals are Poisson.
        settings: of the engine; None: those of `engine`.
        changes: of the settings while it runs.
        objectives: (TTFT ms, TPOT ms), each counted.
        classes: shares of interactive, batch, best effort.
        start_s: requests that arrive before are not counted.
        runs: seeds 0 to runs - 1.
    """

    name: str
    engine: str
    load: tuple[tuple[float, float], ...]
    settings: Settings | None = None
    changes: tuple[Change, ...] = ()
    objectives: tuple[tuple[float, float], ...] = USUAL
    classes: tuple[float, float, float] = (1.0, 0.0, 0.0)
    start_s: float = 60.0
    runs: int = 10

    @property
    def engine_settings(self) -> Settings:
        """Settings at the start."""
        return self.settings if self.settings is not None else ENGINES[self.engine].settings

    @property
    def length_s(self) -> float:
        """Seconds with arrivals."""
        return sum(length for length, _ in self.load)


def steady(share: float, length: float = 300) -> tuple[tuple[float, float], ...]:
    """One load all the time."""
    return ((length, share),)


BURSTS = ((80, 0.5), (20, 1.5), (100, 0.5), (20, 1.5), (80, 0.5))
DRAFTS = ((1500.0, 15.0), (2000.0, 100.0))
SMALL = Settings(memory_gb=SMALL_GB)


def _grid() -> list[Case]:
    """All cases."""
    cases = []
    for kind in ("constant", "dispersed"):
        cases += [Case(f"{kind}_{share}", kind, steady(share)) for share in (0.2, 0.5, 0.8, 0.9)]
        cases.append(Case(f"bursts_{kind}", kind, BURSTS))
    cases.append(Case("classes_overload", "dispersed", steady(1.2), classes=(0.3, 0.3, 0.4)))
    cases.append(Case("classes_watermark", "dispersed", steady(1.2), Settings(kv_budget=0.2), classes=(0.3, 0.3, 0.4)))
    for kind in ("coding", "chat"):
        for share, drafts in ((0.1, 0), (0.1, 2), (0.3, 0), (0.3, 2), (0.8, 0), (0.8, 2)):
            settings = Settings(spec_length=drafts)
            cases.append(Case(f"{kind}_{share}_drafts_{drafts}", kind, steady(share), settings, objectives=DRAFTS))
    cases += [
        Case(f"prefix_0.5_{share}", "dispersed", steady(share), Settings(prefix_share=0.5)) for share in (0.5, 0.8)
    ]
    for share in (0.8, 0.9, 1.0, 1.1, 1.2):  # 1.0: at its limit
        cases.append(Case(f"small_pool_{share}", "small_pool", steady(share), SMALL))
    for share in (0.9, 1.0, 1.1):
        cases.append(Case(f"small_pool_constant_{share}", "small_pool_constant", steady(share), SMALL))
    cases.append(
        Case("small_pool_watermark_1.1", "small_pool", steady(1.1), Settings(memory_gb=SMALL_GB, kv_budget=0.8))
    )
    cases += [
        Case("replica_asked", "dispersed", ((100, 0.6), (200, 1.4)), changes=(Change(110, second_gpu="replica"),)),
        Case(
            "replica_given_back",
            "dispersed",
            ((120, 1.4), (180, 0.5)),
            Settings(second_gpu="replica"),
            (Change(150, second_gpu="none"),),
        ),
        Case("prefill_gpu", "dispersed", steady(0.8), Settings(second_gpu="prefill")),
        Case("prefill_gpu_link", "dispersed", steady(0.8), Settings(second_gpu="prefill", transfer_gb_s=5.0)),
        Case("prefill_gpu_asked", "dispersed", steady(0.9), changes=(Change(60, second_gpu="prefill"),)),
        Case("to_int8", "dispersed", steady(0.5), changes=(Change(120, quant_tier=1),)),
        Case("int8", "dispersed", steady(0.8), Settings(quant_tier=1)),
        Case("batch_size_32", "dispersed", steady(0.5), Settings(batch_size=32)),
        Case("batch_size_512", "dispersed", steady(0.9), Settings(batch_size=512)),
    ]
    return cases


CASES = {case.name: case for case in _grid()}


def capacity(engine: Engine, profile: dict[str, Any], count: int = 6000, seed: int = 0) -> float:
    """Requests/s that the engine finishes while a line stands: the largest rate at which it keeps up.

    All requests are there at the start; counted is the time in which the second and the third quarter finish.
    """
    prompt, output = engine.lengths.draw(count, np.random.default_rng([seed, 1]))
    requests = Requests(np.zeros(count), prompt, output, kinds=(engine.kind,))
    finish = np.sort(serve(requests, engine.settings, profile).finish_ms)
    first, last = count // 4, 3 * count // 4
    return float(1000 * (last - first) / (finish[last] - finish[first]))


def committed() -> dict[str, Any]:
    """The figures that ``run_cases`` has written: capacities and, by case, means over the runs and their spread."""
    return json.loads(FIGURES.read_text())


def requests_of(case: Case, seed: int, capacities: dict[str, float] | None = None) -> Requests:
    """The traffic of one run of a case.

    Args:
        case: of the grid.
        seed: 0 to case.runs - 1.
        capacities: requests/s by engine; None: the committed ones.
    """
    rate = (committed()["capacity"] if capacities is None else capacities)[case.engine]
    random = np.random.default_rng([seed, 2])
    starts = np.cumsum([0.0] + [length for length, _ in case.load])
    pieces = [
        np.sort(random.uniform(1000 * start, 1000 * (start + length), random.poisson(share * rate * length)))
        for start, (length, share) in zip(starts, case.load, strict=False)
    ]
    arrival = np.concatenate(pieces)
    prompt, output = ENGINES[case.engine].lengths.draw(len(arrival), random)
    priority = random.choice(3, len(arrival), p=case.classes)
    return Requests(arrival, prompt, output, priority.astype(np.int64), kinds=(ENGINES[case.engine].kind,))


def run(case: Case, seed: int, profile: dict[str, Any], capacities: dict[str, float] | None = None) -> Result:
    """One run of a case, until its last request is finished."""
    return serve(requests_of(case, seed, capacities), case.engine_settings, profile, case.changes)


def windows(case: Case) -> tuple[float, float]:
    """(start_s, end_s) of what is counted."""
    return case.start_s, case.length_s


def names(words: Sequence[str]) -> list[str]:
    """Names of the cases that hold one of the words; all without words."""
    return [name for name in CASES if not words or any(word in name for word in words)]

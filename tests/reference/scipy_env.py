"""The obvious implementation of the environment: scipy interpolators, a NumPy generator and a Python loop, in float64.

Written from ENVIRONMENT.md, sections 4 and 5, alone, one line a rule, and slow. Two uses: with the same draws it is
the oracle for the deterministic part of the step, and with its own draws it is what ``benchmarks/rollout.py`` measures
speed against.
"""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from scipy.interpolate import RegularGridInterpolator

DATA = Path(__file__).resolve().parents[2] / "data"
PROMPTS = [64, 128, 256, 512, 1024, 2048, 4096, 8192]
AXES = ("batch_size", "kv_budget", "prompt_len_bucket")
CHOICES = ("spec_length", "quant_tier", "prefill_disagg")
METRICS = ("ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "tps", "gpu_mem_gb", "cost_per_1k")
BASELINE = {"kv_budget": 1.0, "spec_length": 0, "batch_size": 32, "prefill_disagg": False, "quant_tier": 0}
EPISODE, QUEUE_MAX, WINDOW, OOM_GB = 200, 512, 50, 40.0


class Draws(NamedTuple):
    """The randomness of one step."""

    class_arrivals: list[int]
    prompt_len: float
    ttft_noise: float
    tpot_noise: float


class ScipyEnv:
    """One episode of a task, stepped in Python."""

    def __init__(self, task: int, seed: int = 0):
        specs = json.loads((DATA / "workload_configs.json").read_text())
        self.name, self.spec = next((name, spec) for name, spec in specs.items() if spec["id"] == task)
        self.norms = json.loads((DATA / "calibration.json").read_text())["tasks"][self.name]
        table = pq.read_table(DATA / "traces_llama3_8b.parquet")
        self.reference = float((table.schema.metadata or {})[b"reference_acceptance"])
        columns = {name: np.asarray(table.column(name), float) for name in (*AXES, *CHOICES, *METRICS)}
        self.axes = [np.unique(columns[name]) for name in AXES]
        self.axes[2] = np.array([PROMPTS[int(i)] for i in self.axes[2]], float)
        order = np.lexsort([columns[name] for name in reversed((*CHOICES, *AXES))])
        keys = [tuple(int(columns[name][i]) for name in CHOICES) for i in order]
        self.lookup = {}
        cells = math.prod(map(len, self.axes))
        for start in range(0, len(order), cells):
            rows = order[start : start + cells]
            shape = [len(axis) for axis in self.axes]
            self.lookup[keys[start]] = {
                metric: RegularGridInterpolator(self.axes, columns[metric][rows].reshape(shape)) for metric in METRICS
            }
        memory = columns["gpu_mem_gb"]
        self.base_memory = [memory[columns["quant_tier"] == tier].min() for tier in range(3)]
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Start an episode."""
        self.rng = np.random.default_rng(seed)
        self.time, self.queue, self.ema, self.cost = 0, 0, 0.0, 0.0
        self.window: deque[list[int]] = deque(maxlen=WINDOW)

    def draw(self) -> Draws:
        """The step's randomness from NumPy's generator."""
        arrivals, prompts = self.spec["arrivals"], self.spec["prompts"]
        offset = self.time % arrivals.get("burst_period", EPISODE) - arrivals.get("burst_start", 0)
        burst = 0 <= offset < arrivals.get("burst_length", 0)
        rate = arrivals["burst_rate"] if burst else arrivals["rate"]
        shares = self.spec.get("class_shares", [1.0, 0.0, 0.0])
        counts = [int(self.rng.poisson(rate * share)) for share in shares]
        if prompts["kind"] == "lognormal":
            length = self.rng.lognormal(prompts["log_mean"], prompts["log_sigma"])
            length = min(max(length, prompts["low"]), prompts["high"])
        elif self.rng.random() < prompts.get("long_share", 0.0):
            length = self.rng.uniform(prompts["long_low"], prompts["long_high"])
        else:
            length = self.rng.uniform(prompts["low"], prompts["high"])
        return Draws(counts, length, self.rng.normal(1, 0.05), self.rng.normal(1, 0.05))

    def step(self, action: dict[str, Any], draws: Draws | None = None) -> tuple[dict[str, Any], float, bool, dict]:
        """One second: (observation, reward, done, info), in the order of ENVIRONMENT.md 5."""
        spec = self.spec
        knobs = {name: action[name] if name in spec["active_knobs"] else BASELINE[name] for name in BASELINE}
        draws = self.draw() if draws is None else draws
        batch, kv, k = knobs["batch_size"], knobs["kv_budget"], knobs["spec_length"]

        # 1 workload, and the row of the table, which says whether the batch fits into memory at all
        arrivals = sum(draws.class_arrivals)
        point = [
            float(np.clip(x, axis[0], axis[-1]))
            for x, axis in zip((batch, kv, draws.prompt_len), self.axes, strict=True)
        ]
        table = self.lookup[(k, int(knobs["quant_tier"]), int(knobs["prefill_disagg"]))]
        found = {metric: float(table[metric](point)[0]) for metric in METRICS}
        oom = found["gpu_mem_gb"] > OOM_GB
        served = 0 if oom else min(batch, self.queue + arrivals)
        left = self.queue + arrivals - served
        self.queue = min(left, QUEUE_MAX)
        rejected = left - self.queue
        self.ema += 2 / 11 * (arrivals - self.ema)
        self.window.append(list(draws.class_arrivals))
        counts = np.sum(self.window, axis=0)
        expected = np.array(spec.get("class_shares", [1.0, 0.0, 0.0]))
        shares = counts / counts.sum() if counts.sum() else expected
        bucket = int(np.digitize(draws.prompt_len, PROMPTS[:-1]))
        bucket = max(bucket, 0)

        # 2 simulator
        accept = max(spec["acceptance"] * (1 - 0.1 * bucket) / (1 + 0.15 * k), 0.0)
        gain = sum(accept**i for i in range(k + 1)) / sum(self.reference**i for i in range(k + 1))
        delay = 1000 * self.queue / batch
        ttft_p50 = max((found["ttft_p50_ms"] + delay) * draws.ttft_noise, 1.0)
        ttft_p99 = max((found["ttft_p99_ms"] + delay) * draws.ttft_noise, 1.0)
        tpot = max(found["tpot_ms"] / gain * draws.tpot_noise, 1.0)

        # 3 violations, 4 out of memory
        slos = [math.inf if x is None else x for x in spec["slo_ttft_ms"]] + [math.inf] * 3
        over = sum(share for share, slo in zip(shares, slos, strict=False) if ttft_p50 > slo)
        violations = math.floor(self.queue * over + 1e-3) + rejected
        if oom:
            violations = max(batch, 5 * violations)
        tps = 0.0 if oom else found["tps"] * gain
        memory = min(found["gpu_mem_gb"], OOM_GB)

        # 5 reward
        weights = spec["reward"]
        bound = [(share, slo) for share, slo in zip(shares, slos, strict=False) if slo < math.inf]
        total = sum(share for share, _ in bound)
        slo = sum(share * slo for share, slo in bound) / total if total > 0 else math.inf
        rate = min(violations / max(self.queue, 1), 1.0)
        reward = (
            weights["alpha"] * tps / self.norms["optimal_tps"]
            - weights["beta"] * ttft_p50 / slo
            - weights["gamma"] * rate
            - weights["delta"] * found["cost_per_1k"] / self.norms["cost_normaliser"]
        )
        self.cost += found["cost_per_1k"]
        self.time += 1
        base = self.base_memory[int(knobs["quant_tier"])]
        metrics = {
            "ttft_p50_ms": ttft_p50,
            "ttft_p99_ms": ttft_p99,
            "tpot_ms": tpot,
            "tokens_per_sec": tps,
            "gpu_memory_gb": memory,
            "cost_per_1k": found["cost_per_1k"],
            "spec_accept_rate": accept if k else 0.0,
            "eviction_events": math.floor((1 - np.float32(kv)) * np.float32(self.queue)),
            "slo_violations": violations,
        }
        observation = {
            "queue_depth": self.queue,
            "mean_prompt_len": draws.prompt_len,
            "arrival_rate": min(self.ema, 400.0),
            "kv_cache_occupancy": float(np.clip((memory - base) / (OOM_GB - base), 0, 1)),
            "ttft_p50": min(ttft_p50, 5000.0),
            "tpot_p50": min(tpot, 500.0),
            "slo_violation_rate": rate,
            "gpu_memory_used_gb": memory,
            "spec_accept_rate": metrics["spec_accept_rate"],
            "priority_distribution": shares,
            "timestep": self.time,
            "cost_so_far": self.cost,
        }
        info = {"metrics": metrics, "arrivals": arrivals, "served": served, "rejected": rejected, "oom": oom}
        return observation, float(np.clip(reward, -1, 1)), self.time >= EPISODE, info

    def random_action(self) -> dict[str, Any]:
        """Every knob uniform over its range."""
        return {
            "kv_budget": self.rng.uniform(0.1, 1.0),
            "spec_length": int(self.rng.choice([0, 1, 2, 4, 8])),
            "batch_size": int(self.rng.integers(1, 513)),
            "prefill_disagg": bool(self.rng.integers(2)),
            "quant_tier": int(self.rng.integers(3)),
        }

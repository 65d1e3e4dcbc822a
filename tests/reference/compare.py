"""The fluid beside the reference, case by case: the table of docs/fidelity.md and the limits that the tests hold.

python -m tests.reference.compare                    # every case of the grid
python -m tests.reference.compare small_pool --runs 3
python -m tests.reference.compare --logs             # Azure's logs, where a copy is at hand
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.reference import azure
from tests.reference.cases import CASES, committed, names
from tests.reference.fluid import case_figures, log_figures
from tests.reference.iteration import load_profile
from tests.reference.serving import serve
from tests.reference.settings import Settings
from tests.reference.summary import summarise

PREEMPTION = "preemption_events"
FEW = 5.0  # preemptions in a run below which a factor says nothing
HEAD = ("case", "TPOT", "mean TTFT", "p50", "p99", "tokens/s", "preempted", "on time, points")


@dataclass(frozen=True)
class Limits:
    """How far the fluid may be from the reference; None: as far as it is.

    Attributes:
        tpot, ttft_mean, ttft_p99, throughput: relative.
        on_time: of the share of requests, absolute; every objective and every class.
        preemptions: factor either way.
    """

    tpot: float | None = None
    ttft_mean: float | None = None
    ttft_p99: float | None = None
    throughput: float | None = None
    on_time: float | None = None
    preemptions: float | None = None


STEADY = Limits(tpot=0.03, ttft_mean=0.10, ttft_p99=0.35, on_time=0.03)
STEADY_CONSTANT_FULL = Limits(tpot=0.03, ttft_mean=0.20, ttft_p99=0.35, on_time=0.03)
BURSTS = Limits(ttft_mean=0.15, ttft_p99=0.30, on_time=0.03, throughput=0.02)
BURSTS_CONSTANT = Limits(ttft_mean=0.20, ttft_p99=0.30, on_time=0.03, throughput=0.02)
PREEMPTS = Limits(throughput=0.03, preemptions=1.5, on_time=0.08)
NONE = Limits()
# No target of the specification: what has been reached, so that it is not lost.
CLASSES = Limits(tpot=0.03, throughput=0.02, on_time=0.10)
SWITCHING = Limits(tpot=0.04, ttft_mean=0.15, on_time=0.03)

FAMILIES: Mapping[str, Limits] = {
    "constant_0.9": STEADY_CONSTANT_FULL,
    "constant_": STEADY,
    "dispersed_": STEADY,
    "coding_": STEADY,
    "chat_": STEADY,
    "prefix_": STEADY,
    "int8": STEADY,
    "batch_size_": STEADY,
    "bursts_constant": BURSTS_CONSTANT,
    "bursts_": BURSTS,
    "small_pool_1.0": NONE,  # at its limit two runs of the reference differ by more
    "small_pool_constant_1.0": NONE,
    "small_pool_": PREEMPTS,
    "classes_": CLASSES,
    "replica_": SWITCHING,
    "prefill_gpu": SWITCHING,
    "to_int8": SWITCHING,
}
LOG_LIMITS = BURSTS


def limits_of(name: str) -> Limits:
    """What a case of the grid is held to: the first family whose name it begins with; else nothing."""
    return next((limits for family, limits in FAMILIES.items() if name.startswith(family)), NONE)


def relative(fluid: Mapping[str, float], reference: Mapping[str, Any], name: str) -> float:
    """Error of a figure as a share of the reference's."""
    return fluid[name] / reference[name] - 1.0


def misses(fluid: Mapping[str, float], reference: Mapping[str, Any], limits: Limits) -> list[str]:
    """Every figure further off than the limits allow, as a sentence each."""
    found = []
    bounds = {
        "itl_mean_ms": limits.tpot,
        "ttft_mean_ms": limits.ttft_mean,
        "ttft_p99_ms": limits.ttft_p99,
        "tokens_per_s": limits.throughput,
    }
    for name, bound in bounds.items():
        error = relative(fluid, reference, name)
        if bound is not None and not abs(error) <= bound:
            found.append(
                f"{name}: {fluid[name]:.4g}, the reference has {reference[name]:.4g}: {error:+.1%} of {bound:.0%}"
            )
    for name in fluid:
        error = fluid[name] - reference[name] if name.startswith("on_time") else 0.0
        if limits.on_time is not None and not abs(error) <= limits.on_time:
            found.append(
                f"{name}: {fluid[name]:.3f}, the reference has {reference[name]:.3f}: {100 * error:+.1f} points"
            )
    mine, other = fluid[PREEMPTION], reference[PREEMPTION]
    if limits.preemptions is not None and max(mine, other) > FEW:
        factor = max(mine, other) / max(min(mine, other), 1e-9)
        if factor > limits.preemptions:
            found.append(f"{PREEMPTION}: {mine:.1f}, the reference has {other:.1f}: a factor of {factor:.2f}")
    return found


def row(name: str, fluid: Mapping[str, float], reference: Mapping[str, Any]) -> tuple[str, ...]:
    """A line of the table, errors as texts; times in brackets are the reference's."""

    def percent(key: str) -> str:
        return f"{100 * relative(fluid, reference, key):+.1f} %"

    shares = [
        f"{key.removeprefix('on_time_').replace('_', '/', 1).replace('_', ' ')} {100 * (value - reference[key]):+.1f}"
        for key, value in fluid.items()
        if key.startswith("on_time")
    ]
    preempted = f"{reference[PREEMPTION]:.0f}: {fluid[PREEMPTION]:.0f}" if reference[PREEMPTION] else ""
    return (
        name,
        f"{reference['itl_mean_ms']:.1f} {percent('itl_mean_ms')}",
        f"{reference['ttft_mean_ms']:.0f} {percent('ttft_mean_ms')}",
        percent("ttft_p50_ms"),
        f"{reference['ttft_p99_ms']:.0f} {percent('ttft_p99_ms')}",
        percent("tokens_per_s"),
        preempted,
        ", ".join(shares),
    )


def of_log(log: str, speed: float) -> tuple[dict[str, float], dict[str, float]]:
    """(fluid, reference) of one of Azure's logs at a multiple of its rate."""
    requests = azure.load(log, speed)
    end_s = float(int(requests.arrival_ms[-1] / 1000) + 1)
    reference = summarise(serve(requests, Settings(), load_profile()), azure.OBJECTIVES, 0.0, end_s)
    return log_figures(requests, azure.OBJECTIVES), reference


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="words: cases whose name holds one of them")
    parser.add_argument("--runs", type=int, help="runs of each case, compared with the reference's mean over all its")
    parser.add_argument("--logs", action="store_true", help="Azure's logs instead of the grid")
    options = parser.parse_args(arguments)
    print("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD), flush=True)
    if options.logs:
        cases = [(f"{log} x {speed:g}", (log, speed)) for log in azure.FILES for speed in azure.SPEEDS]
        cases = [case for case in cases if not options.only or any(word in case[0] for word in options.only)]
        found = ((name, *of_log(*what), LOG_LIMITS) for name, what in cases)
    else:
        figures = committed()["cases"]
        found = (
            (name, case_figures(CASES[name], options.runs), figures[name], limits_of(name))
            for name in names(options.only)
        )
    missed: dict[str, list[str]] = {}
    for name, fluid, reference, limits in found:
        print("| " + " | ".join(row(name, fluid, reference)) + " |", flush=True)
        missed[name] = misses(fluid, reference, limits)
    for name, sentences in missed.items():
        for sentence in sentences:
            print(f"{name}: {sentence}")


if __name__ == "__main__":
    main()

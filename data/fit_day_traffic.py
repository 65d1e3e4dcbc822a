"""Fit traffic by kind and hour of the day to public logs and write `data/traffic_pools.json`.

    python data/fit_day_traffic.py FOLDER             # writes the file, prints how well it fits
    python data/fit_day_traffic.py FOLDER --check     # compares instead; exits 1 where it differs

FOLDER holds AzureLLMInferenceTrace_code.csv and AzureLLMInferenceTrace_conv.csv (Azure Public Dataset, CC BY 4.0; the
same hour of 2023-11-16) and servegen_top_clients_hourly.csv (ServeGen, Apache-2.0: hour by hour over 14 days the
largest clients of its pools). The logs are not part of the project; what is written is fitted.

A kind's rate at hour h of a day is `rate hours[h] level`. The level is a smooth normal noise (three time scales, hours;
`inferencegym_jax/traffic/days.py`) put through the quantiles of the log's own levels; the scales' weights are found by
non-negative least squares on the autocovariance of the log's normal scores. Counts within a second have the
dispersion of the gaps, cv^2.

m-large,    ServeGen does not say what its clients do; they are put into kinds by their lengths: prompts of 2,000 tokens
m-mid       and more are long documents, then outputs of 150 and more chat, of 10 and less coding (completions), others
            agents (short structured answers). Every one of the 14 days is scaled so that its busiest hour needs one
            GPU; a task's share is then the peak of its days, in GPUs. Thinning a pool makes its gaps more even.
azure-day   Code and conversation of the Azure hour: lengths, gaps and swings from the logs; the day from what Azure
            published of a week of 2024: code 12 times, conversation 2.5 times from night to peak, peaks four hours
            apart.
drafts      Not a log: coding (HumanEval's mean lengths) and chat (ShareGPT's) take turns, each from 0.05 to 1.05 of one
            GPU's capacity in one half of a cycle and 0.05 in the other, so their sum goes from 0.1 to 1.1. Cycle: a
            day of the clock.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.fit_traces import FAST, MIDDLE, SLOW, WINDOWS, excess_variance, noise_autocovariance, window_share  # noqa: E402
from inferencegym_jax.models import HOURS  # noqa: E402
from inferencegym_jax.physics.capacity import work_ms  # noqa: E402
from inferencegym_jax.physics.open_loop import iterations_of  # noqa: E402
from inferencegym_jax.table.latency_table import load_table  # noqa: E402
from inferencegym_jax.tasks import engine_params, get_task  # noqa: E402
from inferencegym_jax.tasks.pools import day_traffic  # noqa: E402
from inferencegym_jax.traffic.days import DEVIATIONS, rates_at  # noqa: E402
from inferencegym_jax.traffic.dispersion import arrival_scv  # noqa: E402
from inferencegym_jax.traffic.log_files import open_log  # noqa: E402

OUT = ROOT / "data" / "traffic_pools.json"
FASTS, MIDDLES, SLOWS = (1, 2, 3), (6, 8, 12), (24, 48, 72)
LAGS = 72
HUMANEVAL, SHAREGPT = (171.0, 98.0), (161.0, 338.0)  # mean prompt and output, tokens: DistServe (arXiv 2401.09670)
HUMANEVAL_CV, SHAREGPT_CV = (0.5, 0.7), (1.4, 0.8)  # between requests; assumed
LEAST_LOAD, MOST_LOAD = 0.05, 1.05  # of one GPU's capacity, each kind of `drafts`
DAYS = 14
QUANTILES = (5, 25, 50, 75, 95, 100)


def digits(value: Any, count: int = 4) -> Any:
    """Numbers rounded to so many significant digits, nested lists kept."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [digits(x, count) for x in value]
    return float(f"{float(value):.{count}g}")


def kind_of(prompt: float, output: float) -> str:
    """A client's kind by its mean lengths (tokens)."""
    if prompt >= 2000:
        return "long documents"
    if output >= 150:
        return "chat"
    return "coding" if output <= 10 else "agents"


def load_of(prompt: Any, output: Any) -> np.ndarray:
    """ms of a saturated GPU that a request takes, on the shipped table."""
    params = engine_params(get_task(4), load_table())
    return np.asarray(work_ms(iterations_of(load_table()), params, np.asarray(prompt), np.asarray(output)), np.float64)


def autocovariance(values: np.ndarray, lags: int) -> np.ndarray:
    """Of a series without its mean, lags 0 to `lags`."""
    x = values - values.mean()
    return np.array([(x[: len(x) - k] * x[k:]).mean() for k in range(lags + 1)])


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Each value's deviation in a standard normal, by its rank."""
    from scipy.stats import norm, rankdata

    return np.asarray(norm.ppf((rankdata(values) - 0.5) / len(values)))


def level_nodes(levels: np.ndarray) -> np.ndarray:
    """Quantiles of levels at the deviations that the traffic interpolates between, scaled to mean 1 under a normal."""
    from scipy.stats import norm

    nodes = np.quantile(levels, norm.cdf(DEVIATIONS))
    z = np.linspace(-5.0, 5.0, 4001)
    density = norm.pdf(z)
    return nodes / ((np.interp(z, DEVIATIONS, nodes) * density).sum() / density.sum())


def fit_noise(levels: list[np.ndarray]) -> tuple[tuple[int, ...], list[np.ndarray], list[dict[str, Any]]]:
    """Periods (hours) that serve all kinds, their weights, and how well each fits."""
    from scipy.optimize import nnls

    wanted = [autocovariance(normal_scores(x), LAGS) for x in levels]
    wanted = [acf / acf[0] for acf in wanted]
    nearness = 1.0 / np.sqrt(1.0 + np.arange(LAGS + 1))
    best: tuple[float, tuple[int, ...], list[np.ndarray]] | None = None
    for periods in itertools.product(SLOWS, MIDDLES, FASTS):
        design = np.stack([noise_autocovariance(p, LAGS) for p in periods], axis=1)
        found = [nnls(design * nearness[:, None], acf * nearness) for acf in wanted]
        error = float(sum(e for _, e in found))
        if best is None or error < best[0]:
            best = (error, periods, [v / v.sum() for v, _ in found])
    assert best is not None
    _, periods, variances = best
    design = np.stack([noise_autocovariance(p, LAGS) for p in periods], axis=1)
    shown = (0, 1, 3, 6, 12, 24)
    fits = [
        {
            "lags_hours": list(shown),
            "autocorrelation_of_log": digits(acf[list(shown)], 3),
            "autocorrelation_of_model": digits((design @ v)[list(shown)], 3),
        }
        for acf, v in zip(wanted, variances, strict=True)
    ]
    return periods, [np.sqrt(v) for v in variances], fits


def lognormal_levels(sigma: float) -> np.ndarray:
    """`level_nodes` of a lognormal level whose logarithm has this deviation."""
    return level_nodes(np.exp(sigma * normal_scores(np.arange(10001.0))))


def gpus_by_hour(pool: dict[str, Any]) -> np.ndarray:
    """GPUs that the model's hours need, float64[2000 days, 24]."""
    import jax

    profile = iterations_of(load_table()).profile
    day = day_traffic(pool, profile).replace(clock=np.float32(3600.0))
    work = load_of(day.prompt_mean, day.output_mean) / 1000.0
    rates = jax.jit(jax.vmap(jax.vmap(rates_at, (None, 0, None)), (0, None, None)))
    found = np.asarray(rates(np.arange(2000, dtype=np.uint32), np.arange(HOURS, dtype=np.int32), day), np.float64)
    return (found * work).sum(axis=-1)


def fit_swings(counts: list[np.ndarray]) -> tuple[tuple[int, ...], list[np.ndarray], list[dict[str, Any]]]:
    """Periods (seconds) that serve all kinds, their sigmas, and the swings of log and model, from counts a second."""
    from scipy.optimize import nnls

    wanted = [np.maximum(excess_variance(x, WINDOWS), 0.0) for x in counts]
    weights = [1.0 / np.sqrt(np.maximum(x, 1e-3)) for x in wanted]
    best: tuple[float, tuple[int, ...], list[np.ndarray]] | None = None
    for periods in itertools.product(SLOW, MIDDLE, FAST):
        design = np.stack([window_share(p) for p in periods], axis=1)
        found = [nnls(design * w[:, None], x * w) for x, w in zip(wanted, weights, strict=True)]
        error = sum(e / np.linalg.norm(x * w) for (_, e), x, w in zip(found, wanted, weights, strict=True))
        if best is None or error < best[0]:
            best = (float(error), periods, [v for v, _ in found])
    assert best is not None
    _, periods, variances = best
    design = np.stack([window_share(p) for p in periods], axis=1)
    fits = [
        {
            "windows_s": list(WINDOWS),
            "relative_sd_of_rate_log": digits(np.sqrt(x), 3),
            "relative_sd_of_rate_model": digits(np.sqrt(design @ v), 3),
        }
        for x, v in zip(wanted, variances, strict=True)
    ]
    return periods, [np.sqrt(np.log1p(v)) for v in variances], fits


def servegen(path: Path, pool: str) -> dict[str, Any]:
    """The kinds of a pool of ServeGen."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["pool"] == pool]
    names = ("requests_per_s", "cv_of_gaps", "mean_input_tokens", "sd_input_tokens")
    names += ("mean_output_tokens", "sd_output_tokens")
    clients: dict[str, np.ndarray] = {}
    for client in dict.fromkeys(row["client"] for row in rows):
        mine = sorted((row for row in rows if row["client"] == client), key=lambda row: int(row["hour"]))
        clients[client] = np.array([[float(row[name] or "nan") for name in names] for row in mine])
    groups: dict[str, list[np.ndarray]] = {}
    for values in clients.values():
        values = values[: DAYS * HOURS]
        values[:, 0] = rate = np.nan_to_num(values[:, 0])
        mean = np.nansum(values * rate[:, None], axis=0) / rate.sum()
        values[:, 2:] = np.where(np.isfinite(values[:, 2:]), values[:, 2:], mean[2:])
        values[:, 1] = np.where(np.isfinite(values[:, 1]), values[:, 1], 1.0)
        groups.setdefault(kind_of(mean[2], mean[4]), []).append(values)
    loads = np.zeros(DAYS * HOURS)
    for values in itertools.chain(*groups.values()):
        loads += values[:, 0] * load_of(values[:, 2], values[:, 4]) / 1000.0
    share = np.repeat(1.0 / loads.reshape(DAYS, HOURS).max(axis=1), HOURS)  # each day's busiest hour needs one GPU
    kinds, levels = [], []
    order = ("coding", "chat", "long documents", "agents")
    for name in sorted(groups, key=order.index):
        values = np.stack(groups[name])  # clients, hours, columns
        rate = values[..., 0] * share
        weight = rate / rate.sum()
        total = rate.sum(axis=0)
        hours = total.reshape(DAYS, HOURS).mean(axis=0)
        levels.append(total / np.tile(hours, DAYS))

        def moments(mean: np.ndarray, deviation: np.ndarray, weight: np.ndarray = weight) -> tuple[float, float]:
            first = (weight * mean).sum()
            return first, float(np.sqrt((weight * (deviation**2 + (mean - first) ** 2)).sum()))

        prompt, prompt_sd = moments(values[..., 2], values[..., 3])
        output, output_sd = moments(values[..., 4], values[..., 5])
        between = (weight * (values[..., 2] - prompt) * (values[..., 4] - output)).sum()
        dispersion = 1.0 + (weight * share * (values[..., 1] ** 2 - 1.0)).sum()
        kinds.append(
            {
                "name": name,
                "class": "interactive",
                "clients": len(values),
                "rate": digits(total.mean()),
                "hours": digits(hours / hours.mean(), 3),
                "gaps_cv": digits(np.sqrt(dispersion), 3),
                "prompt": {"mean": digits(prompt), "cv": digits(prompt_sd / prompt, 3)},
                "output": {"mean": digits(output), "cv": digits(output_sd / output, 3)},
                "correlation": digits(np.clip(between / (prompt_sd * output_sd), -1, 1), 2),
                "prefix_share": 0.0,
                "acceptance": "coding" if name == "coding" else "chat",
            }
        )
    periods, weights, fits = fit_noise(levels)
    for kind, weight, fit, level in zip(kinds, weights, fits, levels, strict=True):
        kind["weights"] = digits(weight[::-1], 4)
        kind["levels"] = digits(level_nodes(level), 3)
        hours = np.asarray(kind["hours"])
        kind["fit"] = fit | {"variance_of_hours_over_that_of_levels": digits(hours.var() / level.var(), 2)}
    return {
        "source": f"ServeGen (Alibaba), pool {pool}: its largest clients with known lengths, hours of 14 days, every "
        "day scaled so that its busiest hour needs one A100",
        "licence": "Apache-2.0",
        "fitted_by": "python data/fit_day_traffic.py FOLDER",
        "noise_hours": list(reversed(periods)),
        "fit": {"quantiles": list(QUANTILES), "gpus_by_hour_log": digits(np.percentile(loads * share, QUANTILES), 3)},
        "kinds": kinds,
    }


def azure(folder: Path) -> dict[str, Any]:
    """Code and conversation of the Azure hour."""
    logs = (("coding", "code", 12.0, 15.0), ("chat", "conv", 2.5, 19.0))
    requests = []
    for _, name, _, _ in logs:
        blocks = list(open_log(folder / f"AzureLLMInferenceTrace_{name}.csv").blocks())
        times, prompts, outputs = (
            np.concatenate([getattr(block, part) for block in blocks]) for part in ("times", "prompts", "outputs")
        )
        requests.append((times - times.min(), np.clip(prompts, 32.0, 8192.0), outputs))
    periods, sigmas, fits = fit_swings([np.bincount(times.astype(np.int64)) for times, _, _ in requests])
    kinds = []
    for (name, _, ratio, peak), (times, prompts, outputs), sigma, fit in zip(logs, requests, sigmas, fits, strict=True):
        hour = np.arange(HOURS) + 0.5
        day = np.exp(0.5 * np.log(ratio) * np.cos(2 * np.pi * (hour - peak) / HOURS))
        kinds.append(
            {
                "name": name,
                "class": "interactive",
                "rate": digits(len(times) / times.max()),
                "hours": digits(day / day.mean(), 3),
                "weights": digits(sigma / np.sqrt((sigma**2).sum()), 4),
                "levels": digits(lognormal_levels(float(np.sqrt((sigma**2).sum()))), 3),
                "gaps_cv": digits(np.sqrt(arrival_scv(times)), 3),
                "prompt": {"mean": digits(prompts.mean()), "cv": digits(prompts.std() / prompts.mean(), 3)},
                "output": {"mean": digits(outputs.mean()), "cv": digits(outputs.std() / outputs.mean(), 3)},
                "correlation": digits(np.corrcoef(prompts, outputs)[0, 1], 2),
                "prefix_share": 0.0,
                "acceptance": name,
                "fit": fit,
            }
        )
    return {
        "source": "AzureLLMInferenceTrace_code.csv and _conv.csv of the Azure Public Dataset, one hour of 2023-11-16; "
        "the day's course as published of a week of 2024",
        "licence": "CC BY 4.0",
        "fitted_by": "python data/fit_day_traffic.py FOLDER",
        "noise_hours": digits([period / 3600.0 for period in periods], 3),
        "kinds": kinds,
    }


def drafts() -> dict[str, Any]:
    """Coding and chat in antiphase, in shares of one GPU's capacity."""
    place = (np.arange(HOURS) + 0.5) / HOURS
    swing = np.maximum(np.sin(2 * np.pi * place), 0.0) ** 2
    kinds = []
    for name, klass, (prompt, output), (prompt_cv, output_cv), up in (
        ("coding", "interactive", HUMANEVAL, HUMANEVAL_CV, swing),
        ("chat", "batch", SHAREGPT, SHAREGPT_CV, np.roll(swing, HOURS // 2)),
    ):
        load = LEAST_LOAD + (MOST_LOAD - LEAST_LOAD) * up / swing.max()
        kinds.append(
            {
                "name": name,
                "class": klass,
                "rate": digits(1000.0 * load.mean() / float(load_of(prompt, output))),
                "hours": digits(load / load.mean(), 4),
                "weights": [0.0, 0.0, 0.0],
                "levels": [1.0] * len(DEVIATIONS),
                "gaps_cv": 1.0,
                "prompt": {"mean": prompt, "cv": prompt_cv},
                "output": {"mean": output, "cv": output_cv},
                "correlation": 0.0,
                "prefix_share": 0.0,
                "acceptance": name,
            }
        )
    return {
        "source": "mean lengths of HumanEval and ShareGPT as in DistServe (arXiv 2401.09670); load designed, "
        "0.1 to 1.1 of one A100's capacity",
        "licence": "CC BY 4.0",
        "fitted_by": "python data/fit_day_traffic.py FOLDER",
        "noise_hours": [1.0, 1.0, 1.0],
        "kinds": kinds,
    }


def show(pools: dict[str, Any]) -> None:
    """How well the pools fit."""
    for name, pool in pools.items():
        print(f"{name}: noise of {pool['noise_hours']} hours; {pool['source']}")
        if "fit" in pool:
            print(f"  GPUs needed by hour: {pool['fit']}")
        for kind in pool["kinds"]:
            print(
                f"  {kind['name']}: {kind['rate']:g} requests/s, gaps' CV {kind['gaps_cv']:g}, prompt {kind['prompt']}"
                f", output {kind['output']}, correlation {kind['correlation']:g}, weights {kind['weights']}, "
                f"levels {kind['levels']}"
            )
            for key, value in kind.get("fit", {}).items():
                print(f"    {key}: {value}")


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the public logs")
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    arguments = parser.parse_args()
    pools = {
        "m-large": servegen(arguments.folder / "servegen_top_clients_hourly.csv", "m-large"),
        "m-mid": servegen(arguments.folder / "servegen_top_clients_hourly.csv", "m-mid"),
        "azure-day": azure(arguments.folder),
        "drafts": drafts(),
    }
    for pool in (pools["m-large"], pools["m-mid"]):
        busiest = float(np.median(gpus_by_hour(pool).max(axis=1)))
        for kind in pool["kinds"]:  # so that the median of the model's days needs one GPU in its busiest hour too
            kind["rate"] = digits(kind["rate"] / busiest)
        pool["fit"] |= {
            "busiest_hour_before_scaling": digits(busiest, 3),
            "gpus_by_hour_model": digits(np.percentile(gpus_by_hour(pool), QUANTILES), 3),
        }
    show(pools)
    text = json.dumps(pools, indent=1) + "\n"
    if arguments.check:
        same = OUT.read_text() == text
        print(f"{OUT.relative_to(ROOT)} {'is up to date' if same else 'differs'}")
        return 0 if same else 1
    OUT.write_text(text)
    print(f"wrote {OUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

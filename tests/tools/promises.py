"""What `inferencegym recommend` promises, against the replay of the flags that it prints, for logs x models:

    python -m tests.tools.promises --table h100.parquet --exhaustive 0

Logs: the two of Azure, Mooncake's, the example, and one of each of four of ServeGen's clients in its busiest hour
(public logs that are not here are left out). Models: the shipped table, and each ``--table``. One line of JSON for each
pair: promise, replay and, with ``--exhaustive``, the best replay of so many random configurations (0: of all) and of
the answer; a replay is given up as soon as it cannot be the best. Exit code 1 where promise and replay are more than
three points apart or the answer is more than 3 % below that best.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.recommend.candidates import searched_actions
from inferencegym_jax.recommend.engine_flags import deployment
from inferencegym_jax.recommend.engine_replay import EngineReplay
from inferencegym_jax.recommend.log_requests import load_requests
from inferencegym_jax.recommend.recommendation import recommend
from inferencegym_jax.recommend.search import environment
from tests.tools.public_logs import public_log

PROMISE, BEATEN = 0.03, 0.03
PUBLIC = (
    "AzureLLMInferenceTrace_conv.csv",
    "AzureLLMInferenceTrace_code.csv",
    "mooncake_conversation_first4000.jsonl",
)
CLIENTS = (("m-large", "0"), ("m-large", "4"), ("m-mid", "3"), ("m-small", "4"))
CLIENT_RATE, CLIENT_S = 3.0, 1200  # requests/s at most of a client's log, and its length


def client_log(folder: Path, hours: Path, pool: str, client: str, seed: int = 0) -> Path:
    """A log of a client's busiest hour: gamma gaps of its CV, lognormal lengths of its means and deviations."""
    with hours.open() as file:
        rows = [
            r for r in csv.DictReader(file) if (r["pool"], r["client"]) == (pool, client) and r["mean_input_tokens"]
        ]
    row = {name: float(value) for name, value in max(rows, key=_rate).items() if name != "pool" and value}
    rate, shape = min(row["requests_per_s"], CLIENT_RATE), row["cv_of_gaps"] ** -2.0
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.gamma(shape, 1.0 / (rate * shape), int(rate * CLIENT_S)))

    def lengths(mean: float, deviation: float) -> np.ndarray:
        spread = np.log1p((deviation / mean) ** 2)
        drawn = rng.lognormal(np.log(mean) - 0.5 * spread, np.sqrt(spread), len(times))
        return np.clip(drawn, 1, 8000).astype(int)

    prompts = lengths(row["mean_input_tokens"], row["sd_input_tokens"])
    outputs = lengths(row["mean_output_tokens"], row["sd_output_tokens"])
    path = folder / f"{pool}-{client}.csv"
    lines = [f"{t:.4f},{p},{o}" for t, p, o in zip(times, prompts, outputs, strict=True)]
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    return path


def _rate(row: dict[str, str]) -> float:
    return float(row["requests_per_s"] or 0.0)


def logs(folder: Path) -> Iterator[Path]:
    """The logs that are here."""
    yield Path(__file__).resolve().parents[2] / "data" / "example_requests.csv"
    yield from (path for path in map(public_log, PUBLIC) if path is not None)
    hours = public_log("servegen_top_clients_hourly.csv")
    if hours is not None:
        yield from (client_log(folder, hours, *client) for client in CLIENTS)


def named(table: Path | None) -> str:
    """The file's name without its ending."""
    return "shipped" if table is None else table.stem


def judged(
    log: Path,
    table: Path | None,
    slo_ms: float,
    memory_gb: float | None,
    exhaustive: int | None,
    seconds: float = float("inf"),
) -> dict[str, Any]:
    """One line of the output; ``seconds`` ends the exhaustive search."""
    start = time.process_time()
    found = recommend(log, table=table, slo_ttft_ms=slo_ms, memory_gb=memory_gb, controllers={})
    told = found.to_dict()["attainment"]
    row: dict[str, Any] = {
        "log": log.name,
        "table": named(table),
        "recommended": found.knobs,
        "meets": found.meets_slo,
        "promised": told["promised"],
        "replayed": told["replayed"],
        "apart": told["promised"] - told["replayed"],
        "cpu_s": time.process_time() - start,
    }
    if exhaustive is None:
        return row
    start = time.monotonic()
    loaded, requests = ig.load_table(table), load_requests(log)
    env, params = environment(loaded, requests, found.engine["memory_gb"], None)
    actions = searched_actions(env, params, {}, found.engine["memory_gb"])
    order = np.random.default_rng(5).permutation(len(actions))[: exhaustive or len(actions)]
    engines = EngineReplay(loaded, requests, found.objective, np.asarray(params.engine.acceptance_lengths))
    best, at, tried = told["replayed"], found.knobs, 0
    for action in (actions[i] for i in order):
        if time.monotonic() - start > seconds:
            break
        tried += 1
        made = deployment(action, loaded, found.engine["memory_gb"], requests.longest)
        kept = engines.replay_if(made, best)
        if kept is not None and kept.quality.attainment[0] > best:
            best, at = float(kept.quality.attainment[0]), action
    row |= {"tried": tried, "of": len(actions), "best": best, "best_configuration": at}
    return row | {"below_best": 1.0 - told["replayed"] / best if best else 0.0}


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.promises", description=__doc__)
    parser.add_argument("--table", type=Path, action="append", default=[], help="of another model; several times")
    parser.add_argument("--log", default="", help="only logs whose names hold this")
    parser.add_argument("--only", default="", help="only tables whose names hold this; the shipped one is 'shipped'")
    parser.add_argument("--slo-ttft-ms", type=float, default=300.0)
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("--exhaustive", type=int, help="configurations to replay; 0: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="that this may take for each pair")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        for log in (path for path in logs(Path(folder)) if given.log in path.name):
            for table in (None, *given.table):
                if given.only not in named(table):
                    continue
                row = judged(log, table, given.slo_ttft_ms, given.memory_gb, given.exhaustive, given.seconds)
                print(json.dumps(row), flush=True)
                # an answer that meets may be below the best: it is the cheapest that meets
                beaten = not row["meets"] and row.get("below_best", 0.0) > BEATEN
                wrong |= abs(row["apart"]) > PROMISE or beaten
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

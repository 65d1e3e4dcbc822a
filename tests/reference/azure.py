"""Azure's public request logs, read where a copy is at hand: nothing of them is in the repository.

    python -m tests.reference.azure conv        # the figures that cases.AZURE holds
    python -m tests.reference.azure code --speed 1.25 --profile data/traces_llama3_8b.engine.json   # serves it

The files are AzureLLMInferenceTrace_conv.csv and AzureLLMInferenceTrace_code.csv of the Azure Public Dataset (CC BY
4.0). They are looked for in the folder that INFERENCEGYM_LOGS names, then in a folder traces/ or shared/traces/ beside
the repository or above it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from datetime import datetime
from pathlib import Path

import numpy as np

from tests.reference.iteration import PROFILE, load_profile
from tests.reference.serving import serve
from tests.reference.settings import Settings
from tests.reference.summary import summarise
from tests.reference.traffic import Requests, dispersion

FILES = {"conv": "AzureLLMInferenceTrace_conv.csv", "code": "AzureLLMInferenceTrace_code.csv"}
SPEEDS = (0.6, 1.0, 1.25)
OBJECTIVES = ((500.0, 50.0), (2000.0, 100.0))


def log_path(name: str) -> Path | None:
    """Where the log is, or None."""
    folders = [Path(os.environ["INFERENCEGYM_LOGS"])] if os.environ.get("INFERENCEGYM_LOGS") else []
    for parent in Path(__file__).resolve().parents[2:]:
        folders += [parent / "traces", parent / "shared" / "traces"]
    return next((folder / FILES[name] for folder in folders if (folder / FILES[name]).is_file()), None)


def load(name: str, speed: float = 1.0) -> Requests:
    """The log's requests, their times divided by `speed`.

    Args:
        name: conv or code.
        speed: how many times the log's rate.

    Raises:
        FileNotFoundError: no copy of the log at hand.
    """
    path = log_path(name)
    if path is None:
        raise FileNotFoundError(f"{FILES[name]} is in no folder traces/ above the repository nor in INFERENCEGYM_LOGS")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # seven decimals of a second, of which Python reads six
    times = np.array([datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows])
    arrival = 1000 * (times - times[0]) / speed
    prompt, output = (np.array([int(row[key]) for row in rows]) for key in ("ContextTokens", "GeneratedTokens"))
    return Requests(arrival, prompt, output, kinds=("coding" if name == "code" else "chat",))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=FILES)
    parser.add_argument(
        "--speed", type=float, nargs="*", default=[], help="serve the log at these multiples of its rate"
    )
    parser.add_argument("--profile", type=Path, default=PROFILE)
    options = parser.parse_args(arguments)
    requests = load(options.log)
    shape = dispersion(requests)
    print(
        f"{len(requests)} requests, prompt {requests.prompt.mean():.0f} (longest {requests.prompt.max()}), output "
        f"{requests.output.mean():.0f} (longest {requests.output.max()}); within a second: cv of prompts "
        f"{shape.cv_prompt:.3f}, of outputs {shape.cv_output:.3f}, correlation {shape.correlation:.3f}, arrivals' scv "
        f"{shape.arrival_scv:.2f}"
    )
    for speed in options.speed:
        result = serve(load(options.log, speed), Settings(), load_profile(options.profile))
        print(speed, json.dumps(summarise(result, OBJECTIVES)))


if __name__ == "__main__":
    main()

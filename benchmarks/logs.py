"""Reading a large request log: seconds and peak memory.

    python -m benchmarks.logs [--megabytes 1000]

Writes a CSV of that size (five columns, 55 requests/s) into a temporary folder and reads it in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HOUR, REQUESTS = 3600, 200_000  # requests written at a time, one hour of them
READ = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
from inferencegym_jax.traffic.request_log import load_trace
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
log = load_trace(sys.argv[1])
print(json.dumps({"rows": log.requests, "log_seconds": log.seconds, "seconds": round(time.perf_counter() - start, 2),
                  "peak_mb_before": round(before), "peak_mb": round(peak())}))
"""


def write(path: Path, size: float) -> None:
    """A log of at least ``size`` bytes."""
    draw, written, start = np.random.default_rng(0), 0, 0
    with path.open("w") as file:
        written += file.write("timestamp,prompt_tokens,output_tokens,model,user\n")
        while written < size:
            times = 1.7e9 + start + np.sort(draw.uniform(0, HOUR, REQUESTS))
            prompts = np.minimum(draw.lognormal(6.6, 1.0, REQUESTS).astype(int) + 1, 30_000)
            columns = (times.tolist(), prompts.tolist(), draw.integers(1, 800, REQUESTS).tolist())
            rows = (f"{t:.3f},{p},{o},llama-3-8b,u{p * 7919 % 100_000:05d}\n" for t, p, o in zip(*columns, strict=True))
            written += file.write("".join(rows))
            start += HOUR


def measure(megabytes: float) -> dict[str, float]:
    """Rows, seconds to read them and peak resident memory (MB) before and after, of one log."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        write(path, megabytes * 1e6)
        done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logs", description=__doc__)
    parser.add_argument("--megabytes", type=float, default=1000.0, help="size of the log (default: 1000)")
    print(json.dumps(measure(parser.parse_args().megabytes)))


if __name__ == "__main__":
    main()

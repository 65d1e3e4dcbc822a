"""Build the latency table, or compare the model behind it with measured points.

    python data/build_table.py                                   # the shipped table: Llama-3-8B on one A100
    python data/build_table.py --system h100_sxm --model llama2-7b --out mine.parquet
    python data/build_table.py --check                           # errors against the 30 points of data/measured
    python data/build_table.py --check points.csv --json         # ... against points of one's own
    python data/build_table.py --source synthetic --out tiny.parquet

Data flow: measured kernels -> forward passes (`step_time`) -> steady state (`serving_model`) -> rows -> parquet with
its provenance, and the engine profile (`engine_profile`) beside it. The same arguments give the same bytes. Exit code 2
means that something asked for does not exist.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.check_points import PointsError, check, read_points
from data.engine_profile import write_profile
from data.kernels import PACKAGE, PACKAGE_VERSION, KernelDataError
from data.serving_model import Knobs, Load, Served, serve
from data.step_time import TIERS, Architecture, StepTimes, UnknownNameError, models, systems
from inferencegym_jax.table.latency_table import TableError, profile_path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUT = ROOT / "data" / "traces_llama3_8b.parquet"
MEASURED_POINTS = ROOT / "data" / "measured" / "llama31_8b_h100_e2e.csv"
DEFAULT_OUTPUT_LENGTH = 128.0
DEFAULT_ACCEPTANCE = 0.7
OVERHEAD = json.loads((ROOT / "data" / "engine_overhead.json").read_text())
DEFAULT_COST_SCALE = 0.0175  # cost units a GPU-second; found by `calibrate.py`: the baseline spends task 3's budget

BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128, 256, 512)
KV_BUDGETS = (0.1, 0.25, 0.5, 0.75, 1.0)
SPEC_LENGTHS = (0, 1, 2, 4, 8)
PROMPTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)

SCHEMA = pa.schema(
    [
        ("batch_size", pa.int32()),
        ("kv_budget", pa.float64()),
        ("spec_length", pa.int32()),
        ("quant_tier", pa.int32()),
        ("prefill_disagg", pa.int32()),
        ("prompt_len_bucket", pa.int32()),
        ("ttft_p50_ms", pa.float32()),
        ("ttft_p99_ms", pa.float32()),
        ("tpot_ms", pa.float32()),
        ("tps", pa.float32()),
        ("gpu_mem_gb", pa.float32()),
        ("cost_per_1k", pa.float32()),
    ]
)


def cost_per_1k(gpus: int, tps: float, cost_scale: float) -> float:
    """GPU-seconds per 1,000 tokens times `cost_scale` (ENVIRONMENT.md 12): scale x GPUs x 1000 / tps."""
    return cost_scale * gpus * 1000 / tps


def make_table(
    served: Callable[[Knobs], Served],
    cost_scale: float,
    batches: Sequence[int] = BATCH_SIZES,
    budgets: Sequence[float] = KV_BUDGETS,
    specs: Sequence[int] = SPEC_LENGTHS,
) -> pa.Table:
    """Rows over the full product of the axes, in lexicographic order of the key columns."""
    rows = []
    for batch, budget, spec, tier, disagg, bucket in itertools.product(
        batches, budgets, specs, range(len(TIERS)), (0, 1), range(len(PROMPTS))
    ):
        s = served(Knobs(batch, PROMPTS[bucket], budget, spec, TIERS[tier], bool(disagg)))
        key = (batch, budget, spec, tier, disagg, bucket)
        metrics = (s.ttft_p50_ms, s.ttft_p99_ms, s.tpot_ms, s.tps, s.gpu_mem_gb, cost_per_1k(s.gpus, s.tps, cost_scale))
        rows.append(key + metrics)
    return pa.table(list(zip(*rows, strict=True)), schema=SCHEMA)


def write_table(table: pa.Table, metadata: dict[str, str], out: Path) -> None:
    """Write snappy parquet, `metadata` as UTF-8 strings of the schema; no time stamp: a rerun gives the same bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), out, compression="snappy")


def measured_table(args: argparse.Namespace) -> tuple[pa.Table, dict[str, str]]:
    """The table of `args.system` and `args.model` from measured kernels, and its provenance."""
    times = StepTimes.load(args.system, args.model, args.engine, args.engine_version)
    load = Load(args.output_length, args.reference_acceptance)
    table = make_table(lambda knobs: serve(times, knobs, load), args.cost_scale)
    entry = systems()[args.system]
    weights = {t: f"{times.arch.weight_bytes(t) / 1e9:.2f} GB ({times.describe_tier(t)})" for t in TIERS}
    return table, {
        "source": f"{PACKAGE} {PACKAGE_VERSION}: measured kernels of {args.system}, composed by data/serving_model.py",
        "version": PACKAGE_VERSION,
        "licence": "Apache-2.0",
        "model": f"{args.model}: {models()[args.model]['title']}",
        "system": f"{args.system}: {entry['title']}",
        "engine": f"{times.kernels.engine} {times.kernels.version}",
        "kv_bytes_per_token": str(times.arch.kv_bytes_per_token),
        "weights": json.dumps(weights),
    }


def synthetic_served(knobs: Knobs, load: Load) -> Served:
    """Formula of the synthetic table: no GPU, TTFT and TPOT linear in batch B and prompt P.

    TPOT = 10 + 0.05 B + 0.001 P and TTFT = 20 + 0.1 B + 0.1 P milliseconds, p99 = 1.5 TTFT; tps = 1000 B / TPOT;
    memory = 16 + 0.05 B + kv_budget B (P + O) 131072 / 1e9 GB. Tier i divides TPOT by 1 + i / 4; a disaggregated pair
    has 0.8 of TTFT and two GPUs; k drafts multiply TPOT by (1 + 0.05 k) / (1 + k a / 4), at acceptance a; evicting
    divides TPOT by 0.5 + 0.5 kv_budget.
    """
    tpot = 10 + 0.05 * knobs.batch_size + 0.001 * knobs.prompt
    tpot *= (1 + 0.05 * knobs.spec_length) / (1 + knobs.spec_length * load.acceptance / 4)
    tpot /= (1 + TIERS.index(knobs.tier) / 4) * (0.5 + 0.5 * knobs.kv_budget)
    ttft = (20 + 0.1 * knobs.batch_size + 0.1 * knobs.prompt) * (0.8 if knobs.disagg else 1.0)
    memory = (
        16 + 0.05 * knobs.batch_size + knobs.kv_budget * knobs.batch_size * (knobs.prompt + load.output) * 131072 / 1e9
    )
    return Served(ttft, 1.5 * ttft, tpot, 1000 * knobs.batch_size / tpot, memory, 2 if knobs.disagg else 1)


def synthetic_table(args: argparse.Namespace) -> tuple[pa.Table, dict[str, str]]:
    """A small table (3 batches, 3 budgets, 2 draft lengths) of the same columns, for tests and teaching."""
    load = Load(args.output_length, args.reference_acceptance)
    table = make_table(lambda k: synthetic_served(k, load), args.cost_scale, (1, 32, 512), (0.1, 0.5, 1.0), (0, 4))
    return table, {
        "source": "synthetic: formula in synthetic_served of data/build_table.py",
        "version": "1",
        "licence": "Apache-2.0",
        "model": "none",
        "system": "none",
        "engine": "none",
        "kv_bytes_per_token": "131072",
        "weights": json.dumps({t: "16 GB" for t in TIERS}),
        "memory_gb": "80",
        "weights_gb": json.dumps([16, 16, 16]),
    }


def list_choices() -> str:
    """Text of `--list`: every system with its engines and every model."""
    lines = ["systems:"]
    for name, entry in systems().items():
        engines = ", ".join(f"{e} {v}" for e, v in entry["versions"].items())
        lines.append(f"  {name:18} {entry['title']}; engines: {engines}; default {entry['engine']}")
    lines.append("models:")
    for name, entry in models().items():
        weights = Architecture.named(name).weight_bytes("FP16") / 1e9
        lines.append(f"  {name:18} {entry['title']}; {weights:.2f} GB at 16 bits")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--source", choices=("measured", "synthetic"), default="measured", help="measured kernels or a stated formula"
    )
    p.add_argument("--system", default="a100_sxm", help="GPU, see --list (default %(default)s)")
    p.add_argument("--model", default="llama3-8b", help="model, see --list (default %(default)s)")
    p.add_argument("--engine", help="engine whose 16-bit kernels are read (default: the system's)")
    p.add_argument("--engine-version", help="version of the engine (default: the system's)")
    p.add_argument(
        "--output-length",
        type=_positive,
        default=DEFAULT_OUTPUT_LENGTH,
        help="mean output tokens (default %(default)g)",
    )
    p.add_argument(
        "--reference-acceptance",
        type=_share,
        default=DEFAULT_ACCEPTANCE,
        help="draft acceptance, 0 to 1 (default %(default)s)",
    )
    p.add_argument(
        "--cost-scale", type=_positive, default=DEFAULT_COST_SCALE, help="cost units a GPU-second (default %(default)s)"
    )
    p.add_argument(
        "--overhead",
        type=_overhead,
        default=OVERHEAD["overhead_ms"],
        metavar="MS|RUN.csv",
        help="scheduler and sampler time of an engine iteration for the open loop: milliseconds, or a measured run"
        " (CSV or vllm bench JSON) to fit it on (default %(default)s, see engine_overhead.json)",
    )
    p.add_argument(
        "--out", type=Path, help="file to write (default for the default system and model: the shipped table)"
    )
    p.add_argument("--list", action="store_true", help="list systems and models, and stop")
    p.add_argument(
        "--check",
        type=Path,
        nargs="?",
        const=MEASURED_POINTS,
        metavar="FILE.csv",
        help="compare with measured points instead of building (default file: data/measured/llama31_8b_h100_e2e.csv)",
    )
    p.add_argument("--json", action="store_true", help="print the result of --check as one JSON object")
    return p


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _overhead(text: str) -> float:
    """Milliseconds, given or fitted on all rows of a file of measured runs."""
    try:
        value = float(text)
    except ValueError:
        from data.engine_table import table_of
        from inferencegym_jax.fidelity.measured_runs import RunError, read_runs
        from inferencegym_jax.fidelity.validation import fit_constants

        try:
            value = fit_constants(read_runs(text), table_of)["overhead_ms"]
        except (RunError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 100 ms")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def command(args: argparse.Namespace) -> str:
    """The command that rebuilds the table: arguments that differ from the defaults, without the output path."""
    defaults = parser().parse_args([])
    names = (
        "source",
        "system",
        "model",
        "engine",
        "engine_version",
        "output_length",
        "reference_acceptance",
        "cost_scale",
        "overhead",
    )
    given = [(n, getattr(args, n)) for n in names if getattr(args, n) != getattr(defaults, n)]
    words = [f"--{n.replace('_', '-')} {f'{v:.10g}' if isinstance(v, float) else v}" for n, v in given]
    return " ".join(["python data/build_table.py", *words])


def build(args: argparse.Namespace) -> Path:
    """Make the table that `args` asks for and write it; returns the path."""
    out = args.out
    if out is None:
        shipped = (args.source, args.system, args.model) == ("measured", "a100_sxm", "llama3-8b")
        name = "synthetic" if args.source == "synthetic" else f"{args.system}_{args.model}"
        out = DEFAULT_OUT if shipped else Path(f"traces_{name}.parquet")
    table, metadata = synthetic_table(args) if args.source == "synthetic" else measured_table(args)
    metadata |= {
        "reference_acceptance": f"{args.reference_acceptance:g}",
        "reference_output_length": f"{args.output_length:g}",
        "cost_scale": f"{args.cost_scale:.10g}",
        "engine_overhead_ms": f"{args.overhead:.10g}",
        "created_by": command(args),
    }
    write_table(table, metadata, out)
    print(f"{out}: {table.num_rows} rows, {out.stat().st_size / 1000:.0f} kB")
    if args.source == "synthetic":
        profile_path(out).unlink(missing_ok=True)  # of another table that stood here; this one's is derived
    else:
        times = StepTimes.load(args.system, args.model, args.engine, args.engine_version)
        write_profile(times, profile_path(out))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        if args.list:
            print(list_choices())
        elif args.check:
            result = check(read_points(args.check))
            text = "{points} points: TPOT error median {tpot_error_median:.1%}, 90th percentile {tpot_error_p90:.1%}"
            print(json.dumps(result) if args.json else text.format(**result))
        else:
            build(args)
    except (UnknownNameError, KernelDataError, PointsError, TableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A task, a reward, a request log and a latency table of one's own: `python examples/own_task.py`.

Nothing here is edited in the library: what is registered is known to graders, policies, Gymnasium and the command line.
"""

import argparse

import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig

NIGHT = ig.TaskSpec(
    name="night-shift",
    id=90,
    description="Few requests, long prompts, a relaxed objective.",
    arrivals={"rate": 4.0, "burst_rate": 12.0, "burst_period": 60, "burst_start": 30, "burst_length": 10},
    prompts={"kind": "uniform", "low": 256, "high": 1024},
    slo_ttft_ms=(800.0,),
    memory_limit_gb=38.0,
    gpu_memory_gb=40.0,
    active_knobs=("batch_size", "kv_budget"),
)


def thrifty(metrics, workload, params):
    """Tokens for their cost, less what waits: of one second of one environment, in pure JAX."""
    return metrics.tokens_per_sec / params.optimal_tps - 0.2 * metrics.cost_per_1k - 0.01 * workload.queue_depth


def half_as_fast() -> ig.LatencyTable:
    """The shipped table's colocated FP16 rows at few nodes, every latency doubled, as if measured on another GPU."""
    shipped = ig.load_table()
    rows = {name: [] for name in ("batch_size", "prompt_len_bucket", *shipped_metrics)}
    for i, batch in enumerate(shipped.axes["batch_size"]):
        for bucket in range(8):
            ttft, p99, tpot, tps, memory, cost = map(float, shipped.values[0, 0, 0, i, -1, bucket])
            new = (batch, bucket, 2 * ttft, 2 * p99, 2 * tpot, tps / 2, memory, 2 * cost)
            for column, value in zip(rows.values(), new, strict=True):
                column.append(value)
    return ig.LatencyTable.from_columns(rows, {"reference_output_length": "128"}, "half-as-fast")


shipped_metrics = ("ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "tps", "gpu_mem_gb", "cost_per_1k")


def a_log(seconds: int = 400) -> ig.RequestLog:
    """Requests as a log holds them: arrival times, prompt and output tokens."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, seconds, 6 * seconds))
    return ig.RequestLog.from_arrays(times, rng.integers(50, 500, len(times)), rng.integers(20, 200, len(times)))


def play(what: str, episodes: int = 16):
    """(mean return, mean score) of the baseline's episodes on one of the four."""
    ig.register(NIGHT)
    made = {
        "task": lambda: ig.problem(NIGHT),
        "reward": lambda: ig.problem(2, reward=thrifty),
        "table": lambda: ig.problem(1, table=half_as_fast()),
        "traffic": lambda: ig.problem(4, trace=a_log()),
    }[what]()
    found = ig.evaluate(made.env, made.params, ig.policies.baseline, jnp.arange(episodes))
    return float(found.total_reward.mean()), float(made.score(found).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["task", "reward", "table", "traffic"])
    for name in parser.parse_args().what:
        print("own {}: return {:.1f}, score {:.3f}".format(name, *play(name)))

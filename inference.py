"""Score a language model on every task: `python inference.py`.

The model is any OpenAI-compatible endpoint:

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 MODEL=Qwen/Qwen2.5-7B-Instruct OPENAI_API_KEY=...
    python inference.py --out scores.json

Temperature is 0, episodes are of fixed seeds, and the file holds every action, so that anybody can compute the scores
again (`inferencegym_jax.verify`). Exit code 2: the endpoint cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import inferencegym_jax as ig
from inferencegym_jax.agents.llm import Endpoint, EndpointError, LLMAgent, play
from inferencegym_jax.models import SEEDS


def main(argv: list[str] | None = None) -> int:
    """Play, print a line a task, and write the file."""
    parser = argparse.ArgumentParser(
        description="Score a language model on every task.",
        epilog="Variables: OPENAI_BASE_URL, MODEL, OPENAI_API_KEY, PRICE_INPUT, PRICE_OUTPUT.",
    )
    parser.add_argument("--tasks", nargs="+", help="numbers or names; default: all")
    parser.add_argument("--tasks-from", nargs="+", default=[], help="Python or JSON files of tasks of your own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode (default 0)")
    parser.add_argument("--episodes", type=int, default=1, help="episodes a task (default 1)")
    parser.add_argument("--every", type=int, default=10, help="seconds between two decisions (default 10)")
    parser.add_argument("--no-tools", action="store_true", help="ask for JSON text instead of a tool call")
    parser.add_argument("--out", type=Path, help="write scores, actions and token counts (JSON)")
    options = parser.parse_args(argv)
    try:
        endpoint = Endpoint.from_environment()
        for path in options.tasks_from:
            ig.register_file(path)
        names = options.tasks or [str(spec.id) for spec in ig.task_specs().values()]
        tasks = [ig.get_task(int(name) if name.isdigit() else name) for name in names]
        if options.episodes < 1 or not 0 <= options.seed <= SEEDS - options.episodes:
            raise ValueError("--episodes must be at least 1, and --seed from 0 to 4294967295")
        results = [
            one
            for spec in tasks
            for seed in range(options.seed, options.seed + options.episodes)
            for one in [score(endpoint, spec, seed, options)]
        ]
    except (EndpointError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    usage = {key: sum(one["usage"][key] for one in results) for key in results[0]["usage"]}
    means = {spec.name: mean([one["score"] for one in results if one["task"] == spec.name]) for spec in tasks}
    tokens = f"{usage['input_tokens']} + {usage['output_tokens']} tokens, cost {usage['cost']:.4f}"
    held, decisions = (sum(one[key] for one in results) for key in ("held", "decisions"))
    note = f"; {held} of {decisions} decisions were held, and are not the model's" if held else ""
    print(f"mean {mean(list(means.values())):.4f}; {tokens}{note}")
    if options.out is not None:
        counted = {"scores": means, "held": held, "decisions": decisions, "usage": usage}
        document = {"model": endpoint.model, **counted, "episodes": results}
        options.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
        print(f"wrote {options.out}")
    return 0


def score(endpoint: Endpoint, spec: ig.TaskSpec, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One episode, and its line."""
    agent = LLMAgent(endpoint, spec, decide_every=options.every, tools=not options.no_tools, seed=seed)
    try:
        result = play(agent, seed)
    finally:
        agent.close()
    used = result["usage"]
    print(
        f"task {spec.id} {spec.name}: seed {seed}, score {result['score']:.4f}, out of memory"
        f" {100 * result['oom_share']:.1f} %, {used['calls']} calls,"
        f" {used['malformed']} malformed, {result['held']} of {result['decisions']} decisions held",
        flush=True,
    )
    return result


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())

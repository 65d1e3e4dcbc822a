"""The episode of the page's first screen, made before anybody asks: `python docs/first_screen.py`.

Task 7's window that `make demo` draws, under the trained policy and under the best setting that never changes. Every
number is that of a session that takes these actions; `server.first_screen.FILE` holds them as columns, so that the
page plays at once and no server compiles a rollout for it.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from server.first_screen import FILE  # noqa: E402
from server.programs import Programs  # noqa: E402
from server.rollouts import Rollouts  # noqa: E402
from server.schemas import RolloutRequest  # noqa: E402
from server.service import Service  # noqa: E402
from server.sessions import EmbeddedStore  # noqa: E402
from server.settings import Settings  # noqa: E402
from server.task_programs import TaskProgram  # noqa: E402
from training import rivals  # noqa: E402
from training.second_gpu import TASK, WINDOWS, steepest  # noqa: E402

POLICIES = ("trained", "best_static")
DIGITS = 6  # significant ones; a replay is compared to 1e-5


def rounded(value: Any) -> Any:
    """A number with ``DIGITS`` significant digits; whole numbers and switches as they are."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def steps_of(program: TaskProgram, seed: int, actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a session answers to these actions, as a row of POST /rollout's trajectories each."""
    before, rows = program.reset(seed), []
    for action in actions:
        after = program.step(before.state, program.pack_action(action))
        parts = {name: after.info[name] for name in ("metrics", "workload", "outcome")}
        rows.append(
            {"observation": before.observation, "action": action, **parts}
            | {"reward": after.reward, "oom": after.info["oom"]}
        )
        before = after
    return rows


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """ "part.field" -> its values, one a step; where it never changes that value, once."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for part, value in row.items():
            for name, one in value.items() if isinstance(value, dict) else [("", value)]:
                columns.setdefault(f"{part}.{name}" if name else part, []).append(rounded(one))
    return {name: {"always": one[0]} if all(x == one[0] for x in one) else one for name, one in columns.items()}


def make() -> dict[str, Any]:
    """The file's content: task, seed, the table that it holds for, and a lane a policy."""
    programs = Programs()
    program = programs.program(TASK)
    seeds = rivals.test_seeds(WINDOWS)
    seed = int(seeds[steepest(rivals.true_load(program.problem, seeds, ahead=1))])
    rollouts, service = Rollouts(programs, Settings()), Service(programs, EmbeddedStore(1, 1.0))
    lanes = []
    for policy in POLICIES:
        request = RolloutRequest(task_id=TASK, seeds=[seed], policy=policy, actions=None, trajectories=True)
        (_, played), *_ = rollouts.score(request).blocks()
        columns = {name: np.asarray(values)[:, 0].tolist() for name, values in vars(played.action).items()}
        taken = [dict(zip(columns, step, strict=True)) for step in zip(*columns.values(), strict=True)]
        actions = [program.env.action_of(one).to_dict() for one in taken]
        rows = steps_of(program, seed, actions)
        grade = service.verify(TASK, seed, {}, actions)
        lanes.append({"policy": policy, "grade": grade, "columns": columns_of(rows)})
    return {
        "task": program.spec.name,
        "task_id": TASK,
        "seed": seed,
        "steps": program.spec.episode_length,
        "table_digest": programs.table.digest,
        "lanes": lanes,
    }


def main() -> None:
    """Write it."""
    text = json.dumps(make(), separators=(",", ":")).encode()
    FILE.write_bytes(gzip.compress(text, 9, mtime=0))
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1000:.0f} kB, {len(text) / 1000:.0f} kB unpacked")


if __name__ == "__main__":
    main()

"""Every step of a rollout as the bytes of an answer, piece by piece: JSON, or an Arrow stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from inferencegym_jax.models import Trajectory
from server.found import Found

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
STEPS_AT_ONCE = 1000  # an answer of so many steps, a megabyte of JSON, is made and sent as one
BATCH = 32  # episodes in a record batch of an Arrow stream, a megabyte of whole episodes
SUMMARY = ("task_id", "policy", "seeds", "steps", "scores", "total_rewards", "oom_shares")  # in an Arrow schema


def json_pieces(found: Found) -> Iterator[bytes]:
    """The answer of POST /rollout with its trajectories, an episode a piece."""
    yield orjson.dumps(found.answer(trajectories=[]))[: -len("]}")]
    comma = b""
    for block, trajectory in found.blocks():
        for i, length in enumerate(found.lengths[block].tolist()):
            yield comma + orjson.dumps(_episode(trajectory, found.parts, i, length))
            comma = b","
    yield b"]}"


class _Sink:
    """A file to write to that gives what was written."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        """What was written since the last time."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def arrow_pieces(found: Found) -> Iterator[bytes]:
    """One IPC stream: a row a step, columns ``part.field``; scores as JSON in the schema's metadata."""
    summary = found.answer()
    metadata = {"inferencegym": orjson.dumps({key: summary[key] for key in SUMMARY})}
    seeds = np.asarray(found.seeds, np.uint32)
    sink, writer = _Sink(), None
    for block, trajectory in found.blocks():
        for start in range(0, len(block), BATCH):
            rows = slice(start, start + BATCH)
            mine = block[rows]
            table = _table(trajectory, found.parts, rows, mine, found.lengths[mine], seeds[mine])
            table = table.replace_schema_metadata(metadata)
            if writer is None:
                writer = pa.ipc.new_stream(sink, table.schema)
            writer.write_table(table)
            yield sink.taken()
    if writer is not None:
        writer.close()
    yield sink.taken()


def _flat(trajectory: Trajectory, parts: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Part -> field -> array of (steps, episodes) or (steps, episodes, 3)."""
    return {part: vars(getattr(trajectory, part)) for part in parts}


def _episode(trajectory: Trajectory, names: Sequence[str], i: int, length: int) -> list[dict[str, Any]]:
    """The steps of one episode as JSON-ready dicts."""
    columns = {
        part: {name: value[:length, i].tolist() for name, value in fields.items()}
        for part, fields in _flat(trajectory, names).items()
    }
    rewards, ooms = trajectory.reward[:length, i].tolist(), trajectory.oom[:length, i].tolist()
    return [
        {part: {name: value[t] for name, value in fields.items()} for part, fields in columns.items()}
        | {"reward": rewards[t], "oom": ooms[t]}
        for t in range(length)
    ]


def _table(
    trajectory: Trajectory,
    names: Sequence[str],
    rows: slice,
    episodes: np.ndarray,
    lengths: np.ndarray,
    seeds: np.ndarray,
) -> Any:
    """The steps of a block's ``rows`` as a table; ``episodes`` are their places in the request."""
    reward = np.asarray(trajectory.reward)[:, rows]
    steps, count = reward.shape
    inside = (np.arange(steps)[None, :] < lengths[:, None]).ravel()
    columns: dict[str, Any] = {
        "episode": np.repeat(episodes.astype(np.int32), steps)[inside],
        "seed": np.repeat(seeds, steps)[inside],
        "step": np.tile(np.arange(steps, dtype=np.int32), count)[inside],
        "reward": reward.T.ravel()[inside],
        "oom": np.asarray(trajectory.oom)[:, rows].T.ravel()[inside],
    }
    for part, fields in _flat(trajectory, names).items():
        for name, value in fields.items():
            mine = value[:, rows]
            flat = np.swapaxes(mine, 0, 1).reshape(steps * count, *mine.shape[2:])[inside]
            plain = flat if flat.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat.ravel(), flat.shape[1])
            columns[f"{part}.{name}"] = plain
    return pa.table(columns)

"""docs/extend_inside.md: each change is complete as the page has it, touches as few files as it says, and works."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extend_inside.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
MOST = {
    "A knob": 10,
    "An observation field": 3,
    "A term of the reward": 2,
    "A grader": 1,
    "A GPU": 1,
    "A task": 1,
    "A chart": 1,
}
"""Files that a change may touch by hand."""


@dataclasses.dataclass(frozen=True)
class Hunk:
    """Lines of one file, one after the other, and what takes their place."""

    path: str
    old: tuple[str, ...]
    new: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file after the change; added at its end where no line says what is near."""
        if not self.old:
            return text + "".join(f"{line}\n" for line in self.new)
        old, new = ("".join(f"{line}\n" for line in lines) for lines in (self.old, self.new))
        places = [place.start() for place in re.finditer(f"^{re.escape(old)}", text, re.M)]
        assert len(places) == 1, f"{self.path}: {len(places)} places for\n{old}"
        return text[: places[0]] + new + text[places[0] + len(old) :]


def hunks(title: str) -> list[Hunk]:
    """The changes of a section's diffs, in the order of the page."""
    found = list[Hunk]()
    for block in re.findall(r"^```diff\n(.*?)^```", SECTIONS[title], re.M | re.S):
        path = ""
        for part in re.split(r"^\.\.\.\n|^\n|^(?= [\w/]+\.\w+(?: \(.*\))?\n)", block, flags=re.M):
            lines = part.splitlines()
            if lines and (named := re.fullmatch(r" ([\w/]+\.\w+)(?: \(.*\))?", lines[0])):
                path, lines = named.group(1), lines[1:]
            if lines:
                assert path and all(line[0] in " +-" for line in lines), (title, part)
                old = tuple(line[1:] for line in lines if line[0] in " -")
                found.append(Hunk(path, old, tuple(line[1:] for line in lines if line[0] in " +")))
    return found


@pytest.mark.parametrize("title", MOST)
def test_it_touches_no_more_files_than_it_may(title: str) -> None:
    files = {hunk.path for hunk in hunks(title)}
    assert files and all((ROOT / file).is_file() for file in files)
    row = re.search(rf"^\| \[[^\]]*\]\(#{title.lower().replace(' ', '-')}\).*?\| (\d+) \|", PAGE, re.M)
    assert row is not None and len(files) <= int(row.group(1)) <= MOST[title]


@pytest.mark.parametrize("title", MOST)
def test_its_lines_are_those_of_the_sources(title: str) -> None:
    texts: dict[str, str] = {}
    for hunk in hunks(title):
        texts[hunk.path] = hunk.applied(texts.get(hunk.path) or (ROOT / hunk.path).read_text(encoding="utf-8"))
    assert texts and all(text != (ROOT / path).read_text(encoding="utf-8") for path, text in texts.items())


def test_what_stands_nowhere_or_twice_is_found() -> None:
    for line in ("    nothing of the kind", "import jax"):
        with pytest.raises(AssertionError, match=r"[02] places"):
            Hunk("a.py", (line,), ()).applied("import jax\n\nimport jax\n")
    assert Hunk("a.py", ("b",), ("b", "c")).applied("a\nb\n") == "a\nb\nc\n"
    assert Hunk("a.py", (), ("c",)).applied("a\n") == "a\nc\n"


def changed(title: str, folder: Path) -> Path:
    """A copy of the sources with the change in it."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("inferencegym_jax", "server", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for hunk in hunks(title):
        file = folder / hunk.path
        file.write_text(hunk.applied(file.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def run(folder: Path, *words: str) -> str:
    variables = os.environ | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def says(folder: Path, program: str) -> Any:
    """What a program run in the copy prints last, read as JSON."""
    start = "import json\nimport numpy as np\nimport inferencegym_jax as ig\nassert ig.__file__.startswith('.')\n"
    start = start.replace("'.'", repr(str(folder)))
    return json.loads(run(folder, "-c", start + program).splitlines()[-1])


@pytest.mark.slow
def test_a_knob(tmp_path: Path) -> None:
    said = says(
        changed("A knob", tmp_path),
        """
from inferencegym_jax.recommend.engine_flags import deployment

env, params = ig.make(4)
def waits(budget):
    def policy(key, observation, carry=None):
        return ig.ServeAction(batch_size=128, token_budget=carry)
    steps = ig.rollout(env, params, policy, np.arange(2), length=30, carry=np.int32(budget))
    return float(np.mean(steps.metrics.ttft_p99_ms))
knobs = ig.ServeAction(token_budget=512).to_dict()
print(json.dumps({
    "waits": [waits(budget) for budget in (0, 2048, 512)],
    "locked": list(env.action_space(params).locked),
    "flags": deployment(knobs, env.table, 40.0, 4096).token_budget,
}))
""",
    )
    own, same, small = said["waits"]
    assert own == same and small > own
    assert "token_budget" not in said["locked"] and said["flags"] == 512


@pytest.mark.slow
def test_an_observation_field(tmp_path: Path) -> None:
    said = says(
        changed("An observation field", tmp_path),
        """
env, params = ig.make(4)
steps = ig.rollout(env, params, ig.policies.baseline, np.arange(2), length=30)
print(json.dumps({
    "seen": np.asarray(steps.next_observation.running).tolist(),
    "running": np.asarray(steps.workload.running).tolist(),
}))
""",
    )
    assert said["seen"] == said["running"] and max(map(max, said["seen"])) > 8


@pytest.mark.slow
def test_a_term_of_the_reward(tmp_path: Path) -> None:
    said = says(
        changed("A term of the reward", tmp_path),
        """
env, params = ig.make(2)
def rewards(weight):
    weighed = ig.make(2, config={"epsilon": weight})[1].replace(alpha=0.0, beta=0.0, gamma=0.0, delta=0.0)
    steps = ig.rollout(env, weighed, ig.policies.baseline, np.arange(4))
    return np.asarray(steps.reward), np.asarray(steps.workload.rejected / np.maximum(steps.workload.arrivals, 1))
weighed, share = rewards(0.5)
print(json.dumps({"default": float(params.epsilon), "without": float(np.abs(rewards(0.0)[0]).max()),
                  "refused": float(share.max()), "off": float(np.abs(weighed + np.minimum(0.5 * share, 1)).max())}))
""",
    )
    assert said["default"] == said["without"] == 0.0 and said["refused"] > 0.0 and said["off"] < 1e-6


@pytest.mark.slow
def test_a_grader(tmp_path: Path) -> None:
    said = says(
        changed("A grader", tmp_path),
        """
from inferencegym_jax.scoring.grader import score_aggregates
env, params = ig.make(3)
statistics = ig.evaluate(env, params, ig.policies.baseline, np.arange(4))
print(json.dumps({name: np.asarray(value).tolist() for name, value in score_aggregates(3, statistics).items()}))
""",
    )
    weights = {"throughput": 0.35, "slo": 0.35, "cost": 0.20, "stability": 0.10}
    assert sum(weight * said[name][0] for name, weight in weights.items()) == pytest.approx(said["score"][0])


@pytest.mark.slow
def test_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("aiconfigurator_core", reason="no measured kernels here (make install-table brings them)")
    folder = changed("A GPU", tmp_path)
    run(folder, "data/build_table.py", "--system", "b200_sxm", "--out", "b200.parquet")
    said = says(
        folder,
        """
env, params = ig.make(4, table="b200.parquet")
statistics = ig.evaluate(env, params, ig.policies.baseline, np.arange(2), length=20)
finite = bool(np.isfinite(statistics.goodput).all())
print(json.dumps([env.table.metadata["system"], float(params.engine.memory_gb), finite]))
""",
    )
    assert said == ["b200_sxm: NVIDIA B200", 180.0, True]  # as sold: of what nvidia-smi shows vLLM takes 90 %


@pytest.mark.slow
def test_a_task(tmp_path: Path) -> None:
    said = says(
        changed("A task", tmp_path),
        """
problem = ig.problem("night-shift")
statistics = ig.evaluate(problem.env, problem.params, ig.policies.best_static(73), np.arange(2))
print(json.dumps([problem.score(statistics).tolist(), list(ig.task_specs())]))
""",
    )
    assert all(0.5 < score <= 1 for score in said[0]) and "night-shift" in said[1]


@pytest.mark.slow
def test_a_chart(tmp_path: Path) -> None:
    said = says(
        changed("A chart", tmp_path),
        """
from server.app import create_app
from server.settings import Settings
schemas = create_app(Settings(redis_url=None)).openapi()["components"]["schemas"]
print(json.dumps([one["properties"]["ttft_p99_ms"] for one in schemas.values()
                  if "ttft_p99_ms" in one.get("properties", {})]))
""",
    )
    # an episode's mean over its seconds has no chart and keeps its own title
    assert [one["chart"] for one in said if one["title"] == "TTFT, 99th percentile"] == ["value"]

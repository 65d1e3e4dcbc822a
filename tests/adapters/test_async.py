"""Environments in processes of their own: spawned ones work, forked ones say what to do instead of waiting for good."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
import gymnasium, numpy as np
import inferencegym_jax.adapters.gymnasium_env

ID = "inferencegym_jax/StaticUniform-v0"

def main(context, warm):
    if warm:
        env = gymnasium.make(ID)
        env.reset(seed=0)
    envs = gymnasium.make_vec(ID, num_envs=1, vectorization_mode="async", vector_kwargs={"context": context})
    try:
        observation, _ = envs.reset(seed=0)
        stepped = envs.step(np.zeros((1, 5), np.float32))
        print("reward", float(stepped[1][0]))
    except RuntimeError as error:
        print("refused", error)
    envs.close(terminate=True)

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "warm")
"""


def run(tmp_path: Path, context: str, warm: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, path, context, warm], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_fork_after_jax_has_started_is_refused_with_a_sentence(tmp_path: Path) -> None:
    said = run(tmp_path, "fork", "warm")
    assert "refused this process was forked after JAX had started" in said and "'context': 'spawn'" in said


@pytest.mark.slow
@pytest.mark.parametrize(("context", "warm"), [("spawn", "warm"), ("forkserver", "warm"), ("fork", "cold")])
def test_other_ways_to_start_a_process_work(tmp_path: Path, context: str, warm: str) -> None:
    import gymnasium
    import numpy as np

    import inferencegym_jax.adapters.gymnasium_env  # noqa: F401

    single = gymnasium.make("inferencegym_jax/StaticUniform-v0")
    single.reset(seed=0)
    expected = float(single.step(np.zeros(5, np.float32))[1])
    assert float(run(tmp_path, context, warm).split()[-1]) == pytest.approx(expected, abs=1e-6)

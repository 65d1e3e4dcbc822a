"""Trajectories stay what they were: a changed number is a defect, or wanted, regenerated and in CHANGELOG.md."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.golden.regenerate import FOLDER, TASKS


@pytest.fixture(scope="module")
def trajectories() -> dict[str, Any]:
    """Those of a process that compiles as users do, without the flags of the suite."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden.regenerate", "--print"],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compare(got, expected, where):
    if isinstance(expected, dict):
        assert got.keys() >= expected.keys(), where  # a knob or a number that came later is not compared
        for key in expected:
            compare(got[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), where
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            compare(a, b, f"{where}[{i}]")
    elif isinstance(expected, float):
        # other processors contract multiplications and additions otherwise
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=where)
    else:
        assert got == expected, where


@pytest.mark.parametrize("task", TASKS)
def test_the_golden_trajectory_is_reproduced(task, trajectories):
    compare(trajectories[str(task)], json.loads((FOLDER / f"task{task}.json").read_text()), f"task {task}")

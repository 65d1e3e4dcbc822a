"""Trajectories stay what they were: a changed number is a defect, or wanted, regenerated and in CHANGELOG.md."""

import json

import numpy as np
import pytest

from tests.golden.regenerate import FOLDER, TASKS, trajectory


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
def test_the_golden_trajectory_is_reproduced(task):
    compare(trajectory(task), json.loads((FOLDER / f"task{task}.json").read_text()), f"task {task}")

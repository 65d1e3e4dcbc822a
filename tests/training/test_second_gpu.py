"""What the demo ends with: task 7's windows under settings that stay and the general policy."""

import io

import numpy as np
import pytest
from rich.console import Console

from training import second_gpu
from training.scenario_plot import smooth


@pytest.mark.slow
def test_two_gpus_pay_twice_one_and_the_general_policy_between() -> None:
    windows = second_gpu.play(2)
    paid = {name: one.columns["gpu_seconds"] for name, one in windows.played.items()}
    steps = windows.problem.spec.episode_length
    assert paid[second_gpu.TWO] == pytest.approx([2 * steps] * 2)
    assert paid[second_gpu.ONE] == pytest.approx([steps] * 2)
    assert np.all(paid[second_gpu.GENERAL] >= steps) and np.all(paid[second_gpu.GENERAL] <= 2 * steps)
    assert windows.load.shape == (steps,) and windows.trajectories[second_gpu.ONE].reward.shape == (steps, 1)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(second_gpu.table(windows))
    row = next(line for line in console.export_text().splitlines() if second_gpu.TWO in line)
    assert row.split()[-1] == "0.00"


def test_a_moving_mean_is_of_the_last_seconds() -> None:
    assert smooth(np.arange(6.0), span=3) == pytest.approx([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])

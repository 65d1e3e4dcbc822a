"""Every GPU of ``data/systems.json`` gets an engine profile that the library takes."""

from __future__ import annotations

import pytest

from data.engine_profile import profile
from data.kernels import KernelDataError
from data.step_time import StepTimes, systems
from inferencegym_jax.table import EngineProfile


@pytest.mark.parametrize("system", list(systems()))
def test_a_gpus_profile_is_taken(system: str) -> None:
    try:
        times = StepTimes.load(system, "llama3-8b")
    except KernelDataError as error:
        pytest.skip(str(error))
    assert EngineProfile.from_dict(profile(times), system).bandwidth_gb_s == systems()[system]["bandwidth_gb_s"]

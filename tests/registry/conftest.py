"""Tasks registered by a test are forgotten after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import inferencegym_jax as ig
from inferencegym_jax.tasks import shipped_specs


@pytest.fixture(autouse=True)
def forget_tasks() -> Iterator[None]:
    yield
    for name in [name for name in ig.task_specs() if name not in shipped_specs()]:
        ig.unregister(name)

"""Old module names still import, warn once each, and are the new modules."""

import importlib
import subprocess
import sys

import pytest

import inferencegym_jax as ig
from inferencegym_jax.moved_modules import NEW_NAMES, PACKAGE

LIVE = {name for name in NEW_NAMES if name.startswith("live.")}


@pytest.mark.parametrize("old", sorted(NEW_NAMES))
def test_an_old_name_is_the_new_module_and_warns(old: str):
    sys.modules.pop(f"{PACKAGE}.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"{PACKAGE}.{NEW_NAMES[old]};"):
        module = importlib.import_module(f"{PACKAGE}.{old}")
    new = importlib.import_module(f"{PACKAGE}.{NEW_NAMES[old]}")
    assert module is new
    assert new.__spec__ is not None and new.__spec__.name == f"{PACKAGE}.{NEW_NAMES[old]}"


def test_paths_that_people_import_stay():
    code = (
        "from inferencegym_jax.table import LatencyTable, load_table\n"
        "from inferencegym_jax.policies import baseline, best_static, reactive, trained\n"
        "from inferencegym_jax.wrappers import FiveValueStep, FlatAction, FlatObservation\n"
        "from inferencegym_jax.grader import grade, score_aggregates\n"
        "from inferencegym_jax.client import Client\n"
        "import inferencegym_jax.gymnasium_env\n"
        "import inferencegym_jax as ig\n"
        "assert ig.client.Client is Client and ig.grade is grade and callable(ig.rollout)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_an_unknown_name_is_still_unknown():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{PACKAGE}.nothing_of_that_name")
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = ig.nothing_of_that_name

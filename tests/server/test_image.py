"""The image holds all that the server needs: what the Dockerfile leaves out of the environment is never imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest

from tests.server.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
START = """
import sys

class LeftOut:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if parts[0] in {gone!r} or "tests" in parts:
            raise ModuleNotFoundError(f"the image has no {{name}}", name=name)

sys.meta_path.insert(0, LeftOut())
import pyarrow
assert pyarrow.__file__.startswith({folder!r}), pyarrow.__file__
import inferencegym_jax as ig
from server.app import create_app
from server.redis_store import RedisStore
from server.settings import Settings
create_app(Settings(redis_url=None))
log = ig.load_trace("data/example_requests.csv")
ig.load_table()
sink = pyarrow.BufferOutputStream()
with pyarrow.ipc.new_stream(sink, pyarrow.schema([("x", pyarrow.int32())])) as stream:
    stream.write(pyarrow.record_batch({{"x": pyarrow.array([1], pyarrow.int32())}}))
print("ready", log.requests)
"""


@pytest.mark.ci
def test_what_the_image_leaves_out_is_not_needed(tmp_path: Path):
    command = DOCKERFILE.replace("\\\n", " ")
    patterns = re.findall(r"pyarrow/(\S+)", command)
    gone = re.search(r"pip uninstall --quiet --yes ([a-z ]+?) +&&", command)
    assert patterns and gone and "scipy" in gone[1], "the Dockerfile no longer says what it leaves out: adapt this test"
    assert "-name tests -type d" in command
    whole = Path(pyarrow.__file__).parent
    left_out = {path for pattern in patterns for path in whole.glob(pattern)}
    assert len(left_out) > len(patterns)
    (tmp_path / "pyarrow").mkdir()
    for path in set(whole.iterdir()) - left_out:
        (tmp_path / "pyarrow" / path.name).symlink_to(path)
    code = START.format(gone=set(gone[1].split()), folder=str(tmp_path))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0 and ran.stdout.startswith("ready"), ran.stderr

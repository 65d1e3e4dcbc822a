"""docker-compose.yml is one that Docker Compose reads, and its mounts and settings are there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tests.server.conftest import ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="no docker-compose on the path (Debian: docker-compose)"
)


def composed(*arguments: str) -> dict[str, Any]:
    """What Docker Compose makes of the file: interpolated, checked against its schema."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PORT", "RATE_LIMIT")}
    command = ["docker-compose", *arguments, "config"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return yaml.safe_load(ran.stdout)


def test_the_source_is_mounted_where_the_image_runs_it():
    server = composed()["services"]["server"]
    mounts = [mount.split(":") for mount in server["volumes"]]
    assert all(Path(source).is_dir() for source, _, _ in mounts)
    assert [Path(target).name for _, target, _ in mounts] == ["server", "inferencegym_jax", "data"]
    assert {str(Path(target).parent) for _, target, _ in mounts} == {"/app"}
    assert "WORKDIR /app" in (ROOT / "Dockerfile").read_text()
    assert server["command"] == ["python", "-m", "server", "--reload"]


def test_every_variable_is_a_setting_and_has_a_value_that_it_takes():
    services = composed("--profile", "redis")["services"]
    assert set(services) == {"server", "workers", "redis"}
    for name in ("server", "workers"):
        given = {key.lower(): value for key, value in services[name]["environment"].items()}
        assert set(given) <= set(Settings.model_fields)
        Settings.model_validate({"workers": int(given.pop("workers", 1)), **given})
    assert services["workers"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "healthcheck" in services["redis"]

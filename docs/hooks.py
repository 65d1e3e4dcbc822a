"""MkDocs hooks: pages that are absent leave the navigation, pages that stand for another file take its text, and pages
of the API list the modules of their rooms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LIBRARY = "inferencegym_jax"


def on_config(config: Any) -> Any:
    """Drop entries of the navigation whose file is absent."""
    config.nav = present(config.nav, Path(config.docs_dir))
    return config


def present(items: list[Any], root: Path) -> list[Any]:
    """The entries whose page is there; sections keep what is left of them."""
    kept: list[Any] = []
    for item in items:
        if isinstance(item, str):
            kept += [item] if (root / item).is_file() else []
            continue
        ((title, target),) = item.items()
        if isinstance(target, list):
            kept += [{title: below}] if (below := present(target, root)) else []
        elif (root / target).is_file():
            kept.append(item)
    return kept


def modules(room: str, root: Path) -> list[str]:
    """Dotted names of the public modules of a room (a folder or a module of the library), in alphabetical order."""
    place = root / LIBRARY / room
    files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    names = [path.relative_to(root).with_suffix("").as_posix().replace("/", ".") for path in files]
    return sorted(name for name in names if not re.search(r"\._", name))


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Text of a page that stands for a file of the root, with links seen from ``docs/``; modules of an API page."""
    root = Path(config.docs_dir).parent
    markdown = re.sub(
        r"<!-- modules of (\w+) -->",
        lambda found: "\n\n".join(f"::: {name}" for name in modules(found[1], root)),
        markdown,
    )
    words = markdown.strip().split('"')
    if len(words) != 3 or words[0].strip() != "--8<--":
        return markdown
    text = (root / words[1]).read_text(encoding="utf-8")
    return text.replace("](docs/", "](")

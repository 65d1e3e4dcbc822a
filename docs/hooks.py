"""MkDocs hook: leave pages out of the navigation that do not exist, so that a strict build passes without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """A page that stands for a file of the repository's root takes its text, with links seen from ``docs/``."""
    words = markdown.strip().split('"')
    if len(words) != 3 or words[0].strip() != "--8<--":
        return markdown
    text = (Path(config.docs_dir).parent / words[1]).read_text(encoding="utf-8")
    return text.replace("](docs/", "](")

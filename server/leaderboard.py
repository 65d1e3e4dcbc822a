"""The leaderboard as a page: LEADERBOARD.md's headings, paragraphs and tables as HTML."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "LEADERBOARD.md"
HEAD = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Leaderboard: InferenceGym JAX</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="static/style.css">
  <script type="module" src="static/reader.js"></script>
</head>
<body class="reader">
<main>
<p><a href="./">InferenceGym JAX</a></p>
"""


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(blocks(SOURCE.read_text(encoding="utf-8"))) + "\n</main>\n</body>\n</html>\n"


def blocks(markdown: str) -> list[str]:
    """HTML of each block of a Markdown text; blocks stand apart by an empty line."""
    html: list[str] = []
    title = ""
    for lines in (part.splitlines() for part in re.split(r"\n\s*\n", markdown.strip())):
        if heading := re.fullmatch(r"(#{1,3}) (.*)", lines[0]):
            title = heading[2]
            html.append(f"<h{len(heading[1])}>{_inline(title)}</h{len(heading[1])}>")
        elif lines[0].startswith("|"):
            html.append(_table(lines, title))
        else:
            html.append(f"<p>{_inline(' '.join(lines))}</p>")
    return html


def _table(lines: list[str], title: str) -> str:
    head, _, *rows = (_cells(line) for line in lines)
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title, quote=True)}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(line: str) -> list[str]:
    return [_inline(cell.strip()) for cell in line.strip().strip("|").split("|")]


def _inline(text: str) -> str:
    """Escaped, with code marked as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))

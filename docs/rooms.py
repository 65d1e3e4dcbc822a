"""The picture of the rooms, drawn from the imports: `python docs/rooms.py`; `--check` says whether it is up to date.

A box is a room (a folder or a module of the library, or a folder above it), its text the first sentence of its
docstring. An arrow leads from a room to one that imports it; arrows that follow from others are left out. Rooms of one
row import nothing of each other. Needs what the tests need, and no drawing library: the same imports give the same
bytes.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.test_rooms import LIBRARY, ROOMS, imports, room_of  # noqa: E402

OUT = ROOT / "docs" / "images" / "rooms.svg"
ABOVE = ("server", "training", "benchmarks")
BOX, LANE, HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 10, 62, 12, 34, 20
SWEEPS = 8
LETTERS, LINES = 35, 3  # of a box's description

Graph = Mapping[str, set[str]]


def imported_rooms() -> dict[str, set[str]]:
    """Room -> the other rooms that its files import."""
    graph: dict[str, set[str]] = {room: set() for room in (*ROOMS, *ABOVE)}
    for folder in (LIBRARY, *ABOVE):
        for path in (ROOT / folder).rglob("*.py"):
            room = room_of(path) if folder == LIBRARY else folder
            for parts in (name.split(".") for name in imports(path)):
                target = parts[1] if parts[0] == LIBRARY and len(parts) > 1 else parts[0]
                if room in graph and target in graph and target != room:
                    graph[room].add(target)
    return graph


def below(graph: Graph, room: str) -> set[str]:
    """Every room that a room reaches through imports."""
    return graph[room].union(*(below(graph, target) for target in graph[room]))


def direct(graph: Graph) -> dict[str, set[str]]:
    """The imports that do not follow from others."""
    return {room: targets.difference(*(below(graph, t) for t in targets)) for room, targets in graph.items()}


def row_of(graph: Graph, room: str) -> int:
    """Length of the longest chain of imports below a room."""
    return max((1 + row_of(graph, target) for target in graph[room]), default=0)


def described(room: str) -> str:
    """First sentence of the docstring of a room."""
    base = ROOT / room if room in ABOVE else ROOT / LIBRARY / room
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].replace("`", "").split()).removesuffix(".")


def chains(graph: Graph) -> dict[tuple[str, str], list[str]]:
    """The vertices of each arrow (source, importer): both rooms, and a waypoint in each row that it passes."""
    return {
        (source, room): [
            source,
            *(f"{source}>{room}@{row}" for row in range(row_of(graph, source) + 1, row_of(graph, room))),
            room,
        ]
        for room, sources in direct(graph).items()
        for source in sorted(sources)
    }


def ordered_rows(graph: Graph) -> list[list[str]]:
    """Rooms and waypoints of each row from left to right: sweeps of the barycentre method (Sugiyama et al. 1981)."""
    rows: list[list[str]] = [[] for _ in range(1 + max(row_of(graph, room) for room in graph))]
    neighbours: dict[str, list[str]] = {}
    for chain in chains(graph).values():
        for a, b in zip(chain, chain[1:], strict=False):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
        for offset, vertex in enumerate(chain[1:-1], 1):
            rows[row_of(graph, chain[0]) + offset].append(vertex)
    for room in graph:
        rows[row_of(graph, room)].append(room)
    for sweep in range(SWEEPS):
        x = {vertex: centre for row in rows for vertex, centre in across(row).items()}
        for k in range(len(rows)) if sweep % 2 == 0 else reversed(range(len(rows))):
            mean = {v: sum(x[n] for n in neighbours.get(v, [v])) / len(neighbours.get(v, [v])) for v in rows[k]}
            rows[k].sort(key=mean.__getitem__)
            x |= across(rows[k])
    return rows


def across(row: list[str]) -> dict[str, float]:
    """Centre of each vertex of a row, measured from the middle of the page."""
    widths = [LANE if "@" in vertex else BOX for vertex in row]
    left = -(sum(widths) + GAP_X * (len(row) - 1)) / 2
    centres = {}
    for vertex, width in zip(row, widths, strict=True):
        centres[vertex] = left + width / 2
        left += width + GAP_X
    return centres


def curve(points: list[tuple[float, float]]) -> str:
    """Path of an arrow: straight down past each row, a bend between rows."""
    (x, y), *rest = points
    y += HEIGHT / 2
    path = f"M{x:.1f} {y:.1f}"
    for i, (x1, middle) in enumerate(rest):
        y1 = middle - HEIGHT / 2
        bend = (y1 - y) / 2
        path += f"C{x:.1f} {y + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
        x, y = x1, y1
        if i < len(rest) - 1:
            y = middle + HEIGHT / 2
            path += f"V{y:.1f}"
    return path


def svg(graph: Graph) -> str:
    """The picture."""
    rows = ordered_rows(graph)
    middle = MARGIN + max(-across(row)[row[0]] for row in rows) + BOX / 2
    places = {
        vertex: (middle + x, MARGIN + k * (HEIGHT + GAP_Y) + HEIGHT / 2)
        for k, row in enumerate(rows)
        for vertex, x in across(row).items()
    }
    width, height = 2 * middle, 2 * MARGIN + len(rows) * (HEIGHT + GAP_Y) - GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" font-family="sans-serif">',
        "<title>Rooms of the library in the order in which data flows, drawn from the imports</title>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#78909c"/></marker></defs>',
        f'<rect width="{width:g}" height="{height}" fill="#fff"/>',
    ]
    for chain in chains(graph).values():
        path = curve([places[vertex] for vertex in chain])
        parts.append(f'<path d="{path}" fill="none" stroke="#78909c" stroke-width="1.3" marker-end="url(#end)"/>')
    for room in graph:
        x, top = places[room][0], places[room][1] - HEIGHT / 2
        fill, line = ("#fff3e0", "#ef6c00") if room in ABOVE else ("#e8eaf6", "#3949ab")
        parts.append(
            f'<rect x="{x - BOX / 2:.1f}" y="{top:.1f}" width="{BOX}" height="{HEIGHT}" rx="6"'
            f' fill="{fill}" stroke="{line}"/>'
        )
        parts.append(text(x, top + 16, room, 'font-size="13" font-weight="bold"'))
        for i, words in enumerate(textwrap.wrap(described(room), LETTERS, max_lines=LINES, placeholder=" …")):
            parts.append(text(x, top + 30 + 12 * i, words, 'font-size="9.5" fill="#37474f"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, style: str) -> str:
    """One centred line."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" {style}>{escape(words)}</text>'


def main() -> int:
    """Write the picture, or compare it with what is there."""
    picture = svg(imported_rooms())
    if "--check" in sys.argv[1:]:
        same = OUT.is_file() and OUT.read_text(encoding="utf-8") == picture
        print(f"{OUT.relative_to(ROOT)} is {'up to date' if same else 'out of date: run python docs/rooms.py'}")
        return 0 if same else 1
    OUT.write_text(picture, encoding="utf-8")
    print(f"wrote {OUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

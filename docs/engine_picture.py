"""A request's way through the open-loop engine, as SVG: `python docs/engine_picture.py`; `--check` compares."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parent / "images" / "engine.svg"
WIDTH, HEIGHT = 980, 400
LINE, FILL, WARM, GREY = "#3949ab", "#e8eaf6", "#ef6c00", "#546e7a"


def text(x: float, y: float, words: str, size: float = 12, color: str = "#212121", anchor: str = "middle") -> str:
    """Lines of text around a point; a bar in ``words`` starts a new line."""
    lines = words.split("|")
    spans = "".join(
        f'<tspan x="{x}" dy="{size * 1.25 if i else 0}">{escape(line)}</tspan>' for i, line in enumerate(lines)
    )
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{spans}</text>'


def box(x: float, y: float, width: float, height: float, words: str, fill: str = FILL) -> str:
    """A box with text in its middle."""
    lines = words.count("|") + 1
    rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{LINE}"/>'
    return rect + text(x + width / 2, y + height / 2 + 4 - 7.5 * (lines - 1), words)


def arrow(path: str, color: str = LINE, dashed: bool = False) -> str:
    """A path that ends in an arrow head."""
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    end = "warm" if color == WARM else "end"
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.6"{dash} marker-end="url(#{end})"/>'


def span(x0: float, x1: float, y: float, words: str) -> str:
    """A dimension line from x0 to x1 with its name above."""
    ticks = f"M{x0} {y - 5}V{y + 5}M{x1} {y - 5}V{y + 5}M{x0} {y}H{x1}"
    return f'<path d="{ticks}" fill="none" stroke="{GREY}"/>' + text((x0 + x1) / 2, y - 9, words, 12, GREY)


def marker(name: str, color: str) -> str:
    """An arrow head."""
    head = f'<path d="M0 0L8 4L0 8z" fill="{color}"/>'
    size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    return f'<marker id="{name}" {size}>{head}</marker>'


def svg() -> str:
    """The picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        "<title>A request's way through the open-loop engine</title>",
        f"<defs>{marker('end', LINE)}{marker('warm', WARM)}</defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        span(150, 660, 34, "TTFT: wait in line + rest of the iteration + own iterations + one more + h"),
        span(660, 870, 34, "TPOT: T / E a token"),
        text(62, 116, "requests|of this second", 12, GREY),
        box(150, 70, 150, 30, "interactive"),
        box(150, 108, 150, 30, "batch"),
        box(150, 146, 150, 30, "best effort"),
        text(225, 196, "lines; the most urgent goes first", 11, GREY),
        arrow("M108 122H146"),
        arrow("M225 204V236", WARM),
        text(225, 254, "more than 512 wait:|rejected", 11, WARM),
        arrow("M300 122H338"),
        box(342, 86, 146, 74, "let in while|n < batch_size and|K + P <= kv_budget|x pool", "#fff"),
        arrow("M488 122H510"),
        box(514, 86, 146, 74, "prefill|P tokens in chunks,|at most 2,048 tokens|an iteration"),
        arrow("M660 122H696"),
        box(700, 86, 170, 74, "decode, n requests|one token an iteration,|E with k drafts"),
        arrow("M870 122H916"),
        text(946, 118, "done:|judged", 12, GREY),
        # the pool
        f'<rect x="520" y="250" width="350" height="44" fill="#fff" stroke="{LINE}"/>',
        f'<rect x="520" y="250" width="215" height="44" fill="#c5cae9" stroke="{LINE}"/>',
        f'<path d="M800 242V302" stroke="{WARM}" stroke-width="2" stroke-dasharray="4 3"/>',
        text(627, 276, "K tokens held"),
        text(806, 318, "kv_budget x pool: new prompts wait", 11, WARM),
        text(500, 268, "KV pool, tokens: (memory -|weights - runtime) / bytes a token", 11, GREY, "end"),
        arrow("M585 160V246"),
        arrow("M760 160V246"),
        text(592, 206, "+ P", 12, LINE, "start"),
        text(767, 206, "+ 1 a token", 12, LINE, "start"),
        arrow("M870 272H930V376H120V160H146", WARM, dashed=True),
        text(520, 368, "pool full: the youngest goes back to the head of its line, and is computed again", 11, WARM),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    """Write the picture, or compare it with what is there."""
    if "--check" in sys.argv[1:]:
        same = OUT.is_file() and OUT.read_text(encoding="utf-8") == svg()
        print(f"{OUT.name} is {'up to date' if same else 'out of date: run python docs/engine_picture.py'}")
        return 0 if same else 1
    OUT.write_text(svg(), encoding="utf-8")
    print(f"wrote {OUT.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Screenshots of the page at three widths in light and dark: `python docs/page_pictures.py [http://localhost:7860]`.

Without an address it starts a server of its own. Needs chromium and the extras server and client.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.server.browser import READY, SECOND, Browser  # noqa: E402
from tests.server.conftest import served_page  # noqa: E402

OUT = ROOT / "docs" / "images"
SIZES = {390: 844, 768: 1024, 1440: 900}
SHOWN_FROM = 1300  # seconds of the first screen's episode


def shoot(address: str, out: Path) -> list[Path]:
    """Take all of them; returns the files."""
    written: list[Path] = []
    with Browser() as page:
        for width, height in SIZES.items():
            for theme in ("light", "dark"):
                page.resize(width, height, mobile=width < 500)
                page.media(prefers_color_scheme=theme)
                page.open(f"{address}/")
                page.wait(READY)
                page.wait(f"{SECOND} >= {SHOWN_FROM}")
                page.press(" ")
                path = out / f"page-{width}-{theme}.png"
                page.screenshot(path)
                written.append(path)
    return written


def main(arguments: list[str]) -> None:
    """Take them and say where they are."""
    with served_page(arguments) as address:
        for path in shoot(address, OUT):
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])

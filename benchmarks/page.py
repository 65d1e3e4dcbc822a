"""How long a visitor waits for the page: `python -m benchmarks.page [http://localhost:7860]`.

Opens the page without an address of its own, nothing cached, and takes the time from the navigation to the first frame
in which the episode plays below what control is worth. Without an address it starts a server of its own. Needs chromium
and the extras server and client.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass

from tests.server.browser import SECOND, Browser
from tests.server.conftest import served_page

VISITS = 7
PLAYS = f"!document.getElementById('claim').hidden && {SECOND} > 0"
WATCH = f"""document.addEventListener('DOMContentLoaded', () => {{
  const look = () => {{
    if ({PLAYS}) requestAnimationFrame(() => {{ window.playsAt = performance.now(); }});
    else requestAnimationFrame(look);
  }};
  look();
}});"""


@dataclass(frozen=True)
class Visits:
    """What the visits came to.

    Attributes:
        first_paint_s: from the navigation to the first text or picture, one a visit.
        plays_s: to the frame in which the episode plays.
        outside: addresses of other hosts that were asked.
        problems: errors on the console and exceptions.
    """

    first_paint_s: list[float]
    plays_s: list[float]
    outside: list[str]
    problems: list[str]


def visit(address: str, visits: int = VISITS) -> Visits:
    """Open the page so often.

    Args:
        address: of the server, with a slash at its end.
        visits: how often, after one that is not counted.
    """
    painted, plays = [], []
    with Browser(1440, 900) as page:
        page.call("Network.setCacheDisabled", cacheDisabled=True)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        for _ in range(1 + visits):
            page.open(address)
            plays.append(page.wait("window.playsAt") / 1000.0)
            first = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            painted.append(page.js(first) / 1000.0)
        own = (address, "data:", f"blob:{address}")
        outside = [url for url in page.requests if not url.startswith(own)]
        return Visits(painted[1:], plays[1:], outside, page.problems)


def main(arguments: list[str]) -> None:
    """Measure and print."""
    with served_page(arguments) as address:
        found = visit(f"{address}/")
    for what, seconds in (("first paint", found.first_paint_s), ("episode plays", found.plays_s)):
        print(f"{what:14} median {statistics.median(seconds):.2f} s, longest of {len(seconds)} {max(seconds):.2f} s")
    print(f"requests to other hosts {len(found.outside)}, errors on the console {len(found.problems)}")


if __name__ == "__main__":
    main(sys.argv[1:])

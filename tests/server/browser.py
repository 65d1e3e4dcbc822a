"""A headless Chromium driven over its DevTools socket: Debian's browser and the websockets package, no other driver.

``with Browser() as page: page.open(url); page.js("document.title")``
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium")


def tied(*command: str) -> list[str]:
    """A command whose process ends with this one, however this one ends: a server or browser that outlives a crashed
    test run would hold its output open, and whoever reads that would wait for ever."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else list(command)


FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-port=0"
).split()
KEY_CODES = {" ": "Space", "ArrowRight": "ArrowRight"}


READY = "document.documentElement.dataset.ready"
RESULT = "!document.getElementById('result').hidden"
SECOND = "Number(document.getElementById('time').value.split(' ')[0])"
IDLE = "document.querySelector('main').ariaBusy === 'false'"


class PageError(AssertionError):
    """JavaScript on the page threw, or never became what the test waits for."""


class Browser:
    """One tab of one browser process with a profile of its own; requests, console errors and exceptions are kept."""

    def __init__(self, width: int = 1280, height: int = 900):
        assert CHROMIUM, "no chromium on the path"
        self.size = (width, height)
        self.requests: list[str] = []
        self.problems: list[str] = []

    def __enter__(self) -> Browser:
        with contextlib.ExitStack() as opened:
            profile = opened.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self._written = Path(profile) / "DevToolsActivePort"
            self._process = subprocess.Popen(
                tied(str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            opened.callback(self._end)
            tabs = httpx.get(f"http://127.0.0.1:{self._port()}/json/list", timeout=30).json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            self._socket = opened.enter_context(connect(address, max_size=None, open_timeout=30))
            self._sent = 0
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
            self.resize(*self.size)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def _port(self) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._written.exists() and (lines := self._written.read_text().split()):
                return int(lines[0])
            if self._process.poll() is not None:
                raise PageError(f"chromium ended with status {self._process.returncode}")
            time.sleep(0.05)
        raise PageError("chromium opened no DevTools port within a minute")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command and its result; events that arrive meanwhile are sorted into requests and problems."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("id") == self._sent:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']}")
                return message["result"]
            self._event(message)

    def _event(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.problems.append(f"{params['entry']['text']} ({params['entry'].get('url', '')})")

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Set the viewport in CSS pixels."""
        self.size = (width, height)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def media(self, **features: str) -> None:
        """Emulate media features: ``media(prefers_color_scheme="dark")``."""
        chosen = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=chosen)

    def open(self, url: str) -> None:
        """Go to an address and wait until its document is loaded (its modules may still be at work)."""
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise PageError(f"{url}: {answer['errorText']}")
        self.wait("document.documentElement && document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The JSON value of an expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """The visible text of the first match."""
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """Poll until an expression is truthy and return it."""
        return self.until(lambda: self.js(expression), f"{expression} never became true", seconds)

    def until(self, condition: Callable[[], Any], complaint: str, seconds: float = 60) -> Any:
        """Poll a function until it is truthy and return what it gave."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.05)
        raise PageError(
            f"{complaint} within {seconds:g} s; problems: {self.problems}; body: {self.text('body')[:2000]}"
        )

    def click(self, selector: str) -> None:
        """A real mouse click at the middle of the first match, scrolled into view."""
        where = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def middle(self, selector: str) -> tuple[float, float]:
        """Where the middle of the first match is, scrolled into view."""
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return x, y

    def tap(self, selector: str) -> None:
        """A finger's tap at the middle of the first match."""
        x, y = self.middle(selector)
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.call("Emulation.setTouchEmulationEnabled", enabled=False)

    def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """A key, pressed and released where the focus is: a letter, " ", "Tab", "ArrowRight"..."""
        text = key if len(key) == 1 else ""
        code = KEY_CODES.get(key, f"Key{key.upper()}" if text else key)
        number = {" ": 32, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37}.get(key, ord(key[0].upper()))
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def choose(self, selector: str, value: str) -> None:
        """Set a select, an input or a slider and tell the page so."""
        self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            " for (const t of ['input', 'change']) e.dispatchEvent(new Event(t, {bubbles: true})); })()"
        )

    def screenshot(self, path: str | Path, *, whole: bool = False) -> None:
        """Write a PNG of the viewport, or of the whole page."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(image))


def visit(page: Browser, site: str, query: str) -> None:
    page.open(f"{site}?{query}&paused=1")
    page.wait(READY)

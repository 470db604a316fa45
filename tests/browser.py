"""Headless Chromium over its debugging pipe: no driver, no library, no port. Debian: apt-get install chromium."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Chromium reads commands from descriptor 3 and answers on 4.
_LAUNCH = (
    "import os, sys; to_read, to_write = int(sys.argv[1]), int(sys.argv[2]); "
    "os.dup2(to_read, 3); os.dup2(to_write, 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def chromium() -> str | None:
    """The program, or None."""
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


class BrowserError(Exception):
    """What the browser said instead of an answer."""


class Browser:
    """One browser with one page. `requests` are the addresses it asked for, `said` what it wrote to its console."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, to_write = os.pipe(), os.pipe()
        words = [program, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--hide-scrollbars", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
                 "--disable-component-update", "--disable-default-apps", "--disable-extensions",
                 "--force-color-profile=srgb", "--font-render-hinting=none", f"--user-data-dir={profile}",
                 "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(to_read[0]), str(to_write[1]), *words],
            pass_fds=(to_read[0], to_write[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile), "XDG_CONFIG_HOME": str(profile), "XDG_CACHE_HOME": str(profile)},
        )  # fmt: skip
        os.close(to_read[0])
        os.close(to_write[1])
        self._to, self._from = os.fdopen(to_read[1], "wb"), os.fdopen(to_write[0], "rb")
        self._rest, self._n, self._session = b"", 0, None
        self.requests: list[str] = []
        self.blocked: list[str] = []  # what a policy forbade
        self.said: list[str] = []
        self._asked: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = None
            self.call("Browser.close")
        except (BrowserError, OSError):
            self._process.kill()
        self._process.wait(30)
        self._to.close()
        self._from.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        self._n += 1
        message: dict[str, Any] = {"id": self._n, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            told = self._message()
            if told.get("id") == self._n:
                if "error" in told:
                    raise BrowserError(f"{method}: {told['error']}")
                result: dict[str, Any] = told["result"]
                return result
            self._note(told)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from.fileno(), 1 << 20)
            if not more:
                raise BrowserError("the browser is gone")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(text)
        return told

    def _note(self, told: dict[str, Any]) -> None:
        method, params = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
            self._asked[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason"):
            self.blocked.append(self._asked[params["requestId"]])
        elif method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded":
            self.said.append(str(params["entry"]["text"]))
        elif method == "Runtime.consoleAPICalled":
            self.said.append(json.dumps(params["args"]))
        self._events.append(told)

    def open(self, address: str) -> None:
        """Loads a page and waits until it is drawn."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._note(self._message())
        self.frames()

    def frames(self) -> None:
        """Waits for two frames: what was asked to be drawn is there."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def run(self, expression: str) -> Any:
        """The value of an expression of the page; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(json.dumps(found["exceptionDetails"])[:800])
        return found["result"].get("value")

    def look(self, *, width: int, height: int = 900, theme: str = "light", motion: str = "no-preference") -> None:
        """The window's size and what the system is set to."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        self.frames()

    def press(self, key: str) -> None:
        """One key, down and up."""
        codes = {
            "Tab": 9,
            "Enter": 13,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Home": 36,
            "End": 35,
        }
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key],
                      **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}))  # fmt: skip
        self.frames()

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(told["data"]))


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A browser with a profile of its own that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="quantplan-chromium-", ignore_cleanup_errors=True) as profile, \
            Browser(program, Path(profile)) as found:  # fmt: skip
        yield found

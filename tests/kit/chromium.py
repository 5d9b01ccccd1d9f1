"""A headless Chromium that can reach this machine only, driven over its DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from kit.environment import PATIENCE
from kit.pipeline import free_port

#: Size of a window, pixels.
WIDTH, HEIGHT = 1280, 900
BINARY = shutil.which("chromium") or shutil.which("chromium-browser")


#: Key -> its virtual key code, and the text that it writes.
_NAMED = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "PageUp": (33, ""),
    "PageDown": (34, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}


class DevTools:
    """
    A connection to the browser or to a tab of it.

    Attributes:
        events: (Method, parameters) of every DevTools event received so far.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.events: list[tuple[str, dict[str, Any]]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            if "method" in message:
                self.events.append((message["method"], message.get("params", {})))


class Page(DevTools):
    """A tab of the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__(connection)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Go to *url*."""
        self.call("Page.navigate", url=url)

    def until(self, expression: str, seconds: float = 60) -> Any:
        """Wait until *expression* is true and return its value; fail after *seconds*."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(
            f"{expression} is not true within {seconds} s; at {self.evaluate('location.href')}; problems: "
            f"{self.problems()}; last requests: {self.requested()[-5:]}"
        )

    def press(self, *keys: str) -> None:
        """Press and release each of *keys*: the value of ``KeyboardEvent.key``, such as ``a``, ``$`` or ``Enter``."""
        for key in keys:
            # The codes of other characters are those of other keys: that of a full stop is 46, which is Delete.
            code, text = _NAMED.get(key, (ord(key.upper()) if len(key) == 1 and key.isalnum() else 0, key))
            event = {"key": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Write *text* where the focus is, as a keyboard does."""
        self.press(*text)

    def prefer(self, scheme: str) -> None:
        """Let the system prefer *scheme*, ``light`` or ``dark``."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def problems(self, *expected: int) -> list[str]:
        """
        Return all exceptions, errors of the console, and errors and warnings of the browser's log, as JSON.

        The browser logs each answer that is an error. Left out are those with an *expected* status and those with 503,
        which a busy server gives and the page asks again.
        """
        self.call("Runtime.evaluate", expression="0")
        texts = []
        for method, parameters in self.events:
            if method == "Runtime.exceptionThrown":
                texts.append(json.dumps(parameters["exceptionDetails"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                answered = re.search(r"responded with a status of (\d+)", parameters["entry"]["text"])
                if answered and int(answered[1]) in (503, *expected):
                    continue
                texts.append(json.dumps(parameters["entry"]))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
                texts.append(json.dumps(parameters["args"]))
        return texts

    def requested(self) -> list[str]:
        """Return the URL of every request that was made."""
        return [
            parameters["request"]["url"] for method, parameters in self.events if method == "Network.requestWillBeSent"
        ]


def _connected(address: str) -> ClientConnection:
    """Connect without pings: each draws from the module random, in a thread, which Hypothesis reports as a fault."""
    return connect(address, max_size=None, open_timeout=60, ping_interval=None)


class Browser:
    """A running browser. Its tabs share nothing but the process, whose start takes as long as most tests."""

    def __init__(self, port: int, devtools: DevTools) -> None:
        self._port, self._devtools = port, devtools

    @contextlib.contextmanager
    def page(self) -> Iterator[Page]:
        """Open a tab in a window with storage, cookies and cache of its own, and close them after the block."""
        context = self._devtools.call("Target.createBrowserContext")["browserContextId"]
        try:
            target = self._devtools.call(
                "Target.createTarget",
                url="about:blank",
                browserContextId=context,
                width=WIDTH,
                height=HEIGHT,
                newWindow=True,
            )["targetId"]
            address = f"ws://127.0.0.1:{self._port}/devtools/page/{target}"
            with _connected(address) as connection:
                yield Page(connection)
        finally:
            self._devtools.call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Start a browser that can resolve no host but 127.0.0.1."""
    assert BINARY is not None
    port = free_port()
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        f"--window-size={WIDTH},{HEIGHT}",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        "--remote-debugging-address=127.0.0.1",
        f"--remote-debugging-port={port}",
        f"--user-data-dir={directory}",
        "about:blank",
    ]
    with (directory / "chromium.log").open("wb") as log:
        process = subprocess.Popen([BINARY, *flags], stdout=log, stderr=log)
    try:
        with _connected(_address(port)) as connection:
            yield Browser(port, DevTools(connection))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def chromium(directory: Path) -> Iterator[Page]:
    """Start a browser and yield a tab of it, for a file whose tests share one tab."""
    with browser(directory) as running, running.page() as opened:
        yield opened


def _address(port: int) -> str:
    deadline = time.monotonic() + 60 * PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/json/version") as answer:
            return str(json.load(answer)["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError(f"Chromium does not answer on its DevTools port within {60 * PATIENCE} s")

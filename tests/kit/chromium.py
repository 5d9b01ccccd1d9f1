"""A headless Chromium that can reach this machine only, driven over its DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from kit.pipeline import free_port

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """
    A tab of the browser.

    Attributes:
        events: (Method, parameters) of every DevTools event received so far.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

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
        raise AssertionError(f"{expression} is not true within {seconds} s; events: {self.events[-20:]}")

    def problems(self) -> list[str]:
        """Return all exceptions, errors of the console, and errors and warnings of the browser's log, as JSON."""
        self.call("Runtime.evaluate", expression="0")
        texts = []
        for method, parameters in self.events:
            if method == "Runtime.exceptionThrown":
                texts.append(json.dumps(parameters["exceptionDetails"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                texts.append(json.dumps(parameters["entry"]))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
                texts.append(json.dumps(parameters["args"]))
        return texts

    def requested(self) -> list[str]:
        """Return the URL of every request that was made."""
        return [
            parameters["request"]["url"] for method, parameters in self.events if method == "Network.requestWillBeSent"
        ]


@contextlib.contextmanager
def chromium(directory: Path) -> Iterator[Page]:
    """Start a browser that can resolve no host but 127.0.0.1, and yield a tab of it."""
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
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        "--remote-debugging-address=127.0.0.1",
        f"--remote-debugging-port={port}",
        f"--user-data-dir={directory}",
        "about:blank",
    ]
    with (directory / "chromium.log").open("wb") as log:
        process = subprocess.Popen([BINARY, *flags], stdout=log, stderr=log)
    try:
        with connect(_tab(port), max_size=None, open_timeout=30) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tab(port: int) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            for target in json.load(answer):
                if target["type"] == "page":
                    return str(target["webSocketDebuggerUrl"])
        time.sleep(0.2)
    raise AssertionError("Chromium does not answer on its DevTools port within 60 s")

"""
Makes the pictures of the page in docs/images: ``python tools/screenshots.py [DIRECTORY]``.

It starts a pipeline with a seeded week of demo traffic, opens the pages with a fixed range of time in Chromium, and
writes one PNG for each. Nothing but this machine is asked for anything.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.chromium import BINARY, Page, chromium  # noqa: E402
from kit.every_page import prefer, resize, show  # noqa: E402
from kit.pipeline import Pipeline  # noqa: E402
from kit.sessions import instant  # noqa: E402

#: Limit for each picture, bytes, because the README loads them.
MAX_BYTES = 150 * 1024
WIDTH, HEIGHT = 1280, 640
_DEMO = ("--history", "7d", "--rate", "0.05", "--seed", "1", "--for", "15s")


def main(arguments: list[str]) -> int:
    """Write the pictures and return the exit code."""
    if len(arguments) > 1:
        print("usage: python tools/screenshots.py [DIRECTORY]", file=sys.stderr)
        return 2
    if BINARY is None:
        print("SKIPPED: screenshots, because Chromium is not installed", file=sys.stderr)
        return 1
    directory = Path(arguments[0]) if arguments else ROOT / "docs" / "images"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        serving = Pipeline(Path(made) / "serve")
        serving.start()
        try:
            command = [sys.executable, "-m", "tokentrace_standalone", "demo", "--url", serving.url, *_DEMO]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            serving.until(lambda: _is_settled(serving), "all is stored and counted", 120)
            (Path(made) / "browser").mkdir()
            with chromium(Path(made) / "browser") as page:
                return _save_all(serving, page, directory)
        finally:
            serving.stop()


def _is_settled(serving: Pipeline) -> bool:
    """Return whether the store and the aggregator have all spans."""
    health = serving.get("/health").json()
    return bool(health["stored_spans"] == health["span_count"] == serving.get("/stats").json()["total_spans"])


def _save_all(serving: Pipeline, page: Page, directory: Path) -> int:
    page.call("Emulation.setTimezoneOverride", timezoneId="UTC")
    resize(page, WIDTH, HEIGHT)
    too_large = []
    for name, address, scheme in _pictures(serving):
        prefer(page, scheme)
        show(page, serving.url + address)
        data = base64.b64decode(page.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"])
        (directory / f"{name}.png").write_bytes(data)
        print(f"{name}.png: {len(data) / 1024:.0f} KiB")
        if len(data) > MAX_BYTES:
            too_large.append(name)
    if too_large:
        print(f"over {MAX_BYTES // 1024} KiB: {', '.join(too_large)}", file=sys.stderr)
    return 1 if too_large else 0


def _pictures(serving: Pipeline) -> list[tuple[str, str, str]]:
    """Return the name, address and theme of each picture."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)

    def since(length: timedelta) -> str:
        return f"from={quote(instant(now - length), safe='')}&to={quote(instant(now), safe='')}"

    deepest = serving.get("/traces?q=research-agent&order=cost&limit=1").json()["traces"][0]["trace_id"]
    session = serving.get("/api/sessions?label=battery&order=spans&limit=1").json()["sessions"][0]["sessionId"]
    day, days = since(timedelta(days=1)), since(timedelta(days=3))
    return [
        ("overview", f"/#/?{days}", "light"),
        ("overview-dark", f"/#/?{days}", "dark"),
        ("metric", f"/#/metric/total_cost?{days}&groupby=model", "light"),
        ("traces", f"/#/traces?{day}", "light"),
        ("trace", f"/#/traces/{quote(deepest, safe='')}", "light"),
        ("compare", f"/#/compare?{day}", "light"),
        ("session", f"/#/sessions/{quote(session, safe='')}", "light"),
        ("alerts", "/#/alerts", "light"),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

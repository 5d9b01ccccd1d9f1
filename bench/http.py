"""``POST /spans`` against a bare route, each on one core, the load generator on the other."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from bench.process import free_port, fsync_ms, nats, python, started
from bench.spans import make_spans
from bench.table import Row
from tokentrace.dialect.docs import render_span

_SECONDS = 3.0


def rows() -> list[Row]:
    """100 spans a request, and one."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sync = fsync_ms(directory)
        for count, connections, budget in ((100, 8, 0.40), (1, 64, 0.60)):
            body = directory / f"{count}.json"
            # Without ids, so that every request is a new batch; without what only the server fills in.
            docs = [_as_sent(render_span(span)) for span in make_spans(count)]
            body.write_text(json.dumps(docs if count > 1 else docs[0]))
            ours, bare = [], []
            for turn in range(2):
                bare.append(_measure(directory / f"bare{count}{turn}", body, connections, bare=True))
                ours.append(_measure(directory / f"ours{count}{turn}", body, connections, bare=False))
            rate, limit = max(ours), max(bare)
            unit = f"{rate * count:,.0f} spans/s" if count > 1 else f"{rate:,.0f} requests/s"
            found.append(
                Row(
                    f"POST /spans, {count} a request, 202 after PubAck",
                    f"{unit} (fsync {sync:.2f} ms)",
                    f"bare route {limit * count:,.0f}: {rate / limit:.0%}",
                    f">= {budget:.0%} of bare",
                    rate >= budget * limit,
                )
            )
    return found


def _as_sent(shown: dict[str, object]) -> dict[str, object]:
    return {
        key: value
        for key, value in shown.items()
        if key not in ("trace_id", "span_id", "parent_span_id", "cost_usd") and value is not None
    }


def _measure(directory: Path, body: Path, connections: int, *, bare: bool) -> float:
    directory.mkdir()
    with nats(directory) as url:
        port = free_port()
        words = (
            python("bench.bare.route", url, str(port))
            if bare
            else python("tokentrace_ingest", "--nats", url, "--addr", f"127.0.0.1:{port}")
        )
        with started(words, f"http://127.0.0.1:{port}/readyz", cores={0}):
            _load(port, connections, 1.0, body)
            return _load(port, connections, _SECONDS, body)


def _load(port: int, connections: int, seconds: float, body: Path) -> float:
    words = python("bench.load", str(port), str(connections), str(seconds), str(body))
    done = subprocess.run(["taskset", "-c", "1", *words], capture_output=True, check=True, timeout=60)
    return float(done.stdout)

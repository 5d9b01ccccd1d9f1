"""The api's span store: appends."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.spans import make_batches
from bench.table import Row
from tokentrace.machine import Message
from tokentrace.records import encode_batches
from tokentrace_api.store import Item, Store

_SIZE = 256
_BATCHES = 800
#: Messages that come together within a quarter of a second at full speed.
_AT_ONCE = 64


def rows() -> list[Row]:
    """Appends, decoding included, as the writer does them."""
    items = [
        Item(0, 1, Message("tokentrace.spans.default.0", encode_batches([batch]), index + 1, batch.arrived_ns, {}))
        for index, batch in enumerate(make_batches(_BATCHES, _SIZE))
    ]
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name), shards=1)
        began = time.perf_counter()
        stored = sum(len(store.append(items[at : at + _AT_ONCE])) for at in range(0, len(items), _AT_ONCE))
        rate = stored / (time.perf_counter() - began)
        store.close()
        size = sum(file.stat().st_size for file in Path(name).iterdir())
    return [
        Row(
            "span store: append",
            f"{rate:,.0f} rows/s, {size / stored:.0f} bytes a span",
            "",
            ">= 100,000 rows/s",
            rate >= 100_000,
        )
    ]

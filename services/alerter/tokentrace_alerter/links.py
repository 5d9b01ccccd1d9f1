"""The link of an event to its rule on the page of the api."""

from __future__ import annotations

import contextlib
from urllib.parse import quote, urlencode

from msgspec.structs import replace

from tokentrace.errors import Rejected
from tokentrace.records import AlertEvent
from tokentrace.units import parse_duration, parse_instant, render_instant


def linked(event: AlertEvent, public_url: str) -> AlertEvent:
    """
    Return *event* with its link: to its rule, from the beginning of the window of its first firing up to the event.

    Args:
        public_url: URL under which browsers reach the api; "" = unknown, so there is no link.
    """
    if not public_url:
        return event
    from_ns = parse_instant(event.starts_at or event.fired_at)
    # The window of an episode without a rule is what a stream says.
    with contextlib.suppress(Rejected):
        from_ns -= parse_duration(event.window)
    period = urlencode({"from": render_instant(from_ns), "to": event.ends_at or event.fired_at}, safe=":")
    return replace(event, link=f"{public_url.rstrip('/')}/#/alerts/{quote(event.alert, safe='')}?{period}")

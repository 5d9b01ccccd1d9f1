"""Silences of rules: what is kept of one, and how a request for one is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokentrace.errors import Rejected, quoted
from tokentrace.records import SilenceRule
from tokentrace.units import DAY, parse_duration, render_instant

MAX_SILENCE_NS = 366 * DAY
#: Longest name of who silences a rule, and longest reason, characters.
MAX_SILENCED_BY, MAX_SILENCE_COMMENT = 200, 2000
#: How many silences of a rule are remembered after their end.
MAX_PAST_SILENCES = 20


class Silence(NamedTuple):
    """
    A silence of a rule. Instants are Unix nanoseconds.

    Attributes:
        until_ns: When it ends; 0 = there is none, or it was lifted.
        at_ns: When it was made; 0 = unknown.
        by, comment: Who made it, and why; "" = it was not said.
    """

    until_ns: int = 0
    at_ns: int = 0
    by: str = ""
    comment: str = ""

    def render(self, now_ns: int, past: Sequence[Silence]) -> dict[str, Any]:
        """Return what ``GET /alerts`` shows of it at *now_ns*, Unix nanoseconds; *past* are those before it."""
        lasts = self.until_ns > now_ns
        ended_ns = self.until_ns or (past[-1].until_ns if past else 0)
        return {
            "silenced_at": render_instant(self.at_ns) if lasts and self.at_ns else None,
            "silenced_by": (lasts and self.by) or None,
            "silence_comment": (lasts and self.comment) or None,
            "silence_ended": render_instant(ended_ns) if ended_ns and not lasts else None,
        }


def ended(silence: Silence, past: Sequence[Silence], now_ns: int) -> list[Silence]:
    """Return *past*, the silences that have ended, with *silence*, which ends at *now_ns* if it has not before."""
    if not silence.until_ns or not silence.at_ns:
        return list(past)
    return [*past, silence._replace(until_ns=min(silence.until_ns, now_ns))][-MAX_PAST_SILENCES:]


def render_silences(silence: Silence | None, past: Sequence[Silence]) -> list[dict[str, Any]]:
    """Return *silence*, the present or last one, and those before it, as the API lists them: newest first."""
    every = [*past, *([silence] if silence is not None and silence.until_ns and silence.at_ns else ())]
    return [
        {
            "at": render_instant(each.at_ns),
            "until": render_instant(each.until_ns),
            "by": each.by or None,
            "comment": each.comment or None,
        }
        for each in reversed(every)
    ]


def parse_silence(request: SilenceRule, now_ns: int) -> Silence:
    """
    Return the silence that *request* asks for at *now_ns*, Unix nanoseconds.

    Raises:
        Rejected: The duration is none, or too long, or a text is; the error names the key.
    """
    for key, text, most in (("by", request.by, MAX_SILENCED_BY), ("comment", request.comment, MAX_SILENCE_COMMENT)):
        if len(text) > most:
            raise Rejected(f"{key}: has {len(text)} characters, which is over {most}")
    try:
        duration_ns = parse_duration(request.duration)
    except Rejected as exc:
        raise Rejected(f"duration: {exc}") from exc
    if not 0 < duration_ns <= MAX_SILENCE_NS:
        raise Rejected(f"duration: {quoted(request.duration)} is not between 1ns and 366d")
    return Silence(now_ns + duration_ns, now_ns, request.by, request.comment)

"""
Searches of long texts in windows, with a pause between them.

A regular expression holds the interpreter until its search ends: 2 to 8 ms for 30 kB, during which no other thread of
an application runs. Inside ``pausing``, a long text is searched in windows, and the pause between them lets the others
run.

A window ends after a *fence*: a character that is in no match of the pattern, and at which a condition on what follows
a match is decided. So every match lies in one window, and the result is that of a search of the whole text. A condition
on what precedes a match sees the text before the window too. A text without fences is searched as a whole.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator

#: Texts of up to twice this many characters, and windows of about so many, are searched at once.
WINDOW = 2048

_local = threading.local()


@contextlib.contextmanager
def pausing(pause: Callable[[], None]) -> Iterator[None]:
    """Search long texts in windows in this thread, and call *pause* between them."""
    before: Callable[[], None] | None = getattr(_local, "pause", None)
    _local.pause = pause
    try:
        yield
    finally:
        _local.pause = before


def search(regex: re.Pattern[str], fence: re.Pattern[str] | None, text: str, start: int = 0) -> re.Match[str] | None:
    """
    Return the first match of *regex* in *text* from *start* on.

    Args:
        fence: Matches one character that is in no match of *regex*, as said above; None = there is no such character.
    """
    pause: Callable[[], None] | None = getattr(_local, "pause", None)
    if pause is None or fence is None:
        return regex.search(text, start)
    while len(text) - start > 2 * WINDOW:
        found = fence.search(text, start + WINDOW)
        if found is None:
            break
        match = regex.search(text, start, found.end())
        pause()
        if match is not None:
            return match
        start = found.end()
    return regex.search(text, start)


def finditer(regex: re.Pattern[str], fence: re.Pattern[str] | None, text: str) -> Iterator[re.Match[str]]:
    """Yield the matches of *regex*, none of which is empty, as ``re.finditer``; *fence* as in ``search``."""
    match = search(regex, fence, text)
    while match is not None:
        yield match
        match = search(regex, fence, text, match.end())

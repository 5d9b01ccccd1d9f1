"""Foreign wire forms <-> our records, pure; one file for each form."""

from __future__ import annotations

import re

from tokentrace.errors import cut_quoted

_PATH = re.compile(r" - at `(key in )?\$(.*)`$")


def explain(error: str) -> str:
    """
    A decoder's message with the field first: ``span 3: prompt_tokens: Expected `int`, got `str```.

    Values quoted in it are cut to 40 characters: an error text must not carry what redaction would take out.
    """
    match = _PATH.search(error)
    if match is None:
        return cut_quoted(error)
    key, path = match.groups()
    reason = cut_quoted(error[: match.start()])
    where = []
    index = re.match(r"\[(\d+)\]", path)
    if index is not None:
        where.append(f"span {index[1]}")
        path = path[index.end() :]
    field = path.lstrip(".").replace("[...]", "")
    if field:
        where.append(f"a key of {field}" if key else field)
    return ": ".join([*where, reason])

"""The translation of foreign formats into records and back; one module or package for each format."""

from __future__ import annotations

import re

from tokentrace.errors import cut_quoted

_PATH = re.compile(r" - at `(key in )?\$(.*)`$")


def explain(error: str) -> str:
    """
    Return msgspec's message *error* with the field first: ``span 3: prompt_tokens: Expected `int`, got `str```.

    Quoted values are cut to 40 characters, because they may contain secrets and an error text is not redacted.
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

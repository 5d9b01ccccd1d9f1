"""Requests of OTLP in parts: cut to a size, joined, and marked with the pipelines that have sent them on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokentrace.dialect.otlp import own_names

#: Most pipelines that a mark lists; more of them are a loop through others.
_MAX_VIA = 16


def count_records(request: Any) -> int:
    """Return the number of spans, log records or metrics of *request*, a message of ``dialect.otlp.messages``."""
    return sum(len(_records(group)) for part in _parts(request) for group in _groups(part))


def mark(request: Any, pipeline: str) -> int:
    """
    Note in each resource of *request* that *pipeline* sends it on; remove what this pipeline has sent on before.

    Returns:
        The number of removed records.
    """
    parts = _parts(request)
    looped = 0
    for index in reversed(range(len(parts))):
        attributes = parts[index].resource.attributes
        pair = next((pair for pair in attributes if pair.key == own_names.VIA), None)
        via = [] if pair is None else [value.string_value for value in pair.value.array_value.values]
        if pipeline in via or len(via) >= _MAX_VIA:
            looped += sum(len(_records(group)) for group in _groups(parts[index]))
            del parts[index]
            continue
        if pair is None:
            pair = attributes.add()
            pair.key = own_names.VIA
        pair.value.array_value.values.add().string_value = pipeline
    return looped


def split(request: Any, limit: int) -> Iterator[tuple[bytes, int]]:
    """
    Yield (encoded request, number of its records) that together hold *request*, in its order.

    None has more than *limit* bytes, but for one that holds a single larger record.
    """
    count = count_records(request)
    if count > 1 and request.ByteSize() > limit:
        for half in halves(request):
            yield from split(half, limit)
    elif count:
        yield request.SerializeToString(), count


def halves(request: Any) -> list[Any]:
    """Return two requests that together hold *request*, in its order; the first is empty if it holds one record."""
    middle, place = count_records(request) // 2, 0
    first, second = type(request)(), type(request)()
    for part in _parts(request):
        targets: dict[int, Any] = {}
        for group in _groups(part):
            copies: dict[int, Any] = {}
            for record in _records(group):
                which = int(place >= middle)
                place += 1
                if which not in targets:
                    target = targets[which] = _parts((first, second)[which]).add()
                    target.resource.CopyFrom(part.resource)
                    target.schema_url = part.schema_url
                if which not in copies:
                    copy = copies[which] = _groups(targets[which]).add()
                    copy.scope.CopyFrom(group.scope)
                    copy.schema_url = group.schema_url
                _records(copies[which]).add().CopyFrom(record)
    return [first, second]


def _parts(request: Any) -> Any:
    return getattr(request, request.DESCRIPTOR.fields[0].name)


def _groups(part: Any) -> Any:
    return getattr(part, _GROUPS[part.DESCRIPTOR.name])


def _records(group: Any) -> Any:
    return getattr(group, _RECORDS[group.DESCRIPTOR.name])


_GROUPS = {"ResourceSpans": "scope_spans", "ResourceLogs": "scope_logs", "ResourceMetrics": "scope_metrics"}
_RECORDS = {"ScopeSpans": "spans", "ScopeLogs": "log_records", "ScopeMetrics": "metrics"}

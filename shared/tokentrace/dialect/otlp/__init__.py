"""
OpenTelemetry's OTLP, as emitters really send it.

``json_wire`` and ``protobuf_wire`` decode a request into the same ``OtlpSpan`` and ``OtlpLog``; ``map_spans`` and
``map_logs`` make records of them.
"""

from __future__ import annotations

from tokentrace.dialect.otlp.fold import Reading
from tokentrace.dialect.otlp.logs import MappedLogs, map_logs
from tokentrace.dialect.otlp.mapping import Mapped, map_spans
from tokentrace.dialect.otlp.model import OtlpEvent, OtlpLog, OtlpSpan

__all__ = ["Mapped", "MappedLogs", "OtlpEvent", "OtlpLog", "OtlpSpan", "Reading", "map_logs", "map_spans"]

"""A sender with OpenTelemetry's own exporter, which exports each batch of calls until it is acknowledged."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

#: Calls of a batch.
BATCH = 20
#: What the price list computes for a call: 1,000 tokens in and 100 out.
CALL_NUSD = 3_500_000


class Try(NamedTuple):
    """
    A request of the exporter.

    Attributes:
        export: The number of the export it belongs to.
        began: When it began, in seconds.
        ended: When its answer had come.
        status: The status of the answer; 0 = there was none.
        retry_after: What the answer asks to wait.
    """

    export: int
    began: float
    ended: float
    status: int
    retry_after: str


class _Session(requests.Session):
    """Notes each request of the exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.tries: list[Try] = []
        self.export = 0

    def request(self, *args: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            answer = super().request(*args, **options)
        except requests.RequestException:
            self.tries.append(Try(self.export, began, time.monotonic(), 0, ""))
            raise
        asked = answer.headers.get("retry-after", "")
        self.tries.append(Try(self.export, began, time.monotonic(), answer.status_code, asked))
        return answer


class OtlpSender:
    """
    A thread that exports batches, as a collector with a queue does: each until it is acknowledged.

    Args:
        url: The base URL of the pipeline.
        caller: The name of the service.
        timeout_s: After how many seconds the exporter gives up on a batch; it is then exported anew.

    Attributes:
        acknowledged: How many calls were acknowledged.
        given_up: How often the exporter gave up.
        tries: The requests of the exporter.
    """

    def __init__(self, url: str, caller: str, timeout_s: float = 10) -> None:
        self._made = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource({"service.name": caller}))
        provider.add_span_processor(SimpleSpanProcessor(self._made))
        self._tracer = provider.get_tracer("shop")
        self._session = _Session()
        self.tries = self._session.tries
        self._exporter = OTLPSpanExporter(
            f"{url}/v1/traces", timeout=timeout_s, compression=Compression.Gzip, session=self._session
        )
        self.acknowledged = 0
        self.given_up = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> OtlpSender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End after the batch that is under way is acknowledged."""
        self._stopping.set()
        self._thread.join()
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _run(self) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        while not self._stopping.is_set():
            spans = self._spans()
            while not self._export(spans):
                self.given_up += 1
                time.sleep(0.2)
            self.acknowledged += len(spans)
            time.sleep(0.02)

    def _export(self, spans: Sequence[ReadableSpan]) -> bool:
        self._session.export += 1
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def _spans(self) -> Sequence[ReadableSpan]:
        self._made.clear()
        for _ in range(BATCH):
            with self._tracer.start_as_current_span("chat gpt-4o", kind=SpanKind.CLIENT) as span:
                facts: dict[str, str | int] = {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.request.model": "gpt-4o",
                    "gen_ai.response.model": "gpt-4o-2024-08-06",
                    "gen_ai.response.id": f"chatcmpl-{span.get_span_context().span_id:016x}",
                    "gen_ai.usage.input_tokens": 1000,
                    "gen_ai.usage.output_tokens": 100,
                }
                span.set_attributes(facts)
        return self._made.get_finished_spans()

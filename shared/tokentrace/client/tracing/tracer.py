"""The tracer of a program: it makes traces and hands their spans to a transport."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from tokentrace.client import lifecycle
from tokentrace.client.reporter import Stats
from tokentrace.client.tracing.scoring import Api, Scores
from tokentrace.client.tracing.starting import TraceMaker
from tokentrace.client.tracing.wiring import FileArguments, own_transports, pipeline_tree, wire
from tokentrace.client.transports import Transport
from tokentrace.errors import ConfigError, TokentraceError
from tokentrace.records import Span
from tokentrace.redact import Redactor

if TYPE_CHECKING:
    from tokentrace.pricing import Rate

log = logging.getLogger("tokentrace.tracer")

F = TypeVar("F", bound=Callable[..., Any])
Capture = Literal["none", "messages"]
StreamUsage = Literal["auto", "never"]


class Tracer(TraceMaker):
    """
    Makes traces and hands their spans to a transport. One for a program; it may be shared by any number of threads.

    At exit, open traces end and the transport has 5 seconds for the spans that wait. As a block, with ``with`` or
    ``async with``, it closes at the end of the block.

    Args:
        transport: Where spans go: a transport, or a URL with the scheme nats, tls, http, https, file, stdout or noop.
            None reads the environment variable ``TOKENTRACE_URL``; without it, spans are ignored, which is logged.
        source: The name of this program, which becomes the caller of spans that name none. None reads the environment
            variable ``TOKENTRACE_SOURCE``. For a transport that is an object, it is the caller alone.
        project: The project that the spans belong to; None reads ``TOKENTRACE_PROJECT``, else it is ``default``.
        token: Bearer token for ``http(s)://``; None reads ``TOKENTRACE_TOKEN``.
        capture: ``messages`` = tracked calls keep the prompts and answers, redacted; ``none`` = no content.
        stream_usage: ``auto`` = tracked streams ask for their usage where the provider is known to take the option.
        redactor: Removes secrets before spans leave this process; None uses the default rules.
        prices: Rates by model that take precedence over the price list, for the pipeline inside of this program. A
            pipeline elsewhere, and a ``Budget`` that spans are added to, need the same rates themselves.
        alerts: Rules, as ``cost_spike`` and similar functions make them, for a pipeline inside of this program.
        custom_metrics: Custom metrics, as ``tokentrace.yml`` has them, for a pipeline inside of this program.
        http_server: Where a pipeline inside of this program answers HTTP, such as ``:9090`` on 127.0.0.1. This and
            the two arguments before need the extra ``server``; without a transport, it takes all spans.
        api_url: Base URL of the HTTP api, for ``score``; None reads ``TOKENTRACE_API_URL``, or else is that of
            *http_server*.
        options: Further arguments of the transport that a URL names, such as ``spool``.

    Attributes:
        capture, stream_usage, prices: The arguments.

    Raises:
        ConfigError: The URL or another argument cannot be used.
        Unavailable: The address of *http_server* is in use.
    """

    def __init__(
        self,
        transport: Transport | str | None = None,
        *,
        source: str | None = None,
        project: str | None = None,
        token: str | None = None,
        capture: Capture = "none",
        stream_usage: StreamUsage = "auto",
        redactor: Redactor | None = None,
        prices: Mapping[str, Rate | Mapping[str, Any]] | None = None,
        alerts: Sequence[Mapping[str, Any]] = (),
        custom_metrics: Sequence[Mapping[str, Any]] = (),
        http_server: str | None = None,
        api_url: str | None = None,
        **options: Any,
    ) -> None:
        if capture not in ("none", "messages"):
            raise ConfigError(f"capture: {capture!r} is none of none, messages")
        if stream_usage not in ("auto", "never"):
            raise ConfigError(f"stream_usage: {stream_usage!r} is none of auto, never")
        asked = http_server is not None
        pipeline = pipeline_tree(alerts, custom_metrics, prices or {}, asked=asked)
        given = {"source": source, "project": project, "token": token, "redactor": redactor, **options}
        self._recipe: Callable[[], Tracer] = partial(
            type(self),
            transport,
            **given,
            capture=capture,
            stream_usage=stream_usage,
            prices=prices,
            alerts=alerts,
            custom_metrics=custom_metrics,
            http_server=http_server,
            api_url=api_url,
        )
        wired = wire(transport, given, pipeline, http_server, "Tracer")
        self._set_up(wired, source, Api(api_url, token), capture, stream_usage, prices)

    def _set_up(
        self,
        transport: Transport,
        source: str | None,
        api: Api,
        capture: Capture = "none",
        stream_usage: StreamUsage = "auto",
        prices: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(source or "")
        self._transport = transport
        self._scores = Scores(api, transport)
        self.capture, self.stream_usage, self.prices = capture, stream_usage, dict(prices or {})
        self._faults: set[str] = set()
        lifecycle.register(self, is_source=True)

    @classmethod
    def from_file(cls, path: str | Path = "tokentrace.yml", **arguments: Any) -> Self:
        """
        Make a tracer from a configuration file, which needs the extra ``yaml``.

        The sections ``transport``, ``redaction`` and ``pricing`` describe the tracer. With ``http_server.enabled``,
        ``alerts`` or ``custom_metrics``, a pipeline runs inside of this program, as the whole file describes it.

        Args:
            path: The file.
            arguments: Arguments of ``Tracer``; what the file states wins over them.

        Returns:
            The tracer.

        Raises:
            ConfigError: The file cannot be read or is invalid; the message names the file and the key.
            Unavailable: The address of the HTTP server is in use.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: cannot be read: {exc}") from exc
        return cls._from_text(text, str(path), arguments)

    @classmethod
    def from_text(cls, text: str, **arguments: Any) -> Self:
        """
        Make a tracer from the text of a configuration file, as ``from_file`` does.

        Args:
            text: YAML, as ``tokentrace.yml``.
            arguments: Arguments of ``Tracer``; what the text states wins over them.

        Returns:
            The tracer.

        Raises:
            ConfigError: The text is invalid; the message names the key.
            Unavailable: The address of the HTTP server is in use.
        """
        return cls._from_text(text, "configuration", arguments)

    @classmethod
    def _from_text(cls, text: str, name: str, arguments: dict[str, Any]) -> Self:
        file = FileArguments(text, name)
        merged = {**arguments, **file.arguments}
        if not file.pipeline:
            return cls(**merged)
        for key in ("alerts", "custom_metrics"):
            added = merged.pop(key, ())
            if added and not file.pipeline.get(key):
                file.pipeline[key] = [dict(item) for item in added]
        http_server = merged.pop("http_server", None)
        transport = merged.pop("transport", None)
        kept = {key: merged.pop(key) for key in ("capture", "stream_usage", "prices") if key in merged}
        tracer = cls.__new__(cls)
        tracer._recipe = partial(cls._from_text, text, name, arguments)
        api = Api(merged.pop("api_url", None), merged.get("token"))
        tracer._set_up(wire(transport, merged, file.pipeline, http_server, name), merged.get("source"), api, **kept)
        return tracer

    @property
    def transport(self) -> Transport:
        """Where spans go."""
        return self._transport

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Wait until all spans that were handed over, and all scores, are accepted or lost. Open traces keep their spans.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        started = time.monotonic()
        sent = self._transport.flush(timeout)
        left = None if timeout is None else max(timeout - (time.monotonic() - started), 0.0)
        return self._scores.flush(left) and sent

    async def aflush(self, timeout: float | None = 5.0) -> bool:
        """
        Do what ``flush`` does without blocking the event loop.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        return await asyncio.to_thread(self.flush, timeout)

    def close(self, timeout: float = lifecycle.CLOSE_TIMEOUT_S) -> None:
        """
        End the open traces and close the transport; closing twice is allowed.

        Args:
            timeout: Seconds; spans that are not accepted by then are lost and counted.
        """
        deadline = time.monotonic() + timeout
        self.begin_close(timeout)
        self._transport.close(timeout)
        self._scores.close(max(deadline - time.monotonic(), 0.0))

    async def aclose(self, timeout: float = lifecycle.CLOSE_TIMEOUT_S) -> None:
        """
        Do what ``close`` does without blocking the event loop.

        Args:
            timeout: Seconds; spans that are not accepted by then are lost and counted.
        """
        await asyncio.to_thread(self.close, timeout)

    def score(
        self, value: float | None, *, trace_id: str, span_id: str | None = None, name: str = "eval.score"
    ) -> None:
        """
        Score a call that has ended, through the HTTP api and in the background.

        A program that reaches the pipeline over NATS alone sets ``score`` before the span ends.

        Args:
            value: The quality of the answer, 0 to 1; None takes a score back.
            trace_id: The trace of the call.
            span_id: The call; None = the topmost span of the trace.
            name: The name of the score; ``eval.score`` is the one that the metrics of quality use.

        Raises:
            ConfigError: Neither *api_url* nor ``TOKENTRACE_API_URL`` says where the api is.
        """
        self._scores.score(value, trace_id, span_id, name)

    def stats(self) -> Stats:
        """
        Return the counters of the transport.

        Returns:
            Counts of spans since the transport was opened.
        """
        return self._transport.stats()

    # -- called by traces

    def hand_over(self, spans: Sequence[Span]) -> None:
        """
        Give *spans* to the transport. This never raises; a fault is logged once for each kind.

        Args:
            spans: Finished spans.
        """
        try:
            self._transport.send(spans)
        except TokentraceError as exc:
            self._report_fault(f"{len(spans)} spans were not sent", exc)
        except Exception as exc:  # noqa: BLE001 - a transport of the application, which must not fail because of spans
            self._report_fault(f"the transport {type(self._transport).__name__} failed on {len(spans)} spans", exc)

    def _report_fault(self, what: str, error: Exception) -> None:
        kind = f"{type(error).__name__}: {error}"
        with self._lock:
            known = kind in self._faults or len(self._faults) > 100
            self._faults.add(kind)
        if not known:
            log.warning("tracer %s: %s: %s", self._caller, what, kind)

    def finish_close(self) -> None:
        """Close a transport of the application, at exit; the others are closed by ``lifecycle``."""
        for transport in own_transports(self._transport):
            try:
                transport.close(lifecycle.CLOSE_TIMEOUT_S)
            except Exception as exc:  # noqa: BLE001 - a transport of the application, and the others must close too
                self._report_fault(f"the transport {type(transport).__name__} was not closed", exc)

    def __reduce__(self) -> tuple[Callable[[], Tracer], tuple[()]]:
        # A copy in another process connects anew.
        return self._recipe, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

"""Sessions in this process, with the methods of Cost Katana's ``LocalTraceService``."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from tokentrace.client import lifecycle
from tokentrace.client.sessions.files import Files
from tokentrace.client.sessions.local_transport import LocalTransport
from tokentrace.client.sessions.memory import Memory
from tokentrace.client.sessions.saving import Saving, priced
from tokentrace.client.sessions.words import (
    Error,
    StartedSpan,
    encode,
    end_body,
    error_text,
    message_body,
    start_body,
)
from tokentrace.dialect import costkatana
from tokentrace.errors import ConfigError
from tokentrace.records import Kind, Role, Status
from tokentrace.redact import DEFAULT_KEYS, Redactor

#: More keys whose values are removed, separated by commas.
KEYS_VARIABLE = "TRACE_REDACT_KEYS"


class LocalTraceService(LocalTransport):
    """
    Keeps sessions in this process, for tests and programs without a pipeline. It may be shared between threads, and
    it is a transport: ``Tracer(service)`` keeps its spans here.

    Secrets are removed before anything is kept. A span that ends without a cost is priced with the price list. A forked
    child begins without sessions in the mode ``memory``, and with those of the files in the mode ``file``. As a block,
    with ``with``, ``destroy`` is called at its end.

    Args:
        storage_mode: ``memory``, or ``file``: sessions are read from files at the start and written to files.
        storage_dir: The directory of the files, with the subdirectories ``traces``, ``sessions`` and ``messages``.
        auto_save: True = in the mode ``memory``, everything is written to files at intervals and by ``destroy``.
        auto_save_interval_ms: The interval, milliseconds.
        max_sessions: With more sessions, the one that was inserted first goes, with its spans and messages. Files stay.
        redact_keys: Keys whose values are removed; None = the usual ones. A list without ``email`` or ``phone`` leaves
            addresses or numbers in texts. The keys in ``TRACE_REDACT_KEYS`` are added.

    Raises:
        ConfigError: An argument cannot be used, or *storage_dir* cannot be made.
    """

    def __init__(
        self,
        storage_mode: Literal["memory", "file"] = "memory",
        storage_dir: str | Path = "./traces",
        auto_save: bool = False,
        auto_save_interval_ms: int = 60_000,
        max_sessions: int = 1_000,
        redact_keys: Collection[str] | None = None,
    ) -> None:
        if storage_mode not in ("memory", "file"):
            raise ConfigError(f"storage_mode: {storage_mode!r} is none of memory, file")
        for name, value in (("max_sessions", max_sessions), ("auto_save_interval_ms", auto_save_interval_ms)):
            if value < 1:
                raise ConfigError(f"{name}: {value} is not at least 1")
        self._redactor, self._max_sessions = _redactor(redact_keys), max_sessions
        self._is_file = storage_mode == "file"
        files = None
        if self._is_file or auto_save:
            try:
                files = Files(Path(storage_dir))
            except OSError as exc:
                raise ConfigError(f"storage_dir: {exc.strerror or type(exc).__name__}") from exc
        saving = Saving(files)
        self._interval_s = auto_save_interval_ms / 1000 if auto_save and not self._is_file else 0.0
        self._stop = threading.Event()
        self._saver: threading.Thread | None = None
        super().__init__(self._loaded(saving), saving, self._is_file)
        lifecycle.register(self)

    def _loaded(self, saving: Saving) -> Memory:
        memory = Memory(self._redactor, priced, self._max_sessions)
        if self._is_file:
            for kept in saving.load(self._redactor, self._max_sessions):
                memory.adopt(kept)
        return memory

    def start_span(
        self,
        name: str,
        type: Kind = "custom",
        *,
        session_id: str | None = None,
        parent_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> StartedSpan:
        """
        Start a span.

        Args:
            name: The operation.
            type: llm, embedding, tool, retrieval, database, custom, http, agent, workflow or chain.
            session_id: None stands for the session of the parent, or for a new session without a known parent.
            parent_id: The ``trace_id`` of the parent.
            metadata: Further values by key; a value without a JSON form is kept as text.

        Returns:
            The ids of the span and of its session.

        Raises:
            Rejected: *type* is not one of these words, or another value is invalid.
        """
        span = costkatana.decode_start(encode(start_body(name, type, session_id, parent_id, metadata)))
        with self._lock:
            (started,) = self._memory.take([span], time.time_ns())
            self._note([started])
        return started

    def end_span(
        self,
        trace_id: str,
        status: Status | None = None,
        *,
        error: Error | None = None,
        model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: float | None = None,
        tool: str | None = None,
        resource_ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """
        End a span. The first end counts; a later one adds its metadata.

        Args:
            trace_id: The ``trace_id`` that ``start_span`` returned.
            status: ok, error or timeout; None = error if there is an *error*, otherwise ok.
            error: A message, an exception, or ``{"message": ..., "stack": ...}``. With it, ok is error.
            model: The model that was called, such as ``gpt-4o``.
            input_tokens: Tokens of the whole input, cached tokens included.
            output_tokens: Tokens of the whole output, reasoning tokens included.
            cost_usd: The cost in US dollars; None = computed with the price list, if that has the model.
            tool: The tool that was called.
            resource_ids: Ids of resources that the call used.
            metadata: Further values by key; a value replaces that of the same key from the start.

        Raises:
            Rejected: The span is unknown (404 as ``status``), or a value is invalid.
        """
        body = end_body(
            status,
            error,
            input_tokens,
            output_tokens,
            model=model,
            costUSD=cost_usd,
            tool=tool,
            resourceIds=resource_ids,
            metadata=metadata,
        )
        end = costkatana.decode_end(encode(body))
        with self._lock:
            self._memory.end(trace_id, end, time.time_ns())
            self._saving.span_changed(trace_id)
            self._write([trace_id])

    def record_message(
        self, session_id: str, trace_id: str, role: Role, content: str, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """
        Record one message of a conversation; secrets in it are removed.

        Args:
            session_id: The session of the conversation.
            trace_id: The ``trace_id`` of the span that the message belongs to.
            role: user, assistant, system or tool.
            content: The text.
            metadata: Further values by key.

        Raises:
            Rejected: The session is unknown (404 as ``status``), or a value is invalid.
        """
        message = costkatana.decode_message(encode(message_body(session_id, trace_id, role, content, metadata)))
        with self._lock:
            self._memory.message(message, time.time_ns())
            self._saving.session_changed(session_id)
            self._saving.span_changed(trace_id)

    def ingest_batch(self, spans: Sequence[Mapping[str, Any]]) -> None:
        """
        Store finished spans; one without an end is started.

        Args:
            spans: Objects with the camelCase keys of ``POST /api/traces/ingest``, such as ``traceId``.

        Raises:
            Rejected: A value is invalid; the text names the index of the span and the field, and nothing is stored.
        """
        inputs = costkatana.decode_ingest(encode({"spans": list(spans)}))
        with self._lock:
            started = self._memory.take(inputs, time.time_ns())
            self._note(started)
            self._write([one.trace_id for one in started])

    def end_session(self, session_id: str, error: Error | None = None) -> None:
        """
        End a session. The first end counts.

        Args:
            session_id: The id of the session.
            error: Why the session failed; None = it is completed, unless one of its spans failed.

        Raises:
            Rejected: The session is unknown; ``status`` is 404.
        """
        with self._lock:
            self._memory.end_session(session_id, error_text(error), time.time_ns())
            self._saving.session_changed(session_id)
            if self._is_file:
                self._saving.save(self._memory, session_id)

    def destroy(self) -> None:
        """Stop saving at intervals, and write what is not in the files yet, in the mode ``file`` or with auto_save."""
        self._stop.set()
        saver, self._saver = self._saver, None
        if saver is not None and saver is not threading.current_thread():
            saver.join(lifecycle.CLOSE_TIMEOUT_S)
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def _note(self, started: Sequence[StartedSpan]) -> None:
        """Take note of new spans; the thread that saves starts with the first ones."""
        for one in started:
            self._saving.span_changed(one.trace_id)
            self._saving.session_changed(one.session_id)
        self._save_at_intervals()

    def _save_at_intervals(self) -> None:
        if self._interval_s and self._saver is None and not self._stop.is_set():
            arguments = (weakref.ref(self), self._stop, self._interval_s)
            self._saver = threading.Thread(
                target=_save_at_intervals, args=arguments, name="tokentrace-save", daemon=True
            )
            self._saver.start()

    def _write(self, span_ids: Sequence[str]) -> None:
        if self._is_file:
            self._saving.write_ended(self._memory, span_ids)

    # -- called by lifecycle

    def begin_close(self, timeout: float) -> None:
        """
        Ask the thread that saves to end.

        Args:
            timeout: Seconds; not used, because this does not wait.
        """
        self._stop.set()

    def finish_close(self) -> None:
        """Write what is not in the files yet, at the end of the program."""
        self.destroy()

    def reset(self) -> None:
        """Begin anew in a forked child: the sessions and the thread are the parent's."""
        self._stop, self._saver = threading.Event(), None
        self._saving.forget()
        super().__init__(self._loaded(self._saving), self._saving, self._is_file)


def _save_at_intervals(service: weakref.ref[LocalTraceService], stop: threading.Event, interval_s: float) -> None:
    while not stop.wait(interval_s):
        alive = service()
        if alive is None:
            return
        alive.close()
        del alive


def _redactor(redact_keys: Collection[str] | None) -> Redactor:
    """Return the redactor for *redact_keys*; None = the usual keys."""
    given = [*(DEFAULT_KEYS if redact_keys is None else redact_keys)]
    given += [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    low = {key.lower() for key in given}
    return Redactor(given, replace_keys=True, addresses="email" in low, phones="phone" in low)

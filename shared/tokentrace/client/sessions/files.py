"""
Sessions in files, in the layout of Cost Katana's ``LocalTraceService``.

``traces/<span id>.json`` has a span with its messages, ``sessions/<session id>.json`` a session without them, and
``messages/<session id>.json`` all messages of a session. Files are written under a temporary name and renamed, so that
a reader finds a whole file. What is not shown to clients, such as the source of a cost, has the key ``kept``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from tokentrace.bad_data import reading
from tokentrace.client.sessions.kept import Entry, Kept
from tokentrace.client.sessions.words import Json
from tokentrace.dialect import costkatana
from tokentrace.dialect.costkatana import Place
from tokentrace.errors import Rejected
from tokentrace.records import ChatMessage, CostSource, SessionEnd
from tokentrace.redact import Redactor
from tokentrace.units import MS, parse_instant, usd_to_nusd

log = logging.getLogger("tokentrace.client")

#: Longer names of files are replaced by a hash.
_MAX_NAME = 150
_PARTS = ("traces", "sessions", "messages")


class Files:
    """
    The files of one directory.

    Args:
        directory: The directory; it is made if it does not exist.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for part in _PARTS:
            (directory / part).mkdir(parents=True, exist_ok=True)

    def write_span(self, kept: Kept, span_id: str) -> None:
        """
        Write a span with its messages.

        Raises:
            OSError: The file cannot be written.
        """
        entry = kept.entries[span_id]
        more: Json = {"traceId": entry.started.trace_id, "userId": entry.started.user_id, "number": entry.number}
        if entry.span is not None:
            more |= {"userId": entry.span.user_id, "costSource": entry.span.cost_source}
        messages = [_message(message) for message in kept.messages_of.get(span_id, ())]
        self._write("traces", span_id, {**kept.node(span_id), "messages": messages, "kept": more})

    def write_session(self, kept: Kept) -> None:
        """
        Write a session and its messages.

        Raises:
            OSError: A file cannot be written.
        """
        more = {"error": kept.end.error if kept.end else ""}
        details = kept.details(messages=False)
        del details["messages"]
        self._write("messages", kept.session_id, [_message(message) for message in kept.messages])
        self._write("sessions", kept.session_id, {**details, "kept": more})

    def _write(self, part: str, id: str, value: object) -> None:
        path = self._directory / part / file_name(id)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2))
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def load(self, redactor: Redactor, limit: int) -> list[Kept]:
        """
        Return the *limit* sessions that started last, oldest first. What cannot be read is logged and left out.

        Args:
            redactor: Removes secrets, because another program may have written the files.
        """
        sessions: dict[str, Kept] = {}
        for path, node in self._read("traces"):
            with _skipping(path), reading(path.name):
                entry = _entry(node, redactor)
                kept = sessions.setdefault(entry.started.session_id or "", Kept(entry.started.session_id or ""))
                kept.entries[entry.started.span_id] = entry
        for path, messages in self._read("messages"):
            with _skipping(path), reading(path.name):
                for message in messages:
                    if message["sessionId"] in sessions:
                        sessions[message["sessionId"]].add_message(_loaded(message, redactor))
        for path, details in self._read("sessions"):
            with _skipping(path), reading(path.name):
                if details.get("endedAt") and details["sessionId"] in sessions:
                    error = details.get("kept", {}).get("error", "")
                    end = SessionEnd(
                        session_id=details["sessionId"], ended_ns=parse_instant(details["endedAt"]), error=error
                    )
                    sessions[end.session_id].end = redactor.session_end(end)
        newest = sorted(sessions.values(), key=lambda kept: kept.started_ns)[-limit:]
        for kept in newest:
            ordered = sorted(kept.entries.items(), key=lambda item: (item[1].started.started_ns, item[1].number))
            kept.entries = dict(ordered)
        return newest

    def _read(self, part: str) -> Iterator[tuple[Path, Any]]:
        for path in sorted((self._directory / part).glob("*.json")):
            with _skipping(path), reading(path.name):
                yield path, msgspec.json.decode(path.read_bytes())


@contextlib.contextmanager
def _skipping(path: Path) -> Iterator[None]:
    """Log an error of the block about *path*, and go on after the block."""
    try:
        yield
    except (Rejected, OSError) as exc:
        log.warning("%s is left out: %s", path.name, exc)


def file_name(id: str) -> str:
    """Return the name of the file for *id*, which is no path and not hidden, whatever *id* contains."""
    name = quote(id, safe="").replace(".", "%2E")
    if len(name) > _MAX_NAME:
        name = f"{name[:60]}-{hashlib.sha256(id.encode()).hexdigest()}"
    return f"{name}.json"


def _message(message: ChatMessage) -> Json:
    return {**costkatana.render_message(message), "kept": {"length": message.length, "traceId": message.trace_id}}


def _loaded(message: Json, redactor: Redactor) -> ChatMessage:
    more = message.get("kept", {})
    given = costkatana.decode_message(msgspec.json.encode(message))
    record = costkatana.message_of(given, "", str(more.get("traceId", "")), 0)
    clean = redactor.message(record)
    redacted = clean.redacted or message.get("isRedacted") is True
    return replace(clean, redacted=redacted, length=int(more.get("length", record.length)))


def _entry(node: Json, redactor: Redactor) -> Entry:
    """Return the span of a file."""
    more = node.get("kept", {})
    given = {key: value for key, value in node.items() if key not in ("messages", "kept", "status")}
    if node.get("status") in ("ok", "error", "timeout"):
        given["status"] = node["status"]
    given |= {"traceId": node["id"], "userId": more.get("userId")}
    (span,) = costkatana.decode_ingest(msgspec.json.encode(given))
    where = Place(str(more.get("traceId") or span.parent_id or node["id"]), span.session_id or "")
    started = costkatana.start_of(span, node["id"], where, 0)
    started = replace(started, started_ns=started.started_ns // MS * MS)
    if not costkatana.has_ended(span):
        return Entry(redactor.started(started), number=int(more.get("number", 0)))
    ended = costkatana.end_of(started, span, 0)
    cost = node.get("costUSD")
    source = more.get("costSource", "" if cost is None else "reported")
    if source not in get_args(CostSource):
        raise Rejected("costSource: is unknown")
    ended = replace(ended, cost_nusd=None if cost is None else usd_to_nusd(cost), cost_source=source)
    return Entry(redactor.started(started), redactor.span(ended), number=int(more.get("number", 0)))

"""The trace and session of Cost Katana's spans, and how spans and messages are shown to its clients."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import STARTED_NS, make_batch, make_span
from kit.costkatana import NOW_NS, SPAN_ID, START, WHERE, encoded, finished, started
from kit.examples import examples
from tokentrace.dialect.costkatana import (
    Place,
    SpanInput,
    decode_ingest,
    decode_message,
    decode_start,
    end_of,
    message_of,
    place,
    render_message,
    render_node,
    render_open,
    start_of,
)
from tokentrace.errors import Rejected
from tokentrace.records import KINDS, Batch, ChatMessage, decode_batches, encode_batches
from tokentrace.units import DAY, MS


def inputs(parents: dict[str, str], sessions: dict[str, str] | None = None) -> list[tuple[str, SpanInput]]:
    return [
        (name, decode_start(encoded(name=name, parentId=parent, sessionId=(sessions or {}).get(name))))
        for name, parent in parents.items()
    ]


class TestPlaces:
    @given(size=st.integers(1, 30), data=st.data())
    def test_children_inherit_trace_and_session_in_any_order(self, size: int, data: st.DataObject) -> None:
        parents = {f"s{n}": f"s{data.draw(st.integers(-1, n - 1))}" if n else "" for n in range(size)}
        parents = {
            name: {"s-1": data.draw(st.sampled_from(["", "known", "lost"]))}.get(p, p) for name, p in parents.items()
        }
        sessions = {name: f"own-{name}" for name in parents if data.draw(st.integers(0, 3)) == 0}
        order = data.draw(st.permutations(sorted(parents)))
        span_inputs = inputs({name: parents[name] for name in order}, sessions)
        places = place(span_inputs, {"known": Place("T", "S")}, lambda index: f"new-{index}")

        def trace(name: str) -> str:
            parent = parents[name]
            return {"": name, "known": "T", "lost": "lost"}[parent] if parent not in parents else trace(parent)

        def session(name: str) -> str:
            if name in sessions:
                return sessions[name]
            parent = parents[name]
            if parent in parents:
                return session(parent)
            return "S" if parent == "known" else f"new-{order.index(name)}"

        assert places == [Place(trace(name), session(name)) for name in order]

    def test_the_session_of_the_request_wins_over_the_parents_session(self) -> None:
        places = place(inputs({"a": "known"}), {"known": Place("T", "S")}, lambda _: "new", "of the request")
        assert places == [Place("T", "of the request")]

    @given(st.integers(2, 12), st.integers(0, 12), st.randoms())
    def test_parents_that_form_a_cycle_are_rejected(self, cycle: int, tail: int, rng: random.Random) -> None:
        parents = {f"r{n}": f"r{(n + 1) % cycle}" for n in range(cycle)}
        parents |= {f"t{n}": f"t{n - 1}" if n else "r0" for n in range(tail)}
        shuffled = rng.sample(sorted(parents), len(parents))
        with pytest.raises(Rejected, match=r"^span \d+: parentId: the parents form a cycle$"):
            place(inputs({name: parents[name] for name in shuffled}), {}, lambda _: "new")

    def test_a_chain_of_five_thousand_parents_is_placed(self) -> None:
        chain = {f"s{n}": f"s{n - 1}" if n else "" for n in reversed(range(5000))}
        assert set(place(inputs(chain), {}, lambda index: f"new-{index}")) == {Place("s0", "new-4999")}


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


instants = st.integers(0, 10**12).map(lambda ms: datetime(2001, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))


class TestNodes:
    @settings(max_examples=examples(200))
    @given(
        name=text.filter(bool),
        kind=st.sampled_from(KINDS),
        status=st.sampled_from(["ok", "error", "timeout"]),
        error=st.none() | st.fixed_dictionaries({"message": text.filter(bool)}, optional={"stack": text.filter(bool)}),
        model=st.none() | text.filter(bool),
        tokens=st.fixed_dictionaries({"input": st.integers(0, 2**40), "output": st.integers(0, 2**40)}),
        cost=st.none() | st.integers(0, 10**15),
        tool=st.none() | text.filter(bool),
        resources=st.none() | st.lists(text, min_size=1, max_size=4),
        metadata=st.dictionaries(
            st.sampled_from(["label", "userId", "n", "x.y"]),
            st.none() | text | st.integers(-(2**63), 2**64 - 1) | st.lists(st.booleans()) | st.just({"k": [{}]}),
        ),
        at=instants,
        length=st.integers(0, 30 * DAY // MS),
        parent=st.none() | st.just("p"),
        depth=st.integers(0, 50),
    )
    def test_a_span_is_shown_as_it_was_sent(
        self, name: str, kind: str, status: str, error: Any, model: Any, tokens: Any, cost: Any, tool: Any,
        resources: Any, metadata: Any, at: datetime, length: int, parent: Any, depth: int,
    ) -> None:  # fmt: skip
        end = at + timedelta(milliseconds=length)
        usd = None if cost is None else float(Decimal(cost) / Decimal(10**9))
        sent = {
            "traceId": SPAN_ID,
            "sessionId": "session-1",
            "parentId": parent,
            "name": name,
            "type": kind,
            "status": status,
            "error": error,
            "model": model,
            "tokens": tokens,
            "costUSD": usd,
            "tool": tool,
            "resourceIds": resources,
            "metadata": metadata,
            "startedAt": at.isoformat(),
            "endedAt": end.isoformat(),
        }
        (read,) = decode_ingest(json.dumps({"spans": [sent]}).encode())
        span = end_of(start_of(read, SPAN_ID, WHERE, NOW_NS), read, NOW_NS)
        (batch,) = decode_batches(encode_batches([make_batch(span)]))
        node = json.loads(json.dumps(render_node(batch.spans[0], depth)))
        expected = {key: value for key, value in sent.items() if value is not None or key == "costUSD"}
        expected["id"] = expected.pop("traceId")
        shown_start, shown_end = (
            moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z" for moment in (at, end)
        )
        expected |= {"startedAt": shown_start, "endedAt": shown_end, "start": shown_start, "end": shown_end}
        expected |= {"duration": length, "depth": depth, "label": name}
        if model:
            expected["aiModel"] = model
        assert node == expected

    def test_a_span_of_another_source_is_shown(self) -> None:
        node = render_node(make_span(attributes={"tool": 7, "resource_ids": "x"}, cost_nusd=None), 0)
        assert node["metadata"] == {"tool": 7, "resource_ids": "x"}
        assert node["costUSD"] is None
        assert node["sessionId"] == ""
        assert not {"tool", "resourceIds", "parentId", "error"} & node.keys()

    @pytest.mark.parametrize("status", ["pending", "abandoned"])
    def test_an_open_span_has_the_shape_of_a_finished_one(self, status: str) -> None:
        start = started(tool="search", resourceIds=["r"])
        shown, end = render_open(start, 3, status), render_node(finished(), 3)
        assert shown.keys() == end.keys() - {"model", "aiModel"}
        assert (shown["status"], shown["depth"], shown["id"]) == (status, 3, SPAN_ID)
        assert [shown[name] for name in ("endedAt", "end", "duration", "costUSD")] == [None] * 4
        assert shown["startedAt"] == shown["start"] == "2026-03-15T14:23:01.441Z"
        assert (shown["tool"], shown["resourceIds"], shown["metadata"]) == ("search", ["r"], START["metadata"])


class TestMessages:
    def test_a_message_becomes_a_record(self) -> None:
        body = encoded(sessionId="s", traceId="t", role="user", content="häi", metadata={"a": 1})
        assert message_of(decode_message(body), "m-1", "root", NOW_NS) == ChatMessage(
            message_id="m-1",
            session_id="s",
            span_id="t",
            trace_id="root",
            role="user",
            content="häi",
            length=3,
            metadata={"a": 1},
            created_ns=NOW_NS,
        )

    def test_the_id_and_the_time_of_a_message_are_kept(self) -> None:
        body = encoded(sessionId="s", role="tool", content="", messageId="mine", createdAt="2026-03-15T14:23:01.441Z")
        message = message_of(decode_message(body), "m-1", "", NOW_NS)
        assert (message.message_id, message.created_ns, message.span_id) == ("mine", STARTED_NS, "")

    def shown(self, **fields: Any) -> dict[str, Any]:
        message = ChatMessage(message_id="m", session_id="s", span_id="t", created_ns=STARTED_NS, **fields)
        (batch,) = decode_batches(encode_batches([Batch(id="b", messages=[message])]))
        return render_message(batch.messages[0])

    def test_a_message_is_shown_with_the_fields_of_the_sdk_and_of_the_backend(self) -> None:
        assert self.shown(content="hi", length=2, role="assistant", metadata={"a": 1}) == {
            "messageId": "m",
            "sessionId": "s",
            "traceId": "t",
            "role": "assistant",
            "content": "hi",
            "isRedacted": False,
            "metadata": {"a": 1},
            "createdAt": "2026-03-15T14:23:01.441Z",
            "timestamp": "2026-03-15T14:23:01.441Z",
            "contentPreview": "hi",
            "fullContentStored": True,
        }

    def test_a_redacted_message_says_so(self) -> None:
        shown = self.shown(content="mail [EMAIL_REDACTED]", redacted=True, length=13)
        assert (shown["content"], shown["redactedContent"]) == ("mail [EMAIL_REDACTED]",) * 2
        assert shown["isRedacted"] is True

    def test_the_original_is_shown_if_it_is_kept_but_never_in_the_preview(self) -> None:
        shown = self.shown(content="mail [EMAIL_REDACTED]", raw="mail a@b.io", redacted=True, length=11)
        assert (shown["content"], shown["redactedContent"]) == ("mail a@b.io", "mail [EMAIL_REDACTED]")
        assert shown["contentPreview"] == "mail [EMAIL_REDACTED]"

    @pytest.mark.parametrize(
        ("content", "length", "full"), [("", 0, True), ("x" * 500, 500, True), ("x" * 501, 501, False), ("", 9, False)]
    )
    def test_the_preview_has_at_most_500_characters_and_says_whether_it_is_complete(
        self, content: str, length: int, full: bool
    ) -> None:
        shown = self.shown(content=content, length=length)
        assert (shown["contentPreview"], shown["fullContentStored"]) == (content[:500], full)

"""The spans, sessions and messages of Cost Katana (SPEC A.4-A.8): what its clients send, and what they are shown."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import ENDED_NS, STARTED_NS, make_batch, make_span
from tokentrace.dialect.costkatana import (
    Place,
    SpanInput,
    decode_end,
    decode_ingest,
    decode_message,
    decode_start,
    end_of,
    has_ended,
    message_of,
    place,
    render_message,
    render_node,
    render_open,
    start_of,
)
from tokentrace.errors import Rejected
from tokentrace.records import KINDS, Batch, ChatMessage, Span, Started, decode_batches, encode_batches
from tokentrace.units import DAY, MS

NOW_NS = ENDED_NS + 7 * MS
SPAN_ID = "5f0c7d1e-6f0f-4a57-9a0e-3f0a6a1c2b3d"
WHERE = Place("root-of-all", "session-1")

#: Every field of StartSpanInput and of EndSpanInput.
START: dict[str, Any] = {
    "sessionId": "session-1",
    "parentId": "parent-1",
    "name": "answer",
    "type": "llm",
    "metadata": {"userId": "u-1", "label": "support", "provider": "openai", "step": 1, "deep": {"a": [1, "b"]}},
    "startedAt": "2026-03-15T14:23:01.441Z",
}
END: dict[str, Any] = {
    "status": "ok",
    "model": "gpt-4o",
    "tokens": {"input": 512, "output": 128},
    "costUSD": 0.00448,
    "tool": "search",
    "resourceIds": ["doc-1", "doc-2"],
    "metadata": {"step": 2, "ttft_ms": 320.5, "eval.score": 0.875},
    "endedAt": "2026-03-15T15:23:02.681+01:00",
}


def encoded(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def started(caller: str = "", **overrides: Any) -> Started:
    return start_of(decode_start(encoded(**{**START, **overrides})), SPAN_ID, WHERE, NOW_NS, caller)


def finished(end: dict[str, Any] | None = None, *, caller: str = "", **overrides: Any) -> Span:
    """The span of START with *overrides*, ended with *end*."""
    return end_of(started(caller, **overrides), decode_end(encoded(**(END if end is None else end))), NOW_NS)


def refusal(decode: Any, body: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        decode(body)
    assert caught.value.status == 400
    return str(caught.value)


def status_of(decode: Any, body: bytes) -> int | None:
    """What a body is refused with; None when it is taken. Anything else that is raised fails the test."""
    try:
        decode(body)
    except Rejected as exc:
        return exc.status
    return None


class TestMapping:
    def test_every_field_arrives_where_the_mapping_table_says(self) -> None:
        assert finished(caller="web") == Span(
            trace_id="root-of-all",
            span_id=SPAN_ID,
            parent_span_id="parent-1",
            session_id="session-1",
            user_id="u-1",
            name="answer",
            kind="llm",
            caller="web",
            model="gpt-4o",
            provider="openai",
            status="ok",
            started_ns=STARTED_NS,
            ended_ns=ENDED_NS,
            latency_ns=1240 * MS,
            ttft_ns=320_500_000,
            prompt_tokens=512,
            completion_tokens=128,
            total_tokens=640,
            cost_nusd=4_480_000,
            score=875_000_000,
            source="costkatana",
            attributes={
                "userId": "u-1",
                "label": "support",
                "provider": "openai",
                "step": 2,
                "deep": {"a": [1, "b"]},
                "ttft_ms": 320.5,
                "eval.score": 0.875,
                "tool": "search",
                "resource_ids": ["doc-1", "doc-2"],
            },
        )

    def test_the_least_there_can_be_is_a_custom_span_of_no_length_that_went_well(self) -> None:
        start = start_of(decode_start(b'{"name":"x"}'), SPAN_ID, Place(SPAN_ID, "s"), NOW_NS)
        span = end_of(start, decode_end(b""), NOW_NS)
        assert span == Span(
            trace_id=SPAN_ID,
            span_id=SPAN_ID,
            session_id="s",
            name="x",
            kind="custom",
            started_ns=NOW_NS,
            ended_ns=NOW_NS,
            source="costkatana",
        )

    def test_nulls_are_as_good_as_nothing_and_unknown_keys_are_passed_over(self) -> None:
        nulls = dict.fromkeys(["sessionId", "parentId", "metadata", "startedAt", "traceId", "userId", "type"])
        assert decode_start(encoded(name="x", **nulls, sdkVersion="9")) == decode_start(b'{"name":"x"}')
        ends = dict.fromkeys(["error", "model", "aiModel", "tokens", "costUSD", "tool", "resourceIds", "metadata"])
        assert decode_end(encoded(status="ok", **ends, extra={})) == decode_end(b'{"status":"ok"}')

    def test_an_llm_call_whose_tokens_nobody_told_is_taken(self) -> None:
        assert finished({"status": "ok"}).total_tokens == 0

    def test_the_backends_name_of_the_model_does_too(self) -> None:
        assert finished({"aiModel": "claude-opus-4"}).model == "claude-opus-4"

    @pytest.mark.parametrize(
        ("error", "status", "expected"),
        [
            ({"message": "boom", "stack": "at x"}, None, ("error", "boom", "at x")),
            ({"message": "boom", "stack": None}, "error", ("error", "boom", "")),
            ("boom", None, ("error", "boom", "")),
            ("slow", "timeout", ("timeout", "slow", "")),
            (None, "error", ("error", "", "")),
            (None, None, ("ok", "", "")),
        ],
    )
    def test_errors_come_as_object_or_text(self, error: Any, status: Any, expected: Any) -> None:
        span = finished({"status": status, "error": error})
        assert (span.status, span.error, span.error_stack) == expected

    def test_the_metadatas_caller_wins_over_the_requests(self) -> None:
        assert finished(caller="header").caller == "header"
        assert finished(caller="header", metadata={"caller": "mine"}).caller == "mine"
        assert started("header", metadata={"caller": "mine"}).caller == "mine"

    def test_a_user_is_given_or_in_the_metadata(self) -> None:
        assert started(userId="given").user_id == "given"
        assert started().user_id == "u-1"
        assert started(metadata={}).user_id is None
        assert started(metadata={"userId": 7}).user_id is None
        assert finished({"metadata": {"userId": "late"}}, metadata={}).user_id == "late"

    def test_a_clock_that_runs_behind_makes_no_negative_duration(self) -> None:
        span = finished({"endedAt": "2026-03-15T14:23:00Z"})
        assert (span.ended_ns, span.latency_ns) == (STARTED_NS, 0)

    def test_what_was_said_early_holds_until_the_end_says_otherwise(self) -> None:
        early = Span(model="gpt-4o", prompt_tokens=5, completion_tokens=3, cost_nusd=9, error="early", error_stack="s")
        kept = end_of(started(), decode_end(b"{}"), NOW_NS, early)
        assert (kept.model, kept.prompt_tokens, kept.completion_tokens, kept.cost_nusd) == ("gpt-4o", 5, 3, 9)
        assert (kept.status, kept.error, kept.error_stack) == ("error", "early", "s")
        changed = end_of(started(), decode_end(encoded(**END)), NOW_NS, early)
        assert (changed.prompt_tokens, changed.completion_tokens, changed.cost_nusd) == (512, 128, 4_480_000)

    @given(
        start=st.dictionaries(st.sampled_from("abcdef"), st.integers(-9, 9) | st.text(max_size=5)),
        end=st.dictionaries(st.sampled_from("abcdef"), st.booleans() | st.lists(st.integers(0, 3), max_size=3)),
    )
    def test_the_ends_metadata_is_merged_over_the_starts_key_by_key(
        self, start: dict[str, Any], end: dict[str, Any]
    ) -> None:
        expected = [(key, end[key] if key in end else start[key]) for key in sorted({*start, *end})]
        span = finished({"metadata": end}, metadata=start)
        assert sorted(span.attributes.items()) == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"name": ""}, "name: "),
            ({"name": 7}, "name: "),
            ({"name": "x" * 257}, "name: "),
            ({"type": "oracle"}, "type: "),
            ({"type": "LLM"}, "type: "),
            ({"traceId": 7}, "traceId: "),
            ({"traceId": "a\nb"}, "traceId: "),
            ({"sessionId": "ü"}, "sessionId: "),
            ({"parentId": "x" * 257}, "parentId: "),
            ({"parentId": "me", "traceId": "me"}, "parentId: a span is not its own parent"),
            ({"userId": "a\x00"}, "userId: "),
            ({"metadata": []}, "metadata: "),
            ({"metadata": {"tt.x": 1}}, "metadata: 'tt.x'"),
            ({"metadata": {"": 1}}, "metadata: a key is empty"),
            ({"metadata": {"eval.score": 1.5}}, "metadata: 'eval.score'"),
            ({"metadata": {str(n): n for n in range(129)}}, "metadata: 129 keys"),
            ({"startedAt": "yesterday"}, "startedAt: 'yesterday' is not RFC 3339"),
            ({"startedAt": "2026-03-15T14:23:01"}, "startedAt: "),
            ({"startedAt": "1999-12-31T23:59:59Z"}, "startedAt: not between"),
            ({"startedAt": 1773584581441}, "startedAt: "),
        ],
    )
    def test_a_bad_field_of_a_start_is_named(self, fields: dict[str, Any], named: str) -> None:
        assert refusal(decode_start, encoded(**{"name": "x", **fields})).startswith(named)

    def test_a_start_without_a_name_is_refused(self) -> None:
        assert "name" in refusal(decode_start, b"{}")

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"status": "done"}, "status: "),
            ({"status": "pending"}, "status: "),
            ({"tokens": 5}, "tokens: "),
            ({"tokens": {"input": -1}}, "tokens.input: "),
            ({"tokens": {"output": 1.5}}, "tokens.output: "),
            ({"costUSD": -0.1}, "costUSD: "),
            ({"costUSD": "1"}, "costUSD: "),
            ({"model": 4}, "model: "),
            ({"tool": {}}, "tool: "),
            ({"resourceIds": "a"}, "resourceIds: "),
            ({"resourceIds": [1]}, "resourceIds[0]: "),
            ({"error": 5}, "error: "),
            ({"error": {"message": 5}}, "error.message: "),
            ({"metadata": {"tt.a": 1}}, "metadata: "),
            ({"endedAt": "soon"}, "endedAt: 'soon'"),
        ],
    )
    def test_a_bad_field_of_an_end_is_named(self, fields: dict[str, Any], named: str) -> None:
        assert refusal(decode_end, encoded(**fields)).startswith(named)

    def test_a_duration_over_thirty_days_is_refused(self) -> None:
        late = datetime.fromtimestamp(STARTED_NS / 1e9, UTC) + timedelta(days=30, seconds=1)
        with pytest.raises(Rejected, match="endedAt: over 30 days"):
            finished({"endedAt": late.isoformat()})

    def test_merged_metadata_that_is_too_much_is_refused(self) -> None:
        half = {f"a{n}": n for n in range(70)}
        with pytest.raises(Rejected, match="metadata: 140 keys"):
            finished({"metadata": {f"b{n}": n for n in range(70)}}, metadata=half)

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"role": "boss"}, "role: "),
            ({"role": None}, "role: "),
            ({"content": ["a"]}, "content: "),
            ({"sessionId": ""}, "sessionId: "),
            ({"sessionId": "ü"}, "sessionId: "),
            ({"traceId": "ü"}, "traceId: "),
            ({"messageId": "\n"}, "messageId: "),
            ({"metadata": {"tt.a": 1}}, "metadata: "),
            ({"createdAt": "now"}, "createdAt: "),
        ],
    )
    def test_a_bad_field_of_a_message_is_named(self, fields: dict[str, Any], named: str) -> None:
        good = {"sessionId": "s", "traceId": "t", "role": "user", "content": "hi"}
        assert refusal(decode_message, encoded(**{**good, **fields})).startswith(named)

    def test_no_secret_travels_in_an_error(self) -> None:
        secret = "sk-" + "s3cr3t" * 20
        for decode, body in (
            (decode_start, encoded(name="x", type=secret)),
            (decode_start, encoded(name="x", startedAt=secret)),
            (decode_end, encoded(status=secret)),
            (decode_message, encoded(sessionId="s", role=secret, content="")),
        ):
            assert secret[:60] not in refusal(decode, body)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["spans", "name", "type", "metadata", "tokens", "error", "status", "traceId"]),
                    inner,
                    max_size=4,
                )
            ),
        )
    )
    def test_any_json_is_either_taken_or_refused(self, body: Any) -> None:
        for decode in (decode_start, decode_end, decode_ingest, decode_message):
            assert status_of(decode, json.dumps(body).encode()) in (None, 400)

    @given(st.binary(max_size=40))
    def test_any_bytes_are_either_taken_or_refused(self, body: bytes) -> None:
        for decode in (decode_start, decode_end, decode_ingest, decode_message):
            assert status_of(decode, body) in (None, 400)


class TestIngest:
    SPAN = encoded(name="x", status="ok")

    def test_an_object_with_spans_an_array_and_one_span_say_the_same(self) -> None:
        forms = [b'{"spans":[' + self.SPAN + b"]}", b" [" + self.SPAN + b"]", b" " + self.SPAN]
        assert [decode_ingest(form) for form in forms] == [decode_ingest(forms[0])] * 3
        assert len(decode_ingest(forms[0])) == 1

    def test_a_bad_span_is_named_by_its_index_in_every_form(self) -> None:
        bad = b'{"name":"x","costUSD":"1"}'
        assert refusal(decode_ingest, b"[" + self.SPAN + b"," + bad + b"]").startswith("span 1: costUSD: ")
        assert refusal(decode_ingest, b'{"spans":[' + self.SPAN + b"," + bad + b"]}").startswith("span 1: costUSD: ")
        late = encoded(name="x", startedAt="2026-03-15T14:23:01Z", endedAt="2026-03-15T14:23:00Z")
        assert refusal(decode_ingest, b"[" + self.SPAN + b"," + late + b"]") == "span 1: endedAt: before startedAt"

    @pytest.mark.parametrize("spans", [None, {}, "x", 5])
    def test_spans_that_are_no_array_are_refused(self, spans: Any) -> None:
        assert refusal(decode_ingest, encoded(name="x", spans=spans)) == "spans: is not an array"

    def test_one_id_twice_in_a_batch_is_refused(self) -> None:
        twice = json.dumps([{"name": "x", "traceId": "t"}, {"name": "z"}, {"name": "y", "traceId": "t"}]).encode()
        assert refusal(decode_ingest, twice) == "span 2: traceId: 't' is also that of span 0"

    @pytest.mark.parametrize(
        ("fields", "ended"),
        [
            ({}, False),
            ({"status": "pending"}, False),
            ({"status": "ok"}, True),
            ({"status": "timeout"}, True),
            ({"endedAt": "2026-03-15T14:23:01Z"}, True),
        ],
    )
    def test_a_span_has_ended_when_its_status_or_its_end_says_so(self, fields: dict[str, Any], ended: bool) -> None:
        assert has_ended(decode_start(encoded(name="x", **fields))) is ended

    def test_pending_and_ended_at_contradict_each_other(self) -> None:
        body = encoded(name="x", status="pending", endedAt="2026-03-15T14:23:01Z")
        assert refusal(decode_ingest, body).startswith("span 0: status: pending")


def inputs(parents: dict[str, str], sessions: dict[str, str] | None = None) -> list[tuple[str, SpanInput]]:
    return [
        (name, decode_start(encoded(name=name, parentId=parent, sessionId=(sessions or {}).get(name))))
        for name, parent in parents.items()
    ]


class TestPlaces:
    @given(size=st.integers(1, 30), data=st.data())
    def test_trace_and_session_come_down_from_the_root_in_any_order(self, size: int, data: st.DataObject) -> None:
        parents = {f"s{n}": f"s{data.draw(st.integers(-1, n - 1))}" if n else "" for n in range(size)}
        parents = {
            name: {"s-1": data.draw(st.sampled_from(["", "known", "lost"]))}.get(p, p) for name, p in parents.items()
        }
        sessions = {name: f"own-{name}" for name in parents if data.draw(st.integers(0, 3)) == 0}
        order = data.draw(st.permutations(sorted(parents)))
        given_ = inputs({name: parents[name] for name in order}, sessions)
        found = place(given_, {"known": Place("T", "S")}, lambda index: f"new-{index}")

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

        assert found == [Place(trace(name), session(name)) for name in order]

    def test_a_session_of_the_request_comes_before_the_parents(self) -> None:
        found = place(inputs({"a": "known"}), {"known": Place("T", "S")}, lambda _: "new", "of the request")
        assert found == [Place("T", "of the request")]

    @given(st.integers(2, 12), st.integers(0, 12), st.randoms())
    def test_parents_that_go_round_in_a_ring_are_refused(self, ring: int, tail: int, rng: random.Random) -> None:
        parents = {f"r{n}": f"r{(n + 1) % ring}" for n in range(ring)}
        parents |= {f"t{n}": f"t{n - 1}" if n else "r0" for n in range(tail)}
        shuffled = rng.sample(sorted(parents), len(parents))
        with pytest.raises(Rejected, match=r"^span \d+: parentId: the parents form a cycle$"):
            place(inputs({name: parents[name] for name in shuffled}), {}, lambda _: "new")

    def test_a_chain_of_five_thousand_is_no_recursion(self) -> None:
        chain = {f"s{n}": f"s{n - 1}" if n else "" for n in reversed(range(5000))}
        assert set(place(inputs(chain), {}, lambda index: f"new-{index}")) == {Place("s0", "new-4999")}


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
instants = st.integers(0, 10**12).map(lambda ms: datetime(2001, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))


class TestNodes:
    @settings(max_examples=200)
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
    def test_what_was_sent_is_shown_again_after_its_way_through_the_pipeline(
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

    def test_a_span_of_another_way_in_is_shown_too(self) -> None:
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

    def test_ids_and_instants_of_its_own_are_kept(self) -> None:
        body = encoded(sessionId="s", role="tool", content="", messageId="mine", createdAt="2026-03-15T14:23:01.441Z")
        message = message_of(decode_message(body), "m-1", "", NOW_NS)
        assert (message.message_id, message.created_ns, message.span_id) == ("mine", STARTED_NS, "")

    def shown(self, **fields: Any) -> dict[str, Any]:
        message = ChatMessage(message_id="m", session_id="s", span_id="t", created_ns=STARTED_NS, **fields)
        (batch,) = decode_batches(encode_batches([Batch(id="b", messages=[message])]))
        return render_message(batch.messages[0])

    def test_a_message_without_secrets_is_shown_in_both_forms(self) -> None:
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

    def test_what_was_taken_out_is_told(self) -> None:
        shown = self.shown(content="mail [EMAIL_REDACTED]", redacted=True, length=13)
        assert (shown["content"], shown["redactedContent"]) == ("mail [EMAIL_REDACTED]",) * 2
        assert shown["isRedacted"] is True

    def test_raw_content_is_shown_where_it_is_kept_but_never_in_the_preview(self) -> None:
        shown = self.shown(content="mail [EMAIL_REDACTED]", raw="mail a@b.io", redacted=True, length=11)
        assert (shown["content"], shown["redactedContent"]) == ("mail a@b.io", "mail [EMAIL_REDACTED]")
        assert shown["contentPreview"] == "mail [EMAIL_REDACTED]"

    @pytest.mark.parametrize(
        ("content", "length", "full"), [("", 0, True), ("x" * 500, 500, True), ("x" * 501, 501, False), ("", 9, False)]
    )
    def test_the_preview_is_500_characters_and_says_whether_it_is_all(
        self, content: str, length: int, full: bool
    ) -> None:
        shown = self.shown(content=content, length=length)
        assert (shown["contentPreview"], shown["fullContentStored"]) == (content[:500], full)

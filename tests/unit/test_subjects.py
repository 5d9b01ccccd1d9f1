"""Escaping of names in subjects, and the streams that store the subjects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokentrace.bus import subjects
from tokentrace.bus.memory import matches
from tokentrace.bus.subjects import escape, parse_project, parse_shard, shard_of_spans, unescape
from tokentrace.errors import Rejected

#: Text that UTF-8 can encode: without lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
BUILDERS: list[Callable[[str], str]] = [
    lambda project: subjects.raw(project, 0),
    lambda project: subjects.spans(project, 3),
    lambda project: subjects.rejected(project),
    lambda project: subjects.alerts(project, "rule"),
]


@given(TEXT)
@example("")
@example("=")
@example("=41")
@example("a.b")
@example("*")
@example(">")
@example(" \t\r\n\0")
@example("日本語")
@example("\N{NO-BREAK SPACE}é²٣")
def test_unescape_undoes_escape(text: str) -> None:
    assert unescape(escape(text)) == text


@given(TEXT)
@example("a.b c*>\r\n\0")
@example("²٣é")
def test_an_escaped_name_is_one_token_of_plain_ascii(text: str) -> None:
    token = escape(text)
    assert token
    assert token.isascii()
    assert all(char.isalnum() or char in "_-=" for char in token)


@given(TEXT, TEXT)
@example("", "=")
@example("a", "=61")
@example("é", "e\u0301")
def test_different_names_are_different_tokens(first: str, second: str) -> None:
    assert (escape(first) == escape(second)) == (first == second)


@pytest.mark.parametrize("plain", ["default", "A-Z_09", "-", "_", "0"])
def test_a_plain_name_stays_readable(plain: str) -> None:
    assert escape(plain) == plain


@pytest.mark.parametrize(
    ("text", "token"),
    [("", "="), (".", "=2E"), ("a b", "a=20b"), ("=", "=3D"), ("é", "=C3=A9"), (">", "=3E"), ("*", "=2A")],
)
def test_escape_writes_other_characters_as_hex_digits_of_their_bytes(text: str, token: str) -> None:
    assert escape(text) == token


@pytest.mark.parametrize("token", ["=FF", "=4", "==", "=zz", "a=C3", "=ff"])
def test_unescape_accepts_tokens_that_escape_does_not_write(token: str) -> None:
    assert isinstance(unescape(token), str)


@given(TEXT, st.integers(0, 255))
def test_project_and_shard_are_read_back_from_a_subject(project: str, shard: int) -> None:
    for subject in (subjects.raw(project, shard), subjects.spans(project, shard)):
        assert parse_project(subject) == project
        assert parse_shard(subject) == shard
        assert len(subject.split(".")) == 4


@given(TEXT, TEXT)
def test_project_is_read_back_from_rejected_and_alerts(project: str, rule: str) -> None:
    assert parse_project(subjects.rejected(project)) == project
    alert = subjects.alerts(project, rule)
    assert parse_project(alert) == project
    assert unescape(alert.split(".")[3]) == rule


@pytest.mark.parametrize("wrong", ["", "tokentrace", "tokentrace.raw", "other.raw.default.0", "$KV.tt_meta.shards"])
def test_a_foreign_subject_has_no_project(wrong: str) -> None:
    with pytest.raises(Rejected):
        parse_project(wrong)


@pytest.mark.parametrize(
    "wrong", ["", "tokentrace.rejected.default", "tokentrace.raw.default.", "tokentrace.raw.default.-1", "a.1x", "a.²"]
)
def test_a_subject_that_ends_without_a_number_has_no_shard(wrong: str) -> None:
    with pytest.raises(Rejected):
        parse_shard(wrong)


def test_the_error_for_a_subject_shows_it_shortened() -> None:
    for parse in (parse_project, parse_shard):
        with pytest.raises(Rejected) as refused:
            parse("x" * 10_000)
        assert len(str(refused.value)) < 200


# -- streams


@given(TEXT)
@example("")
@example(">")
@example("a.b")
def test_the_subjects_of_each_stream_of_messages_are_stored_by_that_stream_alone(project: str) -> None:
    names = [subjects.RAW, subjects.SPANS, subjects.REJECTED, subjects.ALERTS]
    for build, name in zip(BUILDERS, names, strict=True):
        storing = [
            stream.name
            for stream in subjects.streams()
            if any(matches(pattern, build(project)) for pattern in stream.subjects)
        ]
        assert storing == [name]


def test_no_stream_captures_all_of_tokentrace() -> None:
    for stream in subjects.streams():
        for pattern in stream.subjects:
            assert pattern not in ("tokentrace.>", ">", "*.>", "tokentrace.*", "tokentrace.*.>")
            assert not matches(pattern, subjects.QUERY_METRICS)
            assert not matches(pattern, subjects.QUERY_ALERTS)
            assert not matches(pattern, "tokentrace.anything")


def test_no_two_streams_overlap() -> None:
    literal = [
        (stream.name, pattern.replace("*", "x").replace(">", "x.y"))
        for stream in subjects.streams()
        for pattern in stream.subjects
    ]
    for name, subject in literal:
        for other in subjects.streams():
            assert (other.name == name) == any(matches(pattern, subject) for pattern in other.subjects)


@given(TEXT, st.integers(0, 255), st.integers(0, 255))
def test_a_reader_of_one_shard_sees_that_shard_of_every_project(project: str, shard: int, other: int) -> None:
    assert matches(subjects.shard_spans(shard), subjects.spans(project, shard))
    assert matches(subjects.shard_spans(shard), subjects.spans(project, other)) == (shard == other)
    assert not matches(subjects.shard_spans(shard), subjects.raw(project, shard))


def test_the_streams_have_the_documented_limits() -> None:
    by_name = {stream.name: stream for stream in subjects.streams()}
    gib, day = 1024**3, 86_400 * 10**9
    assert by_name["TT_RAW"].work_queue
    assert by_name["TT_RAW"].max_bytes == gib
    assert (by_name["TT_SPANS"].max_bytes, by_name["TT_SPANS"].max_age_ns) == (8 * gib, 7 * day)
    assert (by_name["TT_REJECTED"].max_bytes, by_name["TT_REJECTED"].max_age_ns) == (gib // 4, 7 * day)
    assert by_name["TT_ALERTS"].max_age_ns == 30 * day
    assert by_name["KV_tt_open_spans"].max_age_ns == day
    assert {stream.duplicate_window_ns for stream in by_name.values()} == {120 * 10**9}
    assert {name for name in by_name if name.startswith("KV_")} >= {"KV_tt_meta", "KV_tt_rules", "KV_tt_open_spans"}
    assert by_name["OBJ_tt_snapshots"].kind == "objects"


def test_limits_come_from_the_arguments() -> None:
    by_name = {
        stream.name: stream
        for stream in subjects.streams(raw_bytes=1, spans_bytes=2, spans_age_ns=3, duplicate_window_ns=4)
    }
    assert by_name["TT_RAW"].max_bytes == 1
    assert (by_name["TT_SPANS"].max_bytes, by_name["TT_SPANS"].max_age_ns) == (2, 3)
    assert by_name["TT_SPANS"].duplicate_window_ns == by_name["TT_RAW"].duplicate_window_ns == 4


@given(TEXT, st.integers(0, 1023))
@example("deleted", 5)
def test_the_shard_of_a_subject_of_the_log_is_its_last_part_and_that_of_deletions_is_none(
    project: str, shard: int
) -> None:
    assert shard_of_spans(subjects.spans(project, shard)) == shard
    assert shard_of_spans(subjects.tombstones(project)) is None

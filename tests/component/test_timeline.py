"""A timeline in columns or rows, its levels and what is below a span, against the tree computed from parents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.store_log import NOW_NS, Log, open_store, stored_span, untimed
from tokentrace.records import Span, Started
from tokentrace_api.reads import SpanCursor, parse_span_cursor, trace_outline
from tokentrace_api.routes.shown_timeline import Shown
from tokentrace_api.routes.traces_operations import TimelineRow

IDS = [f"{number}" for number in range(14)]
#: Parents with smaller or larger numbers, missing ones ("x") and circles.
parents = st.one_of(st.none(), st.sampled_from([*IDS, *IDS, "x"]))
ended = st.builds(
    stored_span,
    st.just("t"),
    st.integers(0, 13),
    parent_span_id=parents,
    started_ns=st.sampled_from([NOW_NS - 9_000_000, NOW_NS - 5_000_000, NOW_NS - 1_500_000]),
    ended_ns=st.sampled_from([NOW_NS, NOW_NS - 4_000_000]),
    kind=st.sampled_from(["tool", "agent"]),
    cost_nusd=st.none() | st.integers(0, 99),
    total_tokens=st.integers(0, 9),
    ttft_ns=st.sampled_from([0, 2_500_000]),
    score=st.none() | st.sampled_from([0, 250_000_000]),
    caller=st.sampled_from(["", "checkout"]),
    user_id=st.sampled_from([None, "u1", "u2"]),
    status=st.sampled_from(["ok", "error", "timeout"]),
)
begun = st.builds(Started, trace_id=st.just("t"), span_id=st.sampled_from(["20", "21"]), parent_span_id=parents)


def ancestors(parent_of: dict[str, str | None], span_id: str) -> list[str]:
    """Return the ancestors that are present, nearest first; in a circle, each once."""
    found: list[str] = []
    at = parent_of[span_id]
    while at in parent_of and at not in found:
        found.append(at)
        at = parent_of[at]
    return found


@untimed(60)
@given(
    sent=st.lists(ended, min_size=1, max_size=14, unique_by=lambda span: span.span_id),
    opened=st.lists(begun, max_size=2, unique_by=lambda started: started.span_id),
    most=st.integers(1, 16),
    limit=st.integers(1, 5),
)
def test_levels_and_what_is_below_a_span_are_those_of_the_tree(
    directories: Iterator[Path], sent: list[Span], opened: list[Started], most: int, limit: int
) -> None:
    store, log = open_store(next(directories), shards=1), Log()
    store.append([log.add(log.batch(spans=sent, started=opened))])
    outline = trace_outline(store, "t", "start", NOW_NS)
    store.close()
    parent_of = {row.span_id: row.parent_span_id for row in outline.rows}
    whole = Shown("t", outline, None, NOW_NS).as_rows(100, None)
    assert sorted(row.span_id for row in whole.rows) == sorted(parent_of)
    assert whole.row_count == len(sent) + len(opened)
    assert whole.error_count == sum(span.status != "ok" for span in sent)
    summed = [row for row in whole.rows if row.counted]
    assert [row.span_id for row in summed] == [
        row.span_id for row in whole.rows if row.span_id in {span.span_id for span in sent if span.kind == "tool"}
    ]
    assert whole.total_tokens == sum(row.total_tokens or 0 for row in summed)
    known = [round(row.cost_usd * 10**9) for row in summed if row.cost_usd is not None]
    assert whole.total_cost_usd == (sum(known) / 10**9 if known or not summed else None)
    owners = [row for row in outline.rows if row.user_id]
    roots = [row for row in owners if row.parent_span_id is None]
    assert whole.user_id == ((roots or owners)[0].user_id if owners else None)

    in_columns = Shown("t", outline, None, NOW_NS).as_columns(100, 100, None)
    columns = msgspec.structs.asdict(in_columns.columns)
    del columns["hidden"]
    assert list(columns) == list(TimelineRow.__struct_fields__)
    assert [
        TimelineRow(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
    ] == (whole.rows)

    depth = {row.span_id: row.depth for row in whole.rows}
    top = Shown("t", outline, None, NOW_NS).as_columns(100, most, None).columns
    deepest = max(top.depth)
    assert top.span_id == [row.span_id for row in whole.rows if row.depth <= deepest]
    assert isinstance(top.hidden, list) == (deepest < max(depth.values()))
    if isinstance(top.hidden, list):
        following = [row for row in whole.rows if row.depth <= deepest + 1]
        assert len(top.span_id) <= most or deepest == 0
        assert len(following) > most
        assert sum(top.hidden) == len(whole.rows) - len(top.span_id)
    in_circle = {span_id for span_id in parent_of if span_id in ancestors(parent_of, span_id)}
    for span_id in parent_of:
        inside = {row.span_id for row in Shown("t", outline, span_id, NOW_NS).as_rows(100, None).rows}
        if not in_circle & {span_id, *ancestors(parent_of, span_id)}:
            assert inside == {other for other in parent_of if span_id in ancestors(parent_of, other)}
        assert all(depth[other] > depth[span_id] for other in inside)
        if span_id in top.span_id and isinstance(top.hidden, list) and depth[span_id] == deepest:
            assert top.hidden[top.span_id.index(span_id)] == len(inside)
    paged: list[TimelineRow] = []
    cursor = None
    while True:
        page = Shown("t", outline, None, NOW_NS).as_rows(limit, cursor)
        paged += page.rows
        if isinstance(page.next_cursor, msgspec.UnsetType):
            break
        cursor = parse(page.next_cursor)
    assert paged == whole.rows


def parse(text: str) -> SpanCursor:
    return parse_span_cursor(text, "start")


@pytest.mark.long
def test_a_chain_of_30_000_spans_shows_its_top_levels_and_then_the_rest(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    store.append(
        [
            log.spans(
                *(
                    stored_span("t", n, kind="tool", parent_span_id=f"{n - 1}" if n else None)
                    for n in range(start, start + 5000)
                )
            )
            for start in range(0, 30_000, 5000)
        ]
    )
    outline = trace_outline(store, "t", "start", NOW_NS)
    store.close()
    top = Shown("t", outline, None, NOW_NS).as_columns(20_000, 20_000, None)
    assert sorted(top.columns.depth) == list(range(20_000))
    assert isinstance(top.columns.hidden, list)
    assert [count for count in top.columns.hidden if count] == [10_000]
    rest = Shown("t", outline, "19999", NOW_NS).as_columns(20_000, 20_000, None)
    assert sorted(rest.columns.depth) == list(range(20_000, 30_000))
    assert (rest.row_count, rest.span_count) == (10_000, 30_000)


def test_a_span_that_the_trace_lacks_has_nothing_below(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    store.append([log.spans(stored_span("t"))])
    with pytest.raises(KeyError):
        Shown("t", trace_outline(store, "t", "start", NOW_NS), "absent", NOW_NS)
    store.close()

"""Spans of Cost Katana's clients that are sent in any order and in separate requests form one trace."""

from __future__ import annotations

import pytest

from kit.json_spans import fresh
from kit.replicas import Replicas

PARENTS: dict[str, str | None] = {"kid": "dad", "twin": "dad", "dad": "grandpa", "grandpa": None}


@pytest.mark.parametrize(
    "order",
    [
        ("kid", "dad", "grandpa", "twin"),
        ("grandpa", "dad", "kid", "twin"),
        ("kid", "twin", "dad", "grandpa"),
        ("dad", "grandpa", "kid", "twin"),
        ("dad", "kid", "grandpa", "twin"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("ended", [True, False])
def test_children_sent_before_their_parents_stay_in_one_trace(
    replicas: Replicas, order: tuple[str, ...], ended: bool
) -> None:
    ids = {name: fresh(name) for name in PARENTS}
    for number, name in enumerate(order):
        parent = PARENTS[name]
        span = {"name": name, "traceId": ids[name], **({"parentId": ids[parent]} if parent else {})}
        if ended:
            span |= {"startedAt": "2026-03-15T14:23:01Z", "endedAt": "2026-03-15T14:23:02Z", "status": "ok"}
            assert replicas.post("/api/traces/ingest", {"spans": [span]}, number % 2).status == 200
        else:
            assert replicas.post("/api/traces/start", span, number % 2).status == 200
    log = replicas.read()
    placed = [log.span(ids[name]) if ended else log.start(ids[name]) for name in PARENTS]
    assert len({span.trace_id for span in placed}) == 1

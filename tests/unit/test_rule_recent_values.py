"""The last values of a rule, as ``GET /alerts`` shows them, recounted from the latencies of each second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.alert_story import SETTLED, Story, make_rule, slow

#: In each second the latencies of users, milliseconds; a window is a second.
SECONDS = st.lists(st.dictionaries(st.sampled_from(["ann", "bob"]), st.integers(1, 900), max_size=2), max_size=40)


@given(SECONDS, st.sampled_from(["gt", "lt"]), st.booleans())
def test_the_last_thirty_values_are_those_furthest_on_the_side_of_the_threshold(
    seconds: list[dict[str, int]], op: str, grouped: bool
) -> None:
    rule = make_rule(op=op, group_by="user" if grouped else "")
    # A rule that fires on low values is evaluated five seconds later.
    lag = 5 if op == "lt" else 0
    story = Story(rule)
    for number, found in enumerate([*seconds, *({} for _ in range(lag))]):
        if found:
            now = number + 0.5
            story.send(now, *(slow(now, ms, attributes={"user": user}) for user, ms in found.items()))
        story.tick(number + 1 + SETTLED)
    expected: list[float | None] = []
    for found in seconds:
        latencies = list(found.values())
        if not grouped:
            expected.append(sum(latencies) / len(latencies) if latencies else None)
        else:
            expected.append((max if op == "gt" else min)(latencies, default=None))
    for _ in range(2):
        shown = story.shown(len(seconds) + lag + SETTLED)["recent_values"]
        assert shown == [None if value is None else pytest.approx(value) for value in expected[-30:]]
        story.restart(story.snapshot())

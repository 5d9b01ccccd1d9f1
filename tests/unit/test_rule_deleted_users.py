"""A rule that is grouped by user forgets a deleted user."""

from __future__ import annotations

import pytest

from kit.alert_story import CREATED, SETTLED, Story, at, call, make_rule, ns
from tokentrace.bus import Message, subjects
from tokentrace.records import Batch, Tombstone, encode_batches


def delete_user(story: Story, user: str, second: float) -> None:
    """Store the deletion of *user*, *second* seconds after the start, and fold it."""
    tombstone = Tombstone(target="user", id=user, deleted_ns=ns(second))
    payload = encode_batches([Batch(id=f"delete-{user}", tombstones=[tombstone])])
    message = Message(subjects.tombstones("default"), payload, len(story.log) + 1, ns(second), {})
    story.log.append(message)
    story.alerter.fold(message, CREATED)


@pytest.mark.parametrize("group_by", ["user_id", "attr.user_id"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_deleted_user_is_resolved_once_and_named_nowhere_afterwards(group_by: str, restarted: bool) -> None:
    story = Story(make_rule(metric="total_cost", op="gt", threshold=5, window="60s", group_by=group_by))
    spans = [call(0.5, user_id=user, cost_nusd=6 * 10**9) for user in ("canary", "stays")]
    story.send(0.5, *spans)
    story.tick(1 + SETTLED)
    assert [(event.group[group_by], event.status) for event in story.published] == [
        ("canary", "firing"),
        ("stays", "firing"),
    ]
    delete_user(story, "canary", 1.5)
    story.tick(1.6)
    resolved = story.published[-1]
    assert (resolved.group[group_by], resolved.status, at(resolved)) == ("canary", "resolved", 1.5)
    if restarted:
        story.restart(story.snapshot())
    story.tick(5 + SETTLED)
    assert len(story.published) == 3
    assert [shown["group"] for shown in story.shown(5)["instances"]] == ["stays"]
    assert story.shown(5)["overflow"] == {"current_value": 6.0, "span_count": 1}
    # Spans that arrive after the deletion are new.
    story.send(5.5, call(5.5, user_id="canary", cost_nusd=7 * 10**9))
    story.tick(6 + SETTLED)
    assert [(event.group[group_by], event.status, event.value) for event in story.published[3:]] == [
        ("canary", "firing", 7.0)
    ]


def test_a_snapshot_after_a_deletion_does_not_name_the_user() -> None:
    story = Story(make_rule(metric="total_cost", op="gt", threshold=5, window="60s", group_by="user_id"))
    story.send(0.5, call(0.5, user_id="canary", cost_nusd=6 * 10**9))
    story.tick(1 + SETTLED)
    delete_user(story, "canary", 1.5)
    story.tick(2 + SETTLED)
    assert "canary" not in repr(story.shown(2))
    assert "canary" not in repr(story.alerter.open_episodes())

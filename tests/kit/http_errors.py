"""The form of an error of the HTTP API."""

from __future__ import annotations

from kit.pipeline import Answer


def refused(answer: Answer, *statuses: int) -> str:
    """Check that *answer* has one of *statuses*, 400 if there are none, and the documented body; return its text."""
    assert answer.status in (statuses or (400,)), (answer.status, answer.body[:500])
    body = answer.json()
    assert list(body) == ["error"], body
    error = body["error"]
    assert isinstance(error, str)
    assert 0 < len(error) < 1000, error
    return error

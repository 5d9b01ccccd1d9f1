"""Scores that an application gives: posted in the background, in order, also before their span is stored."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kit.builders import make_span
from kit.pipeline import Pipeline, free_port
from kit.programs import run_program
from kit.receiver import Receiver, Reply, Sent
from kit.reporting import until
from tokentrace import Stats
from tokentrace.client.transports import ScoreQueue, open_transport
from tokentrace.errors import ConfigError


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("scores"))
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture
def api() -> Iterator[Receiver]:
    """Yield a server that accepts every score until a test changes its answer."""
    with Receiver(lambda sent: Reply(202)) as receiver:
        yield receiver


@pytest.fixture
def queue(api: Receiver) -> Iterator[ScoreQueue]:
    """Yield a queue for *api*."""
    scores = ScoreQueue(api.url, "word")
    yield scores
    scores.close(0)


def answers(*replies: Reply) -> Callable[[Sent], Reply]:
    """Return a function that gives *replies* in turn, and accepts everything after the last one."""
    turn = itertools.chain(replies, itertools.repeat(Reply(202)))
    return lambda sent: next(turn)


def values(sent: Sent) -> list[float]:
    body = sent.json()
    return [score["value"] for score in (body if isinstance(body, list) else [body])]


def scores_of(pipeline: Pipeline, trace_id: str) -> list[Any]:
    """Return the attributes of the spans of a trace."""
    answer = pipeline.get(f"/traces/{trace_id}")
    return [span.get("attributes", {}) for span in answer.json()["spans"]] if answer.status == 200 else []


def test_a_score_given_before_its_span_is_stored_arrives(pipeline: Pipeline) -> None:
    scores = ScoreQueue(pipeline.url)
    for number in range(20):
        scores.score(number / 20, trace_id="scored", span_id=f"s{number}", name="tone")
        scores.score(0.9, trace_id="scored", span_id=f"s{number}")
    scores.score(0.25, trace_id="scored", span_id="s19")  # replaces the one before
    assert not scores.flush(1)
    transport = open_transport(pipeline.nats_url, source="scored")
    transport.send([make_span(trace_id="scored", span_id=f"s{number}", name=f"{number}") for number in range(20)])
    assert transport.flush(60)
    assert scores.flush(120)
    assert scores.stats() == Stats(sent=41, acked=41, dropped=0, failed=0, queue_depth=0)
    scores.close()
    transport.close()
    expected = [{"eval.tone": number / 20, "eval.score": 0.25 if number == 19 else 0.9} for number in range(20)]

    def shown() -> list[Any]:
        return sorted(scores_of(pipeline, "scored"), key=lambda attributes: attributes.get("eval.tone", -1))

    until(lambda: shown() == expected, "scored")


def test_a_score_without_a_span_id_is_that_of_the_root_and_none_removes_it(pipeline: Pipeline) -> None:
    transport = open_transport(pipeline.nats_url, source="scored")
    transport.send(
        [
            make_span(trace_id="rooted", span_id="root"),
            make_span(trace_id="rooted", span_id="child", parent_span_id="root"),
        ]
    )
    assert transport.flush(60)
    transport.close()
    with_scores = ScoreQueue(pipeline.url)
    with_scores.score(1, trace_id="rooted")
    assert with_scores.flush(120)
    until(lambda: {"eval.score": 1} in scores_of(pipeline, "rooted"), "scored")
    with_scores.score(None, trace_id="rooted")
    assert with_scores.flush(120)
    until(lambda: scores_of(pipeline, "rooted") == [{}, {}], "removed")
    with_scores.close()


def test_scores_are_posted_together_with_the_token(api: Receiver, queue: ScoreQueue) -> None:
    for number in range(250):
        queue.score(number / 250, trace_id=f"t{number}")
    assert queue.flush(30)
    assert [value for sent in api.sent for value in values(sent)] == [number / 250 for number in range(250)]
    assert len(api.sent) <= 10
    assert {sent.path for sent in api.sent} == {"/scores"}
    assert {sent.header("Authorization") for sent in api.sent} == {"Bearer word"}
    first = api.sent[0].json()[0] if isinstance(api.sent[0].json(), list) else api.sent[0].json()
    assert first == {"value": 0.0, "trace_id": "t0", "span_id": "", "name": "eval.score"}


def test_one_refused_score_does_not_lose_the_others(
    api: Receiver, queue: ScoreQueue, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(sent: Sent) -> Reply:
        return Reply(400, body=b'{"error": "no"}') if 0.5 in values(sent) else Reply(202)

    api.answer = answer
    for value in (0.1, 0.5, 0.9):
        queue.score(value, trace_id="t", span_id=f"{value}")
    assert queue.flush(30)
    assert queue.stats() == Stats(sent=3, acked=2, dropped=0, failed=1, queue_depth=0)
    assert "1 scores are lost: POST to http://127.0.0.1" in caplog.text


def test_scores_of_one_name_keep_their_order_while_the_span_is_unknown(api: Receiver, queue: ScoreQueue) -> None:
    taken: list[float] = []
    asked = itertools.count()

    def answer(sent: Sent) -> Reply:
        # The span becomes known in the middle of the second round.
        if next(asked) < 3:
            return Reply(404)
        taken.extend(values(sent))
        return Reply(202)

    api.answer = answer
    for value in (0.1, 0.2, 0.3):
        queue.score(value, trace_id="t", span_id="s")
    assert queue.flush(60)
    assert taken == [0.1, 0.2, 0.3]


def test_a_span_that_never_comes_costs_its_score_after_some_patience(
    api: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    api.answer = lambda sent: Reply(404, body=b'{"error": "span not found"}')
    queue = ScoreQueue(api.url, patience=0.5)
    queue.score(0.5, trace_id="t")
    assert queue.flush(60)
    assert queue.stats() == Stats(sent=1, acked=0, dropped=0, failed=1, queue_depth=0)
    assert len(api.sent) >= 2
    assert "span not found" in caplog.text
    queue.close()


@pytest.mark.parametrize("status", [503, 429, 0])
def test_scores_wait_until_the_api_is_back(
    api: Receiver, queue: ScoreQueue, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    api.answer = answers(*[Reply(status)] * 3)
    with caplog.at_level("INFO", "tokentrace.transport"):
        for value in (0.1, 0.2):
            queue.score(value, trace_id="t")
        assert queue.flush(60)
    assert values(api.sent[-1]) == [0.1, 0.2]
    assert queue.stats() == Stats(sent=2, acked=2, dropped=0, failed=0, queue_depth=0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"value": 1.5, "trace_id": "t"}, "score: 1.5 is not between 0 and 1"),
        ({"value": float("nan"), "trace_id": "t"}, "score: nan is not between 0 and 1"),
        ({"value": "good", "trace_id": "t"}, "score: good is not between 0 and 1"),
        ({"value": 0.5}, "trace_id or span_id: one of them is required"),
        ({"value": 0.5, "trace_id": "a\nb"}, "trace_id: "),
        ({"value": 0.5, "trace_id": 7}, "trace_id: "),
        ({"value": 0.5, "trace_id": "t", "name": "eval."}, "name: 'eval.' is empty"),
        ({"value": 0.5, "trace_id": "t", "name": "x" * 300}, "is longer than 256 bytes"),
    ],
)
def test_a_score_that_is_not_valid_is_counted_and_named_and_never_raises(
    api: Receiver, queue: ScoreQueue, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], reason: str
) -> None:
    queue.score(**arguments)
    assert queue.flush(30)
    assert queue.stats().rejected == 1
    assert api.sent == []
    assert reason in caplog.text


def test_a_secret_in_the_name_of_a_score_is_not_sent(api: Receiver, queue: ScoreQueue) -> None:
    queue.score(0.5, trace_id="t", name="by kim@example.com")
    assert queue.flush(30)
    assert json.loads(api.sent[0].body)["name"] == "eval.by [EMAIL_REDACTED]"


def test_a_program_that_ends_posts_its_scores_first_and_says_what_is_lost(api: Receiver) -> None:
    program = (
        "from tokentrace.client.transports import ScoreQueue\nScoreQueue(url).score(0.5, trace_id='t')\nprint('end')\n"
    )
    done = run_program(program, api.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
    assert values(api.sent[0]) == [0.5]
    done = run_program(program, f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (0, "end\n")
    assert "scores lost: 1 (1 dropped" in done.stderr


def test_many_threads_may_give_scores(api: Receiver, queue: ScoreQueue) -> None:
    def work(number: int) -> None:
        for index in range(100):
            queue.score(0.5, trace_id=f"{number}-{index}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.flush(60)
    assert queue.stats().acked == 800
    assert sum(len(values(sent)) for sent in api.sent) == 800


@pytest.mark.parametrize("url", ["nats://127.0.0.1", "http://", "127.0.0.1:9090", "http://host/?a=b", ""])
def test_a_url_that_names_no_api_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError):
        ScoreQueue(url)

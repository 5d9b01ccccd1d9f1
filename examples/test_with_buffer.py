"""Test a program that traces its calls: a transport in memory keeps the spans. Run it with pytest."""

from tokentrace import BufferTransport, Tracer


def answer(tracer: Tracer, question: str) -> str:
    with tracer.trace("answer") as trace:
        if not question:
            trace.record_error(ValueError("no question"), model="gpt-4o")
            return "?"
        trace.record(model="gpt-4o", provider="openai", prompt_tokens=len(question) // 4 + 1, completion_tokens=5)
        return "42"


def test_an_answer_is_one_call_with_its_tokens() -> None:
    spans = BufferTransport()
    assert answer(Tracer(spans), "What is the answer?") == "42"
    assert len(spans) == 1
    call = spans.last
    assert call is not None
    assert (call.model, call.prompt_tokens, call.status) == ("gpt-4o", 5, "ok")


def test_an_empty_question_is_an_error() -> None:
    spans = BufferTransport()
    answer(Tracer(spans), "")
    failed = spans.find(lambda span: span.status == "error")
    assert failed is not None
    assert failed.error == "ValueError: no question"

"""Trace one operation of three calls: a plan, a search below it, and an answer that fails and is tried again."""

import time

from tokentrace import Tracer


def search(city: str) -> str:
    time.sleep(0.01)
    return f"sunny in {city}"


def main() -> None:
    # Without a URL, the environment variable TOKENTRACE_URL names the pipeline.
    with Tracer(source="examples") as tracer, tracer.trace("weather", user_id="alice", session_id="s-1") as trace:
        with trace.span("plan", model="gpt-4o", provider="openai") as plan:
            plan.set(prompt_tokens=512, completion_tokens=32)
            with plan.span("search", kind="tool") as tool:
                tool.set(attributes={"found": search("Oslo")})
        trace.record_error(TimeoutError("no answer in 10 s"), name="answer", model="gpt-4o", provider="openai")
        answer = trace.record(
            name="answer",
            model="gpt-4o",
            provider="openai",
            prompt_tokens=600,
            completion_tokens=128,
            latency_ms=1240,
            score=0.9,
        )
    # The end of the block has waited until the pipeline has the spans, for five seconds at most.
    stats = tracer.stats()
    print(f"trace {answer.trace_id}: acknowledged {stats.acked}, dropped {stats.dropped}")


if __name__ == "__main__":
    main()

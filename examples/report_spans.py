"""Report two LLM calls and one tool call of the same trace, then print how many spans were accepted."""

import os

from tokentrace import Reporter, Span


def main() -> None:
    url = os.environ.get("TOKENTRACE_URL", "nats://127.0.0.1:4222")
    reporter = Reporter("examples", url)
    for step in ("plan", "answer"):
        reporter.report(
            Span(
                trace_id="example-trace",
                name=step,
                model="gpt-4o",
                provider="openai",
                prompt_tokens=512,
                completion_tokens=128,
                latency_ns=1_240_000_000,
                user_id="alice",
            )
        )
    reporter.report(Span(trace_id="example-trace", name="search", kind="tool", latency_ns=80_000_000))
    reporter.close()
    stats = reporter.stats()
    print(f"acknowledged {stats.acked}, dropped {stats.dropped}, failed {stats.failed}")


if __name__ == "__main__":
    main()

"""Track the SDK of OpenAI: each call is a span with its tokens, its cost and the time to its first token."""

from openai import OpenAI

from tokentrace import default_tracer, instrument, start

# A stream of api.openai.com is asked for its usage by itself. Name other servers that take this option, as vLLM does.
instrument("openai", stream_usage_hosts=["127.0.0.1"])


def answer(question: str) -> None:
    # The SDK reads OPENAI_API_KEY and OPENAI_BASE_URL.
    stream = OpenAI().chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": question}],
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def main() -> None:
    with start("answer", user_id="alice") as trace:
        answer("What is the answer?")
    default_tracer().flush()
    print(f"trace {trace.id}: acknowledged {default_tracer().stats().acked}")


if __name__ == "__main__":
    main()

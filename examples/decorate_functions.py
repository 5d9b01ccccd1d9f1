"""Make a span of each call of a function: plain, asynchronous and generating."""

import asyncio
from collections.abc import AsyncIterator

from tokentrace import current, default_tracer, traced


@traced(kind="retrieval")
async def find_documents(question: str) -> list[str]:
    await asyncio.sleep(0.01)
    return [f"about {question}"]


@traced(name="answer in pieces", kind="chain")
async def stream_answer(documents: list[str]) -> AsyncIterator[str]:
    for word in " ".join(documents).split():
        await asyncio.sleep(0)
        yield word


@traced(kind="workflow")
async def answer(question: str) -> str:
    span = current()
    words = [word async for word in stream_answer(await find_documents(question))]
    print(f"trace {span.trace_id if span else ''}")
    return " ".join(words)


def main() -> None:
    print(asyncio.run(answer("tokens")))
    default_tracer().close()
    print(f"acknowledged {default_tracer().stats().acked}")


if __name__ == "__main__":
    main()

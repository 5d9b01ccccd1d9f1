"""Trace a FastAPI application: a request is a trace, and the calls that it makes are below it."""

import os

import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI

from tokentrace import TraceMiddleware, Tracer, instrument

tracer = Tracer(source="fastapi-shop")
llm = instrument(AsyncOpenAI(), tracer=tracer)
app = FastAPI()
# The answers say in x-trace-id where to look. A caller's traceparent and x-session-id are continued.
app.add_middleware(TraceMiddleware, tracer=tracer, route_names=True)


async def find(product: str) -> str:
    with tracer.span("find", kind="retrieval", attributes={"product": product}):
        return f"{product} is blue, and costs 3 euros"


@app.get("/products/{product}/description")
async def describe(product: str) -> dict[str, str | None]:
    completion = await llm.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": f"Praise this product: {await find(product)}"}]
    )
    return {"description": completion.choices[0].message.content}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))

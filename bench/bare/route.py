"""A bare route that only decodes and publishes spans: ``python -m bench.bare.route NATS_URL PORT``."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokentrace.bus import jetstream, subjects
from tokentrace.dialect.docs import DocsSpan

_one = msgspec.json.Decoder(DocsSpan)
_many = msgspec.json.Decoder(list[DocsSpan])
_encode = msgspec.msgpack.Encoder().encode


async def main(url: str, port: int) -> None:
    """Serve on *port* until the process is stopped."""
    async with jetstream.connect(url, name="bare") as bus:
        for stream in subjects.streams():
            await bus.ensure(stream)

        async def post(request: Request) -> Response:
            body = await request.body()
            spans = _many.decode(body) if body[:1] == b"[" else [_one.decode(body)]
            await bus.publish(subjects.spans("default", 0), _encode(spans))
            return Response(b'{"accepted":%d}' % len(spans), 202, media_type="application/json")

        async def healthy(_: Request) -> Response:
            return Response(b"{}")

        app = Starlette(routes=[Route("/spans", post, methods=["POST"]), Route("/readyz", healthy)])
        config = uvicorn.Config(app, port=port, log_config=None, access_log=False, lifespan="off")
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))

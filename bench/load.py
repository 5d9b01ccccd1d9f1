"""A small HTTP load generator: ``python -m bench.load PORT CONNECTIONS SECONDS BODY_FILE`` prints requests a second."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path


async def _connection(port: int, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    done = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 202"):
            raise RuntimeError(head.decode())
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if length:
            await reader.readexactly(length)
        done += 1
    writer.close()
    return done


async def _main(port: int, connections: int, seconds: float, body: bytes) -> float:
    request = (
        b"POST /spans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    began = time.perf_counter()
    done = await asyncio.gather(*(_connection(port, request, began + seconds) for _ in range(connections)))
    return sum(done) / (time.perf_counter() - began)


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        port, connections, seconds, file = sys.argv[1:]
        print(runner.run(_main(int(port), int(connections), float(seconds), Path(file).read_bytes())))

"""JSON answers are compressed for clients that accept it; streams pass as they come."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tokentrace.service.compressed import Compressed

LONG = b'{"a": "' + b"x" * 200_000 + b'"}'


async def answer(request: Request) -> Response:
    size = int(request.query_params.get("size", len(LONG)))
    media = request.query_params.get("media", "application/json")
    return Response(LONG[:size], media_type=media, headers={"ETag": '"1"'})


async def stream(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        yield LONG
        yield LONG

    return StreamingResponse(parts(), media_type=request.query_params["media"])


APP = Compressed(Starlette(routes=[Route("/", answer, methods=["GET", "POST"]), Route("/stream", stream)]))


async def ask(path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> tuple[httpx.Response, bytes]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://localhost") as client:
        request = client.build_request(method, path, headers={"Accept-Encoding": "gzip", **(headers or {})})
        response = await client.send(request, stream=True)
        raw = b"".join([part async for part in response.aiter_raw()])
        await response.aclose()
        return response, raw


@pytest.mark.parametrize("size", [1024, 5000, 70_000, 200_000])
async def test_json_of_a_kilobyte_or_more_is_compressed_and_says_so(size: int) -> None:
    response, raw = await ask(f"/?size={size}")
    assert gzip.decompress(raw) == LONG[:size]
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["content-length"] == str(len(raw))
    assert response.headers["vary"] == "Accept-Encoding"
    assert response.headers["etag"] == '"1"'


@pytest.mark.parametrize("path", ["/?size=1023", "/?media=text/event-stream", "/?media=application/x-ndjson"])
async def test_short_answers_and_other_types_are_not(path: str) -> None:
    response, raw = await ask(path)
    assert "content-encoding" not in response.headers
    assert LONG.startswith(raw)


@pytest.mark.parametrize("media", ["application/json", "text/event-stream"])
async def test_a_stream_passes_as_it_comes(media: str) -> None:
    response, raw = await ask(f"/stream?media={media}")
    assert "content-encoding" not in response.headers
    assert raw == LONG * 2


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0.01", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("identity", False),
    ],
)
async def test_only_clients_that_accept_gzip_get_it_and_caches_are_told(accepted: str, compressed: bool) -> None:
    response, raw = await ask("/", {"Accept-Encoding": accepted})
    assert ("content-encoding" in response.headers) == compressed
    assert (gzip.decompress(raw) if compressed else raw) == LONG
    assert response.headers["vary"] == "Accept-Encoding"


async def test_head_has_the_headers_of_get_and_the_answer_to_a_post_stays_as_it_is() -> None:
    got, _ = await ask("/")
    head, _ = await ask("/", method="HEAD")
    assert head.headers["content-length"] == got.headers["content-length"]
    posted, raw = await ask("/", method="POST")
    assert "content-encoding" not in posted.headers
    assert raw == LONG

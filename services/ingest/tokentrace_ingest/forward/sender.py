"""The HTTP client of the forwarder; each call makes one attempt."""

from __future__ import annotations

import asyncio
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType

import httpx

from tokentrace.bus import BrokerClock
from tokentrace.dialect.otlp.messages import Signal
from tokentrace.errors import Rejected
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace.service.checked_transport import CheckedTransport
from tokentrace.service.retry_after import retry_after
from tokentrace.units import SECOND
from tokentrace.version import __version__
from tokentrace_ingest.forward.answers import read_partial_success
from tokentrace_ingest.forward.outcome import Outcome
from tokentrace_ingest.forward.targets import Target

#: The statuses after which OTLP lets a client send a request again.
_TRY_AGAIN = frozenset({429, 502, 503, 504})
_TOO_LARGE = 413
#: Most bytes of an answer that are read.
_MAX_ANSWER = 64 * 1024


class Sender:
    """
    Posts requests to allowed hosts, and is an asynchronous context manager that closes its connections.

    It follows no redirect, uses no proxy of the environment and keeps no cookies.

    Args:
        clock: The time from which a date in ``Retry-After`` is counted if the target does not say its own.
    """

    def __init__(self, allowed: AllowedHosts, clock: BrokerClock) -> None:
        self._clock = clock
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            transport=CheckedTransport(allowed),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def __aenter__(self) -> Sender:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, exc, trace)

    async def post(self, target: Target, signal: Signal, payload: bytes) -> Outcome:
        """Post *payload*, a request in protobuf compressed with gzip, to *target* once."""
        headers = httpx.Headers({"User-Agent": f"tokentrace/{__version__}"})
        headers.update(target.headers)
        headers.update({"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"})
        body = bytearray()
        try:
            async with (
                asyncio.timeout(target.timeout_s),
                self._client.stream(
                    "POST", target.url_of(signal), content=payload, headers=headers, timeout=None
                ) as response,
            ):
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _MAX_ANSWER:
                        break
        except Rejected as exc:
            # A setting of this pipeline, or the name server, may be mended while the request waits.
            return Outcome("again", str(exc))
        except TimeoutError:
            return Outcome("again", f"no answer within {target.timeout_s:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
            # The text of the exception may repeat a header or the URL, and both may hold a secret.
            return Outcome("again", f"no answer: {type(exc).__name__}")
        return self._outcome(response, signal, bytes(body))

    def _outcome(self, response: httpx.Response, signal: Signal, body: bytes) -> Outcome:
        status = response.status_code
        if response.is_success:
            return Outcome("sent", partial=read_partial_success(signal, response.headers.get("content-type", ""), body))
        if status in _TRY_AGAIN:
            asked_s = retry_after(response.headers, self._clock.now_ns() / SECOND)
            waits = "" if asked_s is None else f", Retry-After {asked_s:g} s"
            return Outcome("again", f"HTTP {status}{waits}", retry_after_s=asked_s)
        return Outcome("too_large" if status == _TOO_LARGE else "refused", f"HTTP {status}")

"""The HTTP client of deliveries; each call makes one attempt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType

import httpx

from tokentrace.bus import BrokerClock
from tokentrace.errors import Rejected, shorten
from tokentrace.records import AlertEvent
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace.service.checked_transport import CheckedTransport
from tokentrace.service.retry_after import retry_after
from tokentrace.units import SECOND
from tokentrace_alerter.delivery.channel import Channel, idempotency_key
from tokentrace_alerter.delivery.payload import signature, webhook_body

log = logging.getLogger("tokentrace.alerter")

#: The text of every failure at a private address that ``alert_delivery.allow_hosts`` does not list.
NO_SUCCESS = (
    "no success; the alerter's log has the reason, as the host is private and not in alert_delivery.allow_hosts"
)
#: Statuses below 500 that another attempt may change: request timeout, too early, too many requests.
_TRY_AGAIN = frozenset({408, 425, 429})
#: A proxy asks for a user, or for another one: the setting of the proxy may be mended while the event waits.
_PROXY_AUTHENTICATION = 407


class Refused(Exception):
    """This attempt failed, and so would another one: the receiver refuses the event, or it cannot be sent."""


class Failed(Exception):
    """
    This attempt failed; another one may succeed.

    Args:
        reason: Why, without secrets.
        retry_after_s: How long the receiver asks to wait, seconds; None = it does not ask.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class WebhookSender:
    """
    The HTTP client of deliveries, and an asynchronous context manager that closes its connections.

    It follows no redirect, uses no proxy of the environment and keeps no cookies.

    Everyone who may create a rule chooses the host. So that deliveries do not show which ports of this machine or of a
    private network are open, all failures there look the same and take the same time, unless
    ``alert_delivery.allow_hosts`` is set; the log of the alerter has the reason.

    Args:
        allowed: The hosts that may be called. For another host, ``post`` raises ``Refused``.
        clock: The time from which a date in ``Retry-After`` is counted if the receiver does not say its own.
        proxy: URL of the proxy through which all requests go; "" = none.
    """

    def __init__(self, allowed: AllowedHosts, clock: BrokerClock, proxy: str = "") -> None:
        self._clock, self._proxy = clock, proxy
        self._transport = CheckedTransport(allowed, proxy)
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            transport=self._transport,
            # Accept no cookies: a receiver could recognise by them which rules come from one alerter.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def __aenter__(self) -> WebhookSender:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, exc, trace)

    async def send(self, channel: Channel, event: AlertEvent) -> None:
        """
        Post *event* to the webhook of *channel* once.

        Raises:
            Failed, Refused: As ``post``.
        """
        body = webhook_body(channel, event)
        headers = {"Idempotency-Key": idempotency_key(event)}
        if channel.secret:
            headers["X-Tokentrace-Signature"] = signature(channel.secret, body)
        await self.post(channel, channel.url, body, headers)

    async def post(self, channel: Channel, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """
        Post the JSON text *body* to *url* once; the response body is ignored.

        Args:
            channel: The channel whose timeout and headers are used.
            headers: Further headers, which override those of *channel*.

        Raises:
            Failed: Timeout, no answer, or HTTP status 408, 425, 429, 500 or above; or any failure at a host that is
                private.
            Refused: Another HTTP status of 300 or above, a host that is not allowed, or a request that cannot be sent.
        """
        began = time.monotonic()
        try:
            await self._post(channel, url, body, headers)
        except (Failed, Refused) as exc:
            if not self._transport.is_private(url):
                raise
            log.info("a delivery to a private address had no success: %s", exc)
            await asyncio.sleep(max(0.0, began + channel.timeout_ns / SECOND - time.monotonic()))
            raise Failed(NO_SUCCESS) from exc

    async def _post(self, channel: Channel, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        merged = httpx.Headers({"Content-Type": "application/json", "User-Agent": "tokentrace"})
        merged.update(channel.headers)
        merged.update(headers)
        try:
            async with (
                asyncio.timeout(channel.timeout_ns / SECOND),
                self._client.stream("POST", url, content=body, headers=merged, timeout=None) as response,
            ):
                pass  # The response body is ignored.
        except Rejected as exc:
            raise Refused(str(exc)) from exc
        except TimeoutError as exc:
            raise Failed(f"no answer within {channel.timeout_ns / SECOND:g} s") from exc
        except (httpx.LocalProtocolError, httpx.InvalidURL, ValueError) as exc:
            # The text of the exception repeats a header or the URL, and both may contain a secret.
            raise Refused(f"cannot be sent: {type(exc).__name__}") from exc
        except httpx.ProxyError as exc:
            raise Failed(f"no answer through the proxy: {shorten(str(exc), 60)}") from exc
        except httpx.HTTPError as exc:
            raise Failed(f"no answer: {type(exc).__name__}") from exc
        except Exception as exc:
            raise Refused(f"cannot be sent: {type(exc).__name__}") from exc
        status = response.status_code
        if status >= 500 or status in _TRY_AGAIN or (status == _PROXY_AUTHENTICATION and self._proxy):
            asked_s = retry_after(response.headers, self._clock.now_ns() / SECOND)
            raise Failed(f"HTTP {status}" + (f", Retry-After {asked_s:g} s" if asked_s is not None else ""), asked_s)
        if not response.is_success:
            raise Refused(f"HTTP {status}")

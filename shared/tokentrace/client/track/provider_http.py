"""Requests to the HTTP APIs of providers, for programs without an SDK."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tokentrace.errors import ConfigError, Rejected, Unavailable, quoted, shorten
from tokentrace.shown import shown_url

Json = dict[str, Any]

#: HTTP statuses below 500 after which another attempt may succeed.
_RETRY_STATUSES = (408, 409, 425, 429)
#: Names that Cost Katana's requests have -> those of the APIs.
_NAMES = {"maxTokens": "max_tokens", "topP": "top_p"}


class HttpProvider:
    """
    One API of one provider. It may be shared between threads; each request has a connection of its own.

    Args:
        name: The provider, such as ``openai``.
        endpoint: The base URL, to which *path* is added.
        path: The path of the operation.
        headers: Headers of each request.
        timeout_s: The limit for each network operation, seconds.

    Raises:
        ConfigError: *endpoint* is not an HTTP URL.
    """

    def __init__(self, name: str, endpoint: str, path: str, headers: Mapping[str, str], timeout_s: float) -> None:
        try:
            parts = urlsplit(endpoint)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as exc:
            raise ConfigError("endpoint: the host or port cannot be read") from exc
        if parts.scheme not in ("http", "https") or not self._host:
            raise ConfigError(f"endpoint: {quoted(shown_url(endpoint))} is not http://… or https://…")
        self.name = name
        self._tls = parts.scheme == "https"
        self._path = parts.path.rstrip("/") + path + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        self._timeout_s = timeout_s

    def prepare(self, request: Mapping[str, Any]) -> Json:
        """Return the body for *request*: names in camel case become those of the API, None is left out."""
        body = {_NAMES.get(name, name): value for name, value in request.items() if value is not None}
        prompt = body.pop("prompt", None)
        if prompt is not None and "messages" not in body:
            body["messages"] = [{"role": "user", "content": prompt}]
        if body.get("stream"):
            raise Rejected("stream: this client returns whole answers; use the SDK of the provider for a stream")
        return body

    def make_request(self, request: Mapping[str, Any]) -> Json:
        """
        Send a request, without a span.

        Args:
            request: ``model`` and ``messages`` or ``prompt``, and further parameters of the API.

        Returns:
            The JSON object that the API answers.

        Raises:
            Rejected: The API refuses the request; ``status`` is the HTTP status.
            Unavailable: The API cannot be reached, does not answer in time, or answers with status 408, 409, 425, 429
                or 5xx. Nothing is sent again.
        """
        try:
            body = msgspec.json.encode(self.prepare(request))
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise Rejected(f"{self.name}: the request cannot be encoded as JSON: {shorten(exc)}") from exc
        status, answer = self._exchange(body)
        if status >= 500 or status in _RETRY_STATUSES:
            raise Unavailable(f"{self.name}: HTTP {status}: {_message(answer)}")
        if status >= 300:
            raise Rejected(f"{self.name}: HTTP {status}: {_message(answer)}", status=max(status, 400))
        try:
            return msgspec.json.decode(answer, type=Json)
        except msgspec.DecodeError as exc:
            raise Unavailable(f"{self.name}: the answer is not a JSON object") from exc

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        from http.client import HTTPConnection, HTTPException, HTTPSConnection

        if self._tls:
            import ssl

            connection: HTTPConnection = HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=ssl.create_default_context()
            )
        else:
            connection = HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as exc:
            raise ProviderTimeout(f"{self.name}: no answer within {self._timeout_s:g} s") from exc
        except (OSError, HTTPException) as exc:
            raise Unavailable(f"{self.name}: {type(exc).__name__}") from exc
        except ValueError as exc:
            # http.client refuses characters that a header or a path must not contain.
            raise Rejected(f"{self.name}: {shorten(exc)}") from exc
        finally:
            connection.close()


class AnthropicProvider(HttpProvider):
    """The messages API, whose system prompt is a parameter and not a message."""

    def prepare(self, request: Mapping[str, Any]) -> Json:
        """Return the body for *request*; messages of the role system become the parameter."""
        body = super().prepare(request)
        messages = body.get("messages") or []
        prompts = [message["content"] for message in messages if _role(message) == "system"]
        if prompts:
            body["messages"] = [message for message in messages if _role(message) != "system"]
            body["system"] = prompts[0] if len(prompts) == 1 else "\n\n".join(str(prompt) for prompt in prompts)
        body.setdefault("max_tokens", 4096)
        return body


class ProviderTimeout(Unavailable, TimeoutError):
    """The API did not answer in time."""


def openai_provider(api_key: str | None, endpoint: str | None, timeout_s: float) -> HttpProvider:
    """Return OpenAI's chat API; ConfigError without a key."""
    headers = {"Authorization": f"Bearer {_key(api_key, 'OPENAI_API_KEY')}"}
    return HttpProvider("openai", endpoint or "https://api.openai.com/v1", "/chat/completions", headers, timeout_s)


def anthropic_provider(api_key: str | None, endpoint: str | None, timeout_s: float) -> HttpProvider:
    """Return Anthropic's messages API; ConfigError without a key."""
    headers = {"x-api-key": _key(api_key, "ANTHROPIC_API_KEY"), "anthropic-version": "2023-06-01"}
    return AnthropicProvider("anthropic", endpoint or "https://api.anthropic.com/v1", "/messages", headers, timeout_s)


def _key(api_key: str | None, variable: str) -> str:
    key = api_key or os.environ.get(variable, "")
    if not key:
        raise ConfigError(f"api_key is not given, and the environment variable {variable} is not set")
    return key


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _message(answer: bytes) -> str:
    try:
        body = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        return shorten(answer.decode(errors="replace"), 200)
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return shorten(str(message), 400)

"""
Random HTTP requests: from the OpenAPI document of a server, and beyond it.

A request is bytes, so it may be anything: a path that no client writes, a body that ends too early, no HTTP at all.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from kit import otlp
from kit.builders import make_batch
from kit.random_values import NUMBERS, changed, damaged, encode, odd_text, odd_value, unreadable
from tokentrace.records import BATCH_TYPE, encode_batches

Leave = Literal["read", "half", "close", "reset"]
IDS = ("t", "s", "se", "r", "r0", "r1", "alice", "absent", "recent", "tail", "x" * 256)
SEGMENTS = (
    "%ff",
    "%00",
    "%",
    "%zz",
    "%ed%a0%80",
    "%c0%af",
    "%2F",
    "%2f%2f",
    "..",
    ".",
    "%0d%0a",
    "",
    "x" * 5000,
    "%C3%BC",
)
QUERIES = (
    "%ff",
    "%00",
    "%zz",
    "%ed%a0%80",
    "9" * 400,
    "-1",
    "1e999",
    "nan",
    "%2B",
    "1.0",
    "",
    "0",
    "1",
    "200",
    "a%00b",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 30)
PATHS = (
    "/",
    "//",
    "*",
    "/..",
    "/%2e%2e/etc/passwd",
    "/index.html",
    "/favicon.ico",
    "/docs/../../x",
    "http://localhost/stats",
)
NO_HTTP = (
    *(b"\r\n\r\n", b"\x00" * 50, b"GET", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"\xff" * 300),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 60,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /stats HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET /stats HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(3000)) + b"\r\n",
    b"GET /" + b"p" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /stats HTTP/1.1\nHost: localhost\n\n",
    b"GET /stats HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET /stats HTTP/1.1\r\nHost: localhost\r\n X: folded\r\n\r\n",
    b"POST /spans HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /spans HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
    b"POST /spans HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"POST /spans HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /spans HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{",
    b"POST /spans HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{",
    b"POST /spans HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\n{",
    b"POST /spans HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
)


#: A header with such a character is no HTTP.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: Most bytes of a body that the buffers of a connection certainly take although the server does not read them.
_RECEIVED_BYTES = 32 * 1024


class HttpCase(NamedTuple):
    """
    A request.

    Attributes:
        leave: What the client does after sending: it reads the answer, sends no more and reads (``half``), closes, or
            resets the connection.
        whole: True = the request is complete and valid HTTP, so there must be an answer, and the connection stays.
    """

    sent: bytes
    method: str
    leave: Leave
    whole: bool


class RandomHttp:
    """Makes the requests for a server with the OpenAPI document *document*."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._operations = [
            (method.upper(), path, operation)
            for path, item in sorted(document["paths"].items())
            for method, operation in sorted(item.items())
        ]

    def case(self, dice: random.Random) -> HttpCase:
        """Return the next request of *dice*."""
        if dice.random() < 0.04:
            return HttpCase(dice.choice(NO_HTTP), "", dice.choice(("half", "close", "reset")), whole=False)
        method, path, operation = dice.choice(self._operations)
        target = self._target(path, operation, dice)
        body = self._body(operation, dice)
        if dice.random() < 0.06:
            target = dice.choice(PATHS)
        if dice.random() < 0.06:
            method = dice.choice(METHODS)
        if method == "GET" and dice.random() < 0.9:
            body = None
        return self._framed(method, target, body, self._headers(operation, body, dice), dice)

    def _framed(
        self, method: str, target: str, body: bytes | None, headers: list[tuple[str, str]], dice: random.Random
    ) -> HttpCase:
        roll = dice.random()
        leave: Leave = "read"
        version, whole = "1.1", method in METHODS[:8] and target[:1] == "/"
        if not any(name.lower() == "host" for name, _ in headers):
            headers = [("Host", dice.choice(("localhost", "127.0.0.1", "localhost:8700"))), *headers]
        tail = body or b""
        if body is not None:
            if roll < 0.1:
                headers.append(("Transfer-Encoding", "chunked"))
                tail = _chunked(body, dice)
            elif roll < 0.14:
                headers.append(("Content-Length", str(len(body) + dice.choice((1, 1000)))))
                leave, whole = dice.choice(("half", "close", "reset")), False
            else:
                headers.append(("Content-Length", str(len(body))))
        if roll > 0.985:
            leave, whole = dice.choice(("half", "close", "reset")), False
        if len(tail) > _RECEIVED_BYTES and any(_CONTROL.search(value) for _, value in headers):
            # The server answers 400 and closes without reading the body, so the answer may be lost.
            whole = False
        if roll > 0.97 and whole:
            version, whole = "1.0", False
        head = "\r\n".join([f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in headers)])
        sent = head.encode("latin-1", "replace") + b"\r\n\r\n" + tail
        if 0.14 < roll < 0.16:
            return HttpCase(
                sent[: dice.randrange(len(sent))], method, dice.choice(("half", "close", "reset")), whole=False
            )
        if 0.16 < roll < 0.17:
            return HttpCase(sent * 5, method, dice.choice(("half", "close", "reset")), whole=False)
        if 0.17 < roll < 0.18:
            return HttpCase(damaged(sent, dice), method, "half", whole=False)
        return HttpCase(sent, method, leave, whole)

    def _target(self, path: str, operation: Mapping[str, Any], dice: random.Random) -> str:
        def name(_: re.Match[str]) -> str:
            roll = dice.random()
            if roll < 0.7:
                return dice.choice(IDS)
            return dice.choice(SEGMENTS) if roll < 0.9 else quote(odd_text(dice).encode(errors="replace"), safe="")

        filled = re.sub(r"\{[^}]*\}", name, path)
        if dice.random() < 0.03:
            filled += "/" + dice.choice(SEGMENTS)
        parameters = [item for item in operation.get("parameters", ()) if item["in"] == "query"]
        pairs = [
            f"{_key(parameter['name'], dice)}={self._query_value(parameter['schema'], dice)}"
            for parameter in parameters
            if dice.random() < 0.25
        ]
        if dice.random() < 0.08:
            pairs.append(
                dice.choice(("unread=1", "=", "&&", "a=1&a=2", "%ff=%ff", "attr.%ff=1", "q", "%00", "attr.=1"))
            )
        if pairs and dice.random() < 0.05:
            pairs.append(pairs[0])
        return filled + ("?" + "&".join(pairs) if pairs else "")

    def _query_value(self, schema: Mapping[str, Any], dice: random.Random) -> str:
        roll = dice.random()
        choices: list[Any] = [*schema.get("enum", ()), *schema.get("examples", ())]
        if "default" in schema:
            choices.append(schema["default"])
        if choices and roll < 0.6:
            return quote(str(dice.choice(choices)).encode(), safe="")
        if roll < 0.8:
            return dice.choice(QUERIES)
        if roll < 0.9:
            return quote(str(dice.choice(NUMBERS))[:400], safe="")
        return quote(odd_text(dice).encode(errors="replace"), safe="")

    def _headers(self, operation: Mapping[str, Any], body: bytes | None, dice: random.Random) -> list[tuple[str, str]]:
        headers = []
        if body is not None:
            roll = dice.random()
            if roll < 0.8:
                headers.append(("Content-Type", _type_of(body)))
            elif roll < 0.9:
                types = ("text/plain", "", "application/x-www-form-urlencoded", "a/b/c", "\xff", "multipart/form-data")
                headers.append(("Content-Type", dice.choice(types)))
            if body[:2] == b"\x1f\x8b" or dice.random() < 0.03:
                headers.append(("Content-Encoding", dice.choice(("gzip", "gzip", "x-gzip", "br", "deflate", ""))))
        headers += [
            (parameter["name"], _header_value(dice))
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "header" and parameter["name"] != "Content-Encoding" and dice.random() < 0.2
        ]
        if dice.random() < 0.05:
            odd = ("Host", "Origin", "Authorization", "Range", "If-None-Match", "X-Forwarded-For", "Cookie", "Accept")
            headers.append((dice.choice(odd), _header_value(dice)))
        if dice.random() < 0.02:
            headers += [("Upgrade", dice.choice(("websocket", "h2c"))), ("Connection", "Upgrade")]
        return headers

    def _body(self, operation: Mapping[str, Any], dice: random.Random) -> bytes | None:
        contents = operation.get("requestBody", {}).get("content", {})
        if not contents:
            return unreadable(dice) if dice.random() < 0.1 else None
        media = dice.choice(sorted(contents))
        roll = dice.random()
        if roll < 0.08:
            body = unreadable(dice)
        elif media == BATCH_TYPE:
            body = encode_batches([make_batch()])
            body = damaged(body, dice) if dice.random() < 0.8 else body
        elif media == otlp.TYPES["protobuf"]:
            body = otlp.encoded(otlp.traces([otlp.call()]), "protobuf")
            body = damaged(body, dice) if dice.random() < 0.8 else body
        else:
            examples = [item["value"] for _, item in sorted(contents[media].get("examples", {}).items())]
            value = (
                dice.choice(examples) if examples and roll < 0.7 else self._value(contents[media]["schema"], dice, 0)
            )
            for _ in range(dice.choice((0, 1, 1, 2, 4))):
                value = changed(value, dice)
            if isinstance(value, dict) and "name" in value and "metric" in value:
                value["name"] = f"r{dice.randrange(10)}"
            body = encode(value)
            if dice.random() < 0.08:
                body = damaged(body, dice)
        roll = dice.random()
        if roll < 0.1:
            body = gzip.compress(body, 1)
            if roll < 0.03:
                body = damaged(body, dice)
            elif roll < 0.04:
                body += gzip.compress(b"") * dice.choice((1, 5000))
        return body

    def _value(self, schema: Mapping[str, Any], dice: random.Random, depth: int) -> Any:
        """Return a value of *schema*, as far as its type goes; its texts and numbers may be odd."""
        if "$ref" in schema:
            return self._value(self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], dice, depth)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self._value(dice.choice(schema[union]), dice, depth)
        if "enum" in schema:
            return dice.choice(schema["enum"])
        kinds: Sequence[str] = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type", "")]
        match dice.choice(kinds):
            case "string":
                return odd_text(dice, 2000)
            case "integer" | "number":
                return dice.choice((dice.randrange(1000), dice.choice(NUMBERS)))
            case "boolean":
                return dice.random() < 0.5
            case "array":
                items = schema.get("items", {})
                return (
                    [self._value(items, dice, depth + 1) for _ in range(dice.choice((0, 1, 1, 3)))] if depth < 6 else []
                )
            case "object":
                return self._object(schema, dice, depth) if depth < 6 else {}
            case "null":
                return None
        return odd_value(dice)

    def _object(self, schema: Mapping[str, Any], dice: random.Random, depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        value = {
            name: self._value(part, dice, depth + 1)
            for name, part in schema.get("properties", {}).items()
            if name in required or dice.random() < 0.4
        }
        more = schema.get("additionalProperties")
        if isinstance(more, Mapping):
            value |= {odd_text(dice, 30): self._value(more, dice, depth + 1) for _ in range(dice.choice((0, 1, 3)))}
        return value


def _type_of(body: bytes) -> str:
    """Return the type of a body that begins as it does in ``RandomHttp._body``."""
    if body[:1] == b"\n":
        return otlp.TYPES["protobuf"]
    return BATCH_TYPE if body[:1] > b"\x7f" else "application/json"


def _key(name: str, dice: random.Random) -> str:
    """Return the name of a query parameter; ``<key>`` in it stands for any key."""
    return name.replace("<key>", dice.choice(("team", "x", "eval.score", "%ff", "", "a.b", "user_id", "x" * 300)))


def _header_value(dice: random.Random) -> str:
    odd = (
        "\xff\xfe",
        "\xc3\xa4",
        "x" * 5000,
        "a\x01b",
        "a\x7fb",
        "",
        "bytes=0-1",
        "null",
        "http://localhost",
        "a, b",
        "k1",
    )
    return dice.choice((dice.choice(odd), f"key-{dice.randrange(20)}"))


def _chunked(body: bytes, dice: random.Random) -> bytes:
    size = dice.choice((1 + len(body) // 3, 1 + len(body)))
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

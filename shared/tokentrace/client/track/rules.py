"""What is tracked of a provider's SDK, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tokentrace.client.track.reader import Reader
from tokentrace.records import Kind


class Route(NamedTuple):
    """
    A path of an API that is tracked.

    Attributes:
        name: The name of the span.
        kind: The kind of the span.
        reader: Makes what looks at a streamed answer.
        asks_usage: Whether the request must ask for the usage of a stream.
        priced_as: The provider of the price list that has other prices for this path; "" = the client's.
    """

    name: str
    kind: Kind
    reader: Callable[[], Reader]
    asks_usage: bool = False
    priced_as: str = ""


class Sdk(NamedTuple):
    """
    An SDK whose clients send all requests by their method ``request``.

    Attributes:
        module: The name of its module.
        clients: The names of a synchronous and an asynchronous client in the module.
        routes: Path -> what is tracked; other paths are not touched.
        providers: Beginning of the name of a client's class, without ``Async`` -> its provider.
        default_provider: The provider of an address that the price list does not know; "" = unknown.
        background: Path of the answers that are fetched later, without the id; "" = there are none.
    """

    module: str
    clients: tuple[str, str]
    routes: Mapping[str, Route]
    providers: Mapping[str, str]
    default_provider: str = ""
    background: str = ""

    def route(self, method: str, url: str) -> Route | None:
        """Return what is tracked of a request to *url*; None if it is not."""
        if method.lower() != "post":
            return None
        path = url.partition("?")[0].rstrip("/")
        return self.routes.get(path)

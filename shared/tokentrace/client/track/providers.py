"""The provider that a client talks to: by the class of the client, else by its address."""

from __future__ import annotations

from functools import lru_cache

from tokentrace.client.track.rules import Sdk
from tokentrace.pricing import load_tables

#: Beginnings of addresses that need no look-up, so that most programs read the price list only to price.
_USUAL = {
    "https://api.openai.com/": "openai",
    "https://api.anthropic.com/": "anthropic",
}


def provider_of(sdk: Sdk, client: object) -> str:
    """Return the provider of *client*, a client of *sdk*; "" if its class and address do not tell it."""
    for cls in type(client).__mro__:
        provider = sdk.providers.get(cls.__name__.removeprefix("Async"))
        if provider:
            return provider
    return provider_of_url(str(getattr(client, "base_url", ""))) or sdk.default_provider


@lru_cache(1024)
def provider_of_url(url: str) -> str:
    """Return the provider whose API has the address *url*, by the price list; "" if it is none of them."""
    for start, provider in _USUAL.items():
        if url.startswith(start):
            return provider
    return load_tables().provider_of_url(url)

"""The id of the provider that a span names: the names of conventions and libraries lead to those of the price list."""

from __future__ import annotations

import re
from functools import lru_cache

#: (Beginning of a name in lower case, the provider), the first that fits. It must end there or at a separator, so that
#: ``openai_like``, which says that another host is called, is not ``openai``.
_BEGINNINGS: tuple[tuple[str, str], ...] = (
    ("azure", "azure"),
    ("az.ai", "azure"),
    ("openai", "openai"),
    ("anthropic", "anthropic"),
    ("aws", "aws"),
    ("amazon", "aws"),
    ("bedrock", "aws"),
    ("gcp", "google"),
    ("gemini", "google"),
    ("google", "google"),
    ("vertex", "google"),
    ("vertexai", "google"),
    ("mistral", "mistral"),
    ("mistralai", "mistral"),
    ("x_ai", "x-ai"),
    ("xai", "x-ai"),
    ("x-ai", "x-ai"),
    ("moonshot", "moonshotai"),
    ("moonshotai", "moonshotai"),
    ("together", "together"),
    ("together_ai", "together"),
    ("togetherai", "together"),
    ("fireworks", "fireworks"),
    ("fireworks_ai", "fireworks"),
    ("fireworksai", "fireworks"),
    ("groq", "groq"),
    ("deepseek", "deepseek"),
    ("cohere", "cohere"),
    ("perplexity", "perplexity"),
    ("openrouter", "openrouter"),
    ("cerebras", "cerebras"),
)
#: What follows a beginning without making it another name.
_SEPARATORS = (".", "-", "/", "_", " ", ":")
#: Names that say which protocol is spoken, not with whom: the host decides, or the model.
_PROTOCOLS = frozenset({"openai_like", "openai-like", "openai_compatible", "openai-compatible", "_other"})

#: (Pattern of a host, the provider that charges for calls to it). Instrumentations say ``openai`` for all of them.
_HOSTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"(?:^|\.){pattern}$"), provider)
    for pattern, provider in (
        (r"api\.openai\.com", "openai"),
        (r"openai\.azure\.com", "azure"),
        (r"services\.ai\.azure\.com", "azure"),
        (r"models\.ai\.azure\.com", "azure"),
        (r"api\.anthropic\.com", "anthropic"),
        (r"bedrock-runtime(?:-fips)?\.[a-z0-9-]+\.amazonaws\.com", "aws"),
        (r"generativelanguage\.googleapis\.com", "google"),
        (r"(?:[a-z0-9-]+-)?aiplatform\.googleapis\.com", "google"),
        (r"api\.mistral\.ai", "mistral"),
        (r"api\.x\.ai", "x-ai"),
        (r"api\.moonshot\.(?:ai|cn)", "moonshotai"),
        (r"api\.together\.(?:xyz|ai)", "together"),
        (r"api\.fireworks\.ai", "fireworks"),
        (r"api\.groq\.com", "groq"),
        (r"api\.deepseek\.com", "deepseek"),
        (r"api\.cohere\.(?:com|ai)", "cohere"),
        (r"api\.perplexity\.ai", "perplexity"),
        (r"openrouter\.ai", "openrouter"),
        (r"api\.cerebras\.ai", "cerebras"),
    )
)
_HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?(?:[^/@]*@)?([^/:?#]+)")


@lru_cache(4096)
def provider_of(name: str) -> str:
    """Return the provider that *name* stands for, in lower case; an unknown name stays, and "" says nothing."""
    low = name.strip().lower()
    if low in _PROTOCOLS:
        return ""
    for beginning, provider in _BEGINNINGS:
        if low.startswith(beginning) and (low == beginning or low[len(beginning)] in _SEPARATORS):
            return provider
    return low


@lru_cache(4096)
def provider_at(address: str) -> str:
    """Return the provider that charges for calls to *address*, a host or a URL; "" = not known."""
    host = _HOST.match(address.strip().lower())
    if host is None:
        return ""
    return next((provider for pattern, provider in _HOSTS if pattern.search(host[1])), "")

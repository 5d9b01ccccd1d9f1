"""What the response of a provider tells about a call: tokens, model, finish reason, ids. Pure, and without any SDK."""

from tokentrace.client.usage.reading import read

__all__ = ["read"]

"""What is tracked of the SDK of Anthropic, with its clients for Bedrock, Vertex and Foundry."""

from __future__ import annotations

from tokentrace.client.track.anthropic_streams import MessagesReader
from tokentrace.client.track.rules import Route, Sdk

#: Not here: counting tokens is free, and batches are answered later.
SDK = Sdk(
    module="anthropic",
    clients=("Anthropic", "AsyncAnthropic"),
    routes={"/v1/messages": Route("messages", "llm", MessagesReader)},
    providers={
        "AnthropicAWS": "aws",
        "AnthropicBedrock": "aws",
        "AnthropicFoundry": "azure",
        "AnthropicGoogleCloud": "google",
        "AnthropicVertex": "google",
    },
    default_provider="anthropic",
)

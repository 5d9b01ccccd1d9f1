"""What is tracked of the SDK of OpenAI."""

from __future__ import annotations

from tokentrace.client.track.openai_streams import ChatReader, EventReader, ResponsesReader
from tokentrace.client.track.rules import Route, Sdk

#: Not here: moderations, models, files and batches make no tokens; realtime, live and ``responses.connect`` are
#: WebSockets; speech and videos state no usage; assistants are gone.
SDK = Sdk(
    module="openai",
    clients=("OpenAI", "AsyncOpenAI"),
    routes={
        "/chat/completions": Route("chat.completions", "llm", ChatReader, asks_usage=True),
        "/completions": Route("completions", "llm", ChatReader, asks_usage=True),
        "/responses": Route("responses", "llm", ResponsesReader),
        "/responses/compact": Route("responses.compact", "llm", ResponsesReader),
        "/embeddings": Route("embeddings", "embedding", EventReader),
        "/decisions": Route("decisions", "llm", EventReader, priced_as="openai-decisions"),
        "/audio/transcriptions": Route("audio.transcriptions", "llm", EventReader),
        "/audio/translations": Route("audio.translations", "llm", EventReader),
        "/images/generations": Route("images.generations", "llm", EventReader),
        "/images/edits": Route("images.edits", "llm", EventReader),
        "/images/variations": Route("images.variations", "llm", EventReader),
    },
    providers={"AzureOpenAI": "azure", "BedrockOpenAI": "aws"},
    background="/responses/",
)

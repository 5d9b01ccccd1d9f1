"""
The names under which tools and vendors count, as data. Names are compared in snake case: ``cacheReadInputTokens`` is
``cache_read_input_tokens``. A dot stands for an object in an object. The units on the right are those of genai-prices;
``total_tokens`` is the sum of input and output.
"""

from __future__ import annotations

#: Names for the whole input and the whole output.
WHOLES: dict[str, str] = {
    "tokens_in": "input_tokens",
    "input_tokens": "input_tokens",  # Anthropic, AWS, OpenAI (responses)
    "prompt_tokens": "input_tokens",  # OpenAI (chat) and most others
    "prompt_token_count": "input_tokens",  # Gemini
    "prompt_eval_count": "input_tokens",  # Ollama
    "tokens_out": "output_tokens",
    "output_tokens": "output_tokens",
    "completion_tokens": "output_tokens",
    "comp_tokens": "output_tokens",
    "candidates_token_count": "output_tokens",  # Gemini
    "eval_count": "output_tokens",  # Ollama
    "total_tokens": "total_tokens",
    "total_token_count": "total_tokens",  # Gemini
}

#: Names for parts of the input or the output.
PARTS: dict[str, str] = {
    "cached_tokens": "cache_read_tokens",
    "cached_input_tokens": "cache_read_tokens",
    "cached_prompt_tokens": "cache_read_tokens",
    "cached_prompt_text_tokens": "cache_read_tokens",  # xAI
    "cached_content_token_count": "cache_read_tokens",  # Gemini
    "prompt_cache_hit_tokens": "cache_read_tokens",  # DeepSeek
    "prompt_tokens_details.cached_tokens": "cache_read_tokens",  # OpenAI (chat)
    "input_tokens_details.cached_tokens": "cache_read_tokens",  # OpenAI (responses)
    "input_token_details.cached_tokens": "cache_read_tokens",  # OpenAI (realtime)
    "input_token_details.cache_read": "cache_read_tokens",  # LangChain
    "cache_creation_tokens": "cache_write_tokens",
    "prompt_tokens_details.cache_write_tokens": "cache_write_tokens",
    "input_tokens_details.cache_write_tokens": "cache_write_tokens",
    "input_token_details.cache_creation": "cache_write_tokens",  # LangChain
    "input_token_details.ephemeral_5m_input_tokens": "cache_write_5m_tokens",  # LangChain
    "input_token_details.ephemeral_1h_input_tokens": "cache_write_1h_tokens",  # LangChain
    "prompt_tokens_details.cache_creation_tokens": "cache_write_tokens",  # LiteLLM
    "prompt_tokens_details.cache_creation_token_details.ephemeral_5m_input_tokens": "cache_write_5m_tokens",
    "prompt_tokens_details.cache_creation_token_details.ephemeral_1h_input_tokens": "cache_write_1h_tokens",
    "cache_creation.ephemeral_5m_input_tokens": "cache_write_5m_tokens",  # Anthropic
    "cache_creation.ephemeral_1h_input_tokens": "cache_write_1h_tokens",  # Anthropic
    "cache_creation_1h_input_tokens": "cache_write_1h_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
    "thinking_tokens": "output_reasoning_tokens",
    "completion_tokens_details.reasoning_tokens": "output_reasoning_tokens",  # OpenAI (chat)
    "output_tokens_details.reasoning_tokens": "output_reasoning_tokens",  # OpenAI (responses)
    "output_tokens_details.thinking_tokens": "output_reasoning_tokens",  # Anthropic
    "output_token_details.reasoning": "output_reasoning_tokens",  # LangChain
    "prompt_tokens_details.audio_tokens": "input_audio_tokens",
    "input_tokens_details.audio_tokens": "input_audio_tokens",
    "input_token_details.audio_tokens": "input_audio_tokens",
    "input_token_details.audio": "input_audio_tokens",
    "input_tokens_details.text_tokens": "input_text_tokens",
    "input_token_details.text_tokens": "input_text_tokens",
    "input_tokens_details.image_tokens": "input_image_tokens",
    "input_token_details.image_tokens": "input_image_tokens",
    "input_token_details.cached_tokens_details.text_tokens": "cache_text_read_tokens",
    "input_token_details.cached_tokens_details.audio_tokens": "cache_audio_read_tokens",
    "input_token_details.cached_tokens_details.image_tokens": "cache_image_read_tokens",
    "completion_tokens_details.audio_tokens": "output_audio_tokens",
    "output_tokens_details.audio_tokens": "output_audio_tokens",
    "output_token_details.audio_tokens": "output_audio_tokens",
    "output_token_details.audio": "output_audio_tokens",
    "output_tokens_details.text_tokens": "output_text_tokens",
    "output_token_details.text_tokens": "output_text_tokens",
    "output_tokens_details.image_tokens": "output_image_tokens",
    "citation_tokens": "output_citation_tokens",  # Perplexity
    "server_tool_use.web_search_requests": "web_searches",  # Anthropic
    "num_search_queries": "web_searches",  # Perplexity
}

#: Names of amounts that a vendor counts beside its whole, not within it -> (the unit, the vendor's name of the whole).
#: The record's whole includes them, so they are added if the whole came under that name, or if they exceed the whole.
BESIDE: dict[str, tuple[str, str]] = {
    "cache_read_input_tokens": ("cache_read_tokens", "input_tokens"),  # Anthropic, AWS
    "cache_creation_input_tokens": ("cache_write_tokens", "input_tokens"),  # Anthropic
    "cache_write_input_tokens": ("cache_write_tokens", "input_tokens"),  # AWS
    "tool_use_prompt_token_count": ("input_tool_tokens", "prompt_token_count"),  # Gemini
    "thoughts_token_count": ("output_reasoning_tokens", "candidates_token_count"),  # Gemini
}

#: Names in an object that holds nothing but counts, such as ``tokens`` of Cost Katana -> the name above or a unit.
SHORT: dict[str, str] = {
    "input": "tokens_in",
    "output": "tokens_out",
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
    "total": "total_tokens",
    "cached": "cached_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "reasoning": "reasoning_tokens",
    "thinking": "reasoning_tokens",
    "thoughts": "thoughts_token_count",
    "input_audio": "input_audio_tokens",
    "output_audio": "output_audio_tokens",
    "input_image": "input_image_tokens",
    "output_image": "output_image_tokens",
}

#: Objects of counts within attributes.
USAGE_OBJECTS = ("usage", "usage_metadata", "tokens")

#: Names of the id that a provider gives its response.
RESPONSE_IDS = ("response_id", "gen_ai.response.id")
#: Names of what decides a price besides the model and the amounts; each becomes a key of ``Span.pricing_context``.
CONTEXT = ("service_tier", "processing", "speed")
SCOPES = ("otel.scope.name", "scope_name")
USERS = ("user_id", "user.id", "enduser.id")
SESSIONS = ("session_id", "session.id")

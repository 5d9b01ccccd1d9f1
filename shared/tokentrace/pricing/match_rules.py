"""
How names of models and providers that clients send lead to rows of the price list: the rules as data.

``matching`` applies them. No rule turns one vendor's model into another's: a rule strips what a router, a cloud or a
convention adds to a name, and the rest must be in the price list of the provider.
"""

from __future__ import annotations

#: Names of providers in lower case -> id in the price list; "" = says nothing about who charges.
PROVIDER_ALIASES: dict[str, str] = {
    # OpenTelemetry: gen_ai.provider.name and its predecessor gen_ai.system
    "aws.bedrock": "aws",
    "az.ai.inference": "azure",
    "az.ai.openai": "azure",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "mistral_ai": "mistral",
    "moonshot_ai": "moonshotai",
    "x_ai": "x-ai",
    "_other": "",
    # LiteLLM: custom_llm_provider
    "azure_ai": "azure",
    "azure_text": "azure",
    "bedrock_converse": "aws",
    "codestral": "mistral",
    "cohere_chat": "cohere",
    "custom_openai": "",
    "fireworks_ai": "fireworks",
    "github_copilot": "github-copilot",
    "litellm": "",
    "litellm_proxy": "",
    "minimax": "minimax",
    "moonshot": "moonshotai",
    "openai_like": "",
    "text-completion-codestral": "mistral",
    "text-completion-openai": "openai",
    "together_ai": "together",
    "vertex_ai": "google",
    "vertex_ai_beta": "google",
    "voyage": "voyageai",
    # LangChain, LlamaIndex
    "amazon_bedrock": "aws",
    "anthropic_bedrock": "aws",
    "azure_openai": "azure",
    "chat_openai": "openai",
    "google_anthropic_vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "langchain": "",
    "langgraph": "",
    "llama_index": "",
    "llamaindex": "",
    "mistralai": "mistral",
    # Vercel AI SDK and AI Gateway
    "ai-gateway": "",
    "amazon-bedrock": "aws",
    "azure-openai": "azure",
    "gateway": "",
    "google-vertex": "google",
    "google.generative-ai": "google",
    "google.vertex": "google",
    "google.vertex.anthropic": "google",
    "togetherai": "together",
    "vercel": "",
    "vercel-ai-gateway": "",
    "vercel_ai_gateway": "",
    "vertex.anthropic": "google",
    # other spellings
    "aws_bedrock": "aws",
    "azureopenai": "azure",
    "bedrock": "aws",
    "bedrock-runtime": "aws",
    "claude": "anthropic",
    "custom": "",
    "deepseek_ai": "deepseek",
    "fireworks-ai": "fireworks",
    "fireworksai": "fireworks",
    "gemini": "google",
    "google_ai_studio": "google",
    "google-ai-studio": "google",
    "googleai": "google",
    "grok": "x-ai",
    "helicone": "",
    "instructor": "",
    "meta-llama": "meta",
    "none": "",
    "null": "",
    "open_router": "openrouter",
    "openai-compatible": "",
    "openai_compatible": "",
    "other": "",
    "perplexity_ai": "perplexity",
    "perplexityai": "perplexity",
    "portkey": "",
    "pydantic_ai": "",
    "pydantic-ai": "",
    "together.ai": "together",
    "together-ai": "together",
    "unknown": "",
    "vertex": "google",
    "vertexai": "google",
    "xai": "x-ai",
    "z-ai": "zai",
    "z.ai": "zai",
    "zhipu": "zhipuai",
}

#: What SDKs append to the name of a provider: ``openai.chat``, ``anthropic.messages``, ``azure-openai.responses``.
PROVIDER_ENDINGS = (
    ".chat",
    ".chat-completions",
    ".completion",
    ".completions",
    ".embedding",
    ".embeddings",
    ".generative-ai",
    ".image",
    ".messages",
    ".responses",
    ".speech",
    ".text-embedding",
    ".textembedding",
    ".transcription",
)

#: Vendor or route before a slash in a model's name, in lower case -> id in the price list; "" = only strip it.
#: Organisations of model hubs, such as ``meta-llama/`` or ``deepseek-ai/``, are absent: they do not say who charges.
PREFIXES: dict[str, str] = {
    "anthropic": "anthropic",
    "azure": "azure",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "amazon-bedrock": "aws",
    "aws": "aws",
    "cerebras": "cerebras",
    "cloudflare": "cloudflare",
    "codestral": "mistral",
    "cohere": "cohere",
    "cohere_chat": "cohere",
    "databricks": "databricks",
    "deepseek": "deepseek",
    "elevenlabs": "elevenlabs",
    "fireworks": "fireworks",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "github_copilot": "github-copilot",
    "google": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "google-vertex": "google",
    "groq": "groq",
    "litellm": "",
    "litellm_proxy": "",
    "mistral": "mistral",
    "mistralai": "mistral",
    "moonshot": "moonshotai",
    "moonshotai": "moonshotai",
    "novita": "novita",
    "openai": "openai",
    "openrouter": "openrouter",
    "ovhcloud": "ovhcloud",
    "perplexity": "perplexity",
    "text-completion-openai": "openai",
    "together": "together",
    "together_ai": "together",
    "vercel_ai_gateway": "",
    "vertex_ai": "google",
    "voyage": "voyageai",
    "voyageai": "voyageai",
    "x-ai": "x-ai",
    "xai": "x-ai",
    "z-ai": "zai",
    "zai": "zai",
    "zhipuai": "zhipuai",
}

#: Providers that sell models of other vendors: a route before a slash names the one who charges, not the vendor.
CLOUDS = frozenset(
    {
        "aws",
        "azure",
        "cerebras",
        "cloudflare",
        "databricks",
        "fireworks",
        "github-copilot",
        "google",
        "groq",
        "novita",
        "openrouter",
        "ovhcloud",
        "together",
    }
)

#: Regular expressions for paths around a model's name -> (provider if none is named, what the group ``name`` is).
PATHS: tuple[tuple[str, str], ...] = (
    (r"^/?projects/[^/]+/locations/[^/]+/publishers/[^/]+/models/(?P<name>[^/]+)$", "google"),
    (r"^/?(?:locations/[^/]+/)?publishers/[^/]+/models/(?P<name>[^/]+)$", "google"),
    (r"^/?models/(?P<name>gemini[^/]*|text-embedding-00\d|gemma[^/]*|learnlm[^/]*)$", "google"),
    (r"^/?models/(?P<name>[^/]+)$", ""),
    (r"^azureml://registries/[^/]+/models/(?P<name>[^/]+)/versions/[^/]+$", "azure"),
    (r"^arn:aws[a-z-]*:bedrock:[^:]*:[^:]*:(?:foundation-model|inference-profile)/(?P<name>.+)$", "aws"),
    # LiteLLM: a route of Bedrock's API, or a region
    (r"^(?:converse|converse_like|invoke)/(?P<name>.+)$", "aws"),
    (r"^[a-z]{2}(?:-[a-z]+)?-[a-z]+-\d/(?P<name>[a-z0-9-]+\..+)$", "aws"),
    (r"^(?P<name>(?:amazon|anthropic|cohere|meta|mistral|ai21|deepseek)\.[a-z0-9.:-]+)$", "aws"),
)

#: Suffixes that OpenRouter defines -> what the receipt must say about the price; None = the same price.
SUFFIXES: dict[str, str | None] = {
    "beta": None,
    "exacto": None,
    "floor": None,
    "nitro": "the list price of the model was assumed: :nitro may choose a provider with another price",
    "online": "the searches of :online are not in the price",
    "thinking": None,
}
#: Suffixes whose extra charge is in no list: the price is a lower bound that lacks these units.
SUFFIXES_LACK: dict[str, str] = {"online": "web_searches"}

#: Ids of Bedrock, with or without the region of an inference profile.
BEDROCK_ID = (
    r"^(?:(?:us|us-gov|eu|apac|au|ca|jp|sa|global)\.)?"
    r"(?:ai21|amazon|anthropic|cohere|deepseek|google|luma|meta|minimax|mistral|moonshot|nvidia|openai|qwen|stability"
    r"|twelvelabs|writer|zai)\.[a-z][a-z0-9-]*"
)

#: Names that only one vendor sells, for spans without a provider; the price list has more (``models_match``).
FAMILIES: tuple[tuple[str, str], ...] = (
    (r"^(?:text-embedding-(?:3-(?:small|large)|ada-002)|chatgpt-|codex-|computer-use-preview|dall-e-|ft:)", "openai"),
    (
        r"^(?:omni-moderation|text-moderation|davinci-002|babbage-002|gpt-|o[1-9](?:-|$)|sora-|whisper-1|tts-1)",
        "openai",
    ),
    (r"^(?:command|embed-(?:english|multilingual|v4)|rerank-)", "cohere"),
    (r"^sonar", "perplexity"),
    (r"^(?:gemini-|text-embedding-00\d|text-multilingual-embedding|imagen-|veo-|learnlm)", "google"),
    (r"^(?:claude-)", "anthropic"),
    (r"^(?:grok-)", "x-ai"),
    (r"^(?:deepseek-(?:chat|reasoner)$)", "deepseek"),
    (r"^moonshot-v1", "moonshotai"),
)

#: Models that many vendors sell at different prices, and that run locally: without a provider they have no price.
OPEN_WEIGHTS = (
    r"^(?:deepseek-(?:r\d|v\d|coder|llm|math|ocr|prover)|gpt-oss|kimi-(?:k\d|dev|vl|linear)|glm-\d|minimax-(?:m\d|text|01)"
    r"|mistral-(?:7b|nemo)|mixtral-|gemma|llama|qwen|qwq|phi-?\d|codellama|command-r.*:)"
)

#: Tags of Ollama, which no vendor has. With a tag, a name has no price of a vendor.
LOCAL_TAG = (
    r":(?:latest$|[a-z]*-?\d+(?:\.\d+)?(?:x\d+)?[bm](?:[-_].*)?$|e\d+b(?:[-_].*)?$|(?:[^:]*[-_])?i?q\d(?:_[a-z0-9]+)*$"
    r"|(?:instruct|text|mini|medium|small|large|chat|code|base|tiny|vision|fp16|bf16)(?:[-_].*)?$)"
)
#: Files and quantizations. Without a provider, such a name has no price.
LOCAL_FILE = r"(?:\.gguf$|[-_.]gguf$|^hf\.co/|[-_.](?:i?q\d(?:_[a-z0-9]+)*|fp16|bf16)$|^\.?/.|\.(?:safetensors|bin)$)"
#: Models of Ollama that run in its cloud, which sells them by subscription.
HOSTED_TAG = r"[:-]cloud$"

#: Providers that run on the user's own machines, unless ``pricing.local_providers`` says otherwise.
LOCAL_PROVIDERS = (
    "docker_model_runner",
    "gpt4all",
    "hosted_vllm",
    "jan",
    "koboldcpp",
    "llama.cpp",
    "llama_cpp",
    "llamacpp",
    "llamafile",
    "lm-studio",
    "lm_studio",
    "lmstudio",
    "local",
    "localai",
    "mlx",
    "ollama",
    "ollama_chat",
    "sglang",
    "text-generation-webui",
    "vllm",
)

#: (Provider, regular expression for ids in the price list): models that cost nothing, which the list shows without a
#: rate. Other models without a rate are unpriced, because the list does not know their price.
FREE_MODELS: tuple[tuple[str, str], ...] = (
    ("openai", r"^moderation$"),
    ("github-copilot", r""),
    ("google", r"^gemma"),
    ("", r":free$"),
)

#: Values of ``pricing_context`` that mean the standard price.
STANDARD_VALUES: dict[str, frozenset[str]] = {
    "service_tier": frozenset({"auto", "default", "standard", "standard_only", "on_demand", "on-demand"}),
    "processing": frozenset({"default", "online", "realtime", "standard", "sync", "synchronous"}),
    "speed": frozenset({"default", "normal", "standard"}),
    "search_type": frozenset({"default", "standard"}),
    "route": frozenset({"default", "standard"}),
    "inference_geo": frozenset({"global", "not_available"}),
}
#: (Name, value) as vendors report it -> as the price list calls it.
CONTEXT_ALIASES: dict[tuple[str, str], tuple[str, str]] = {
    ("service_tier", "batch"): ("processing", "batch"),
    ("service_tier", "service_tier_flex"): ("service_tier", "flex"),
    ("service_tier", "service_tier_priority"): ("service_tier", "priority"),
    ("service_tier", "service_tier_standard"): ("service_tier", "standard"),
    ("service_tier", "on_demand_flex"): ("service_tier", "flex"),
    ("service_tier", "on_demand_priority"): ("service_tier", "priority"),
    ("processing", "batch_api"): ("processing", "batch"),
    ("processing", "batches"): ("processing", "batch"),
    ("processing", "message_batches"): ("processing", "batch"),
}

#: An own price without a rate for cache writes: times the prompt rate, as every seller of writes that are kept for an
#: hour charges, and as Anthropic charges for writes that are kept for five minutes.
HOUR_WRITE_FACTOR = "2"
CLAUDE_WRITE_FACTOR = "1.25"
CLAUDE = r"claude|anthropic"

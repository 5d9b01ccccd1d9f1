"""Two instrumentations of the same calls at once, besides those pairs that the pages of emitters make anyway."""

from __future__ import annotations

from kit.emitter_runs import ADDRESS, SetUp
from kit.emitters import FAILURES_TWICE, UNASKED, Emitter, Gap

_LAUNCHED = ("opentelemetry-distro", "opentelemetry-exporter-otlp-proto-http", "openai", "anthropic")
_QUESTION = """
question = [{"role": "user", "content": "How is the weather in Rome?"}]
"""
#: Two instrumentations of OpenAI; of Anthropic they are three, with its SDK.
OPENINFERENCE_AND_OPENLLMETRY = SetUp(
    packages=(
        *_LAUNCHED,
        "openinference-instrumentation-openai",
        "openinference-instrumentation-anthropic",
        "opentelemetry-instrumentation-openai",
        "opentelemetry-instrumentation-anthropic",
    ),
    exports={"OTEL_EXPORTER_OTLP_ENDPOINT": ADDRESS, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    command=("opentelemetry-instrument", "python", "app.py"),
    program=f"""
from anthropic import Anthropic
from openai import OpenAI
{_QUESTION}
OpenAI().chat.completions.create(model="gpt-4o", messages=question)
Anthropic().messages.create(model="claude-opus-4-5", max_tokens=1000, messages=question)
""",
)
#: A generation of Langfuse that the application makes by hand, around a call that the SDK tells.
LANGFUSE_AND_SDK = SetUp(
    packages=("langfuse", "anthropic"),
    exports={"LANGFUSE_BASE_URL": ADDRESS, "LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"},
    command=("python", "app.py"),
    program=f"""
from anthropic import Anthropic
from langfuse import get_client
{_QUESTION}
with get_client().start_as_current_observation(as_type="generation", name="answer", model="claude-opus-4-5") as one:
    answer = Anthropic().messages.create(model="claude-opus-4-5", max_tokens=1000, messages=question)
    one.update(
        output=answer.content[0].text,
        usage_details={{"input": answer.usage.input_tokens, "output": answer.usage.output_tokens}},
    )
""",
)

#: Without tokens nothing says that two answers of one id are the same.
UNASKED_TWICE = Gap("openai:unasked", "calls", 2)

_TOGETHER = Emitter("openinference-openllmetry", "openinference", gaps=(UNASKED, UNASKED_TWICE, *FAILURES_TWICE))
PAIRS = (
    (_TOGETHER, OPENINFERENCE_AND_OPENLLMETRY),
    (Emitter("langfuse-sdk", "langfuse", providers=("anthropic",)), LANGFUSE_AND_SDK),
)

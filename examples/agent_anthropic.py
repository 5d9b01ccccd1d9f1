"""Trace an agent: calls of the SDK of Anthropic, and the tools that they ask for, are spans below that of the agent."""

from anthropic import Anthropic
from anthropic.types import MessageParam, ToolParam, ToolResultBlockParam

from tokentrace import default_tracer, instrument, start, traced

WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@traced(name="weather", kind="tool")
def weather(city: str) -> str:
    return f"sunny in {city}"


@traced(name="ask the agent", kind="agent")
def ask(client: Anthropic, question: str) -> str:
    messages: list[MessageParam] = [{"role": "user", "content": question}]
    while True:
        message = client.messages.create(model="claude-sonnet-5", max_tokens=1024, tools=[WEATHER], messages=messages)
        calls = [block for block in message.content if block.type == "tool_use"]
        if not calls:
            return "".join(block.text for block in message.content if block.type == "text")
        results: list[ToolResultBlockParam] = [
            {"type": "tool_result", "tool_use_id": call.id, "content": weather(str(call.input["city"]))}
            for call in calls
        ]
        messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]


def main() -> None:
    # The SDK reads ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL. Only this client is tracked.
    client = instrument(Anthropic())
    with start("weather", session_id="s-1") as trace:
        print(ask(client, "What is the weather in Oslo?"))
    default_tracer().flush()
    print(f"trace {trace.id}: acknowledged {default_tracer().stats().acked}")


if __name__ == "__main__":
    main()

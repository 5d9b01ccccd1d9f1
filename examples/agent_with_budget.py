"""Stop an agent before it spends more than its budget: what a call can cost at most is reserved before it is made."""

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tokentrace import Budget, BudgetExceeded, Tracer, instrument


def work(client: OpenAI) -> int:
    """Let the model improve a text until the budget is used up; return the number of calls."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Write a haiku about tokens."}]
    for made in range(1_000):
        try:
            completion = client.chat.completions.create(model="gpt-4o", max_tokens=500, messages=messages)
        except BudgetExceeded as error:
            print(error)
            return made
        messages = [
            {"role": "user", "content": f"Improve this haiku:\n{completion.choices[0].message.content}"},
        ]
    return 1_000


def main() -> None:
    budget = Budget(max_usd=0.01)
    with Tracer(source="agent") as tracer:
        client = instrument(OpenAI(), tracer=tracer, budget=budget)
        with tracer.span("improve a haiku", kind="agent") as agent:
            calls = work(client)
            agent.set(attributes={"calls": calls, "budget_usd": budget.max})
    print(f"{calls} calls, {budget.spent:.6f} USD spent, {budget.remaining:.6f} USD left")


if __name__ == "__main__":
    main()

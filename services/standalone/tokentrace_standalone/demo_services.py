"""The applications that the demo plays: their models, their speed, and what their users talk about."""

from __future__ import annotations

import random
from typing import NamedTuple


class Model(NamedTuple):
    """A model and its speed: milliseconds to the first token, and for each token after that."""

    name: str
    provider: str
    first_ms: float
    token_ms: float


class Topic(NamedTuple):
    """What a conversation is about: its label, and (question, answer) of each turn; the last one repeats."""

    label: str
    turns: tuple[tuple[str, str], ...]


class Service(NamedTuple):
    """
    An application that makes LLM calls.

    Attributes:
        share: Its share of all requests, relative to the shares of the other services.
        agent_steps: Largest number of steps of its agent; 0 = it has no agent and makes a single call.
        prompt, completion: Median number of tokens of a call.
        quality: Mean of ``eval.score``, before it is limited to 0-1.
        streams: True = answers are streamed, so spans have a time to first token.
        rated: What the second score says, ``eval.<rated>``.
        turns: Most requests of a conversation.
        topics: What conversations are about; () = its requests belong to no session.
    """

    name: str
    share: int
    model: Model
    agent_steps: int
    prompt: int
    completion: int
    quality: float
    streams: bool
    rated: str
    turns: int = 0
    topics: tuple[Topic, ...] = ()


GPT = Model("gpt-4o", "openai", 350, 14)
OPUS = Model("claude-opus-4-1", "anthropic", 900, 28)
_MINI = Model("gpt-4o-mini", "openai", 180, 6)
_SONNET = Model("claude-sonnet-4-5", "anthropic", 420, 16)
_FLASH = Model("gemini-2.5-flash", "google", 220, 5)
_GPT_5 = Model("gpt-5", "openai", 600, 18)

_SUPPORT = (
    Topic(
        "Refund for a late order",
        (
            (
                "My order {order} came a week late. Can I have my money back?",
                "I am sorry for the delay. Order {order} was promised for Monday, so the delivery fee is refunded.",
            ),
            (
                "Please write to jo{order}@example.com when it is done.",
                "Done: you will get an e-mail as soon as the refund is booked, usually within two working days.",
            ),
            ("And the order itself?", "The order itself can be returned within 30 days. Shall I send you a label?"),
            ("Yes, please.", "The label for order {order} is on its way."),
        ),
    ),
    Topic(
        "Change of address",
        (
            ("I have moved. How do I change my address?", "Open Settings, then Addresses, and choose Edit."),
            ("There is no Edit.", "It is hidden while an order is on its way: order {order} arrives tomorrow."),
            ("Then I will wait.", "I have put a reminder for the day after tomorrow into your account."),
        ),
    ),
    Topic(
        "Password reset",
        (
            ("I cannot log in.", "I have sent a link to the address of your account. It is valid for an hour."),
            ("Nothing came.", "Please look into the spam folder. The sender is support@shop.example."),
        ),
    ),
)
_RESEARCH = (
    Topic(
        "Battery prices since 2015",
        (
            (
                "How did the price of lithium batteries develop since 2015? Name your sources.",
                "It fell from about 380 to about 115 dollars for each kilowatt hour. Report {order} has the sources.",
            ),
            ("Why did it rise in 2022?", "Lithium carbonate cost six times as much as a year before."),
            ("Make a table of it.", "Year, price, change: the table has ten rows and is in report {order}."),
        ),
    ),
    Topic(
        "Competitors in logistics",
        (
            ("Who are our three largest competitors in the north?", "By revenue: Nordfracht, Hansa Cargo and Belt 7."),
            ("What do they charge for a pallet?", "Between 41 and 58 euros for 200 km; report {order} has the lists."),
        ),
    ),
)
_REVIEW = (
    Topic(
        "Pull request: cache of prices",
        (
            (
                "Review pull request {order}.",
                "Two findings: the cache has no limit, and `get` returns a price that has expired. Tests are missing.",
            ),
            ("I have pushed a fix.", "The limit is there. `get` still reads the entry before it checks its age."),
        ),
    ),
)

SERVICES = (
    Service("support-chat", 10, _MINI, 0, 900, 180, 0.86, True, "helpfulness", 6, _SUPPORT),
    Service("search-answers", 6, _FLASH, 0, 2600, 220, 0.81, True, "groundedness"),
    Service("research-agent", 2, _SONNET, 5, 4200, 450, 0.78, False, "groundedness", 4, _RESEARCH),
    Service("code-review", 1, _GPT_5, 2, 6000, 600, 0.83, False, "helpfulness", 3, _REVIEW),
)


def question_and_answer(dice: random.Random, topic: Topic, turn: int) -> tuple[str, str]:
    """Return what is asked and answered in turn *turn*, from 0, of a conversation about *topic*."""
    asked, answered = topic.turns[min(turn, len(topic.turns) - 1)]
    order = str(dice.randrange(1000, 9999))
    return asked.replace("{order}", order), answered.replace("{order}", order)

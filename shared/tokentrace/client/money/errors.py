"""The exceptions of budgets."""

from __future__ import annotations

from tokentrace.errors import TokentraceError, Unavailable


class BudgetExceeded(TokentraceError):
    """
    The limit of a budget is exceeded, or would be by the amount that was asked for.

    Args:
        spent_usd: What was spent, US dollars.
        max_usd: The limit, US dollars.
        reserved_usd: What is reserved for calls that are under way, US dollars.
        asked_usd: The amount that was not reserved, US dollars; None = a cost was added and exceeded the limit.
        name: The name of the budget; "" = it has none.

    Attributes:
        spent_usd, max_usd, reserved_usd, asked_usd: As above, US dollars.
        name: As above.
    """

    def __init__(
        self,
        spent_usd: float,
        max_usd: float,
        *,
        reserved_usd: float = 0.0,
        asked_usd: float | None = None,
        name: str = "",
    ) -> None:
        self.spent_usd, self.max_usd = spent_usd, max_usd
        self.reserved_usd, self.asked_usd, self.name = reserved_usd, asked_usd, name
        budget = f"budget {name}" if name else "budget"
        text = f"{budget}: {_shown(spent_usd)} USD spent"
        if reserved_usd:
            text += f" and {_shown(reserved_usd)} USD reserved"
        text += f", the limit is {_shown(max_usd)} USD"
        super().__init__(text if asked_usd is None else f"{text}: {_shown(asked_usd)} USD more do not fit")

    def __reduce__(self) -> tuple[object, ...]:
        return _exceeded, (self.spent_usd, self.max_usd, self.reserved_usd, self.asked_usd, self.name)


class BudgetUnavailable(Unavailable):
    """
    A shared budget cannot be asked now, and its ``if_unavailable`` is ``refuse``; or nothing here can read its state.

    Args:
        message: What does not work.
        retry_after_s: When to try again, seconds.
    """


def _exceeded(
    spent_usd: float, max_usd: float, reserved_usd: float, asked_usd: float | None, name: str
) -> BudgetExceeded:
    return BudgetExceeded(spent_usd, max_usd, reserved_usd=reserved_usd, asked_usd=asked_usd, name=name)


def _shown(usd: float) -> str:
    """Return an amount with at least two decimals, without an exponent."""
    whole, _, decimals = f"{usd:.9f}".rstrip("0").partition(".")
    return f"{whole}.{decimals:0<2}"

"""The parameters that filter lists, exports and live tails."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tokentrace.units import ms_to_ns, usd_to_nusd
from tokentrace_api.parameters import KIND_NAMES, Amount, AttributeParams, LastMoment, Moment, Text, choice, with_ids
from tokentrace_api.reads import Search

_Status: Any = choice(("ok", "error", "timeout"))
_Kind: Any = choice(KIND_NAMES)


class SearchParams(AttributeParams):
    """The filters for spans; a single span must match all of them."""

    model: Text = Field(
        None,
        description="Model, as the provider names it; empty or `unknown` = spans without one.",
        examples=["gpt-4o"],
    )
    caller: Text = Field(
        None, description="Calling service or function; empty or `unknown` = spans without one.", examples=["checkout"]
    )
    status: _Status = Field(None, description="Status of the span.", examples=["error"])
    provider: Text = Field(
        None, description="Provider of the model; empty or `unknown` = spans without one.", examples=["openai"]
    )
    name: Text = Field(None, description="Name of the span.", examples=["answer question"])
    kind: _Kind = Field(None, description="Kind of span.", examples=["llm"])
    session: Text = Field(None, description="Session id; empty = spans without a session.", examples=["s1"])
    session_id: Text = Field(None, description="The same as `session`.", examples=["s1"])
    user: Text = Field(None, description="User id; empty = spans without a user.", examples=["u-7"])
    user_id: Text = Field(None, description="The same as `user`.", examples=["u-7"])
    min_cost: Amount = Field(None, description="Least cost, US dollars.", examples=[0.01])
    min_latency: Amount = Field(None, description="Least latency, milliseconds.", examples=[1000])
    q: Text = Field(
        None,
        description="Text that the name or the error contains; upper and lower case are equal.",
        examples=["rate limit"],
    )
    since: Moment = Field(None, description="Started at or after this instant.", examples=["2026-03-15T14:00:00Z"])
    until: LastMoment = Field(
        None,
        description="Started at or before this instant; one of whole milliseconds includes its millisecond.",
        examples=["2026-03-15T15:00:00Z"],
    )

    def search(self) -> Search:
        """Return the filters as a ``Search``."""
        columns = {
            "model": self.model,
            "caller": self.caller,
            "status": self.status,
            "provider": self.provider,
            "name": self.name,
            "kind": self.kind,
        }
        least = {}
        if self.min_cost is not None:
            least["cost_nusd"] = usd_to_nusd(self.min_cost)
        if self.min_latency is not None:
            least["latency_ns"] = ms_to_ns(self.min_latency)
        return Search(
            columns={column: value for column, value in columns.items() if value is not None},
            attributes=with_ids(
                self.attributes,
                {"session": self.session, "session_id": self.session_id, "user": self.user, "user_id": self.user_id},
            ),
            least=least,
            text=self.q or "",
            since_ns=self.since,
            until_ns=self.until,
        )

"""
A recount of calls from what their senders kept: which tellings of a call count, and what those that count add up to.

It is written from the documented rules alone and imports nothing of the product, so that it can disagree with it.

A telling is one JSON span of ``POST /spans``, with ``response_id`` and ``scope`` where the sender knows them. Every
telling in the input has ``started_at`` and ``ended_at`` in whole milliseconds, and either a cost in ``cost_usd`` or a
model without a known price.

The rules, in the order of the log:

* A batch of a reporter that was read before, by its id and number, is left out as a whole.
* A call is known by the id of its response, if it is a model call that used tokens, else by the ids of its span.
* Of the newest ``calls`` calls that were counted, one with the same id is the same call if it has the same ids of the
  span; or if the two intervals are close: 60 s for a long id, 5 s for a short one, and then only if the usage is equal
  and the telling came in another way.
* A telling without usage never hides one with usage.
* The first telling of a call counts. A repetition neither counts nor makes its call newer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

MODEL_KINDS = ("llm", "embedding")
ROLLUP_KINDS = ("http", "agent", "workflow", "chain")
LONG_MS, SHORT_MS = 60_000, 5_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Sent(NamedTuple):
    """
    A batch as its sender kept it.

    Attributes:
        way: How it was sent: reporter, spans, nats, mist or costkatana.
        spans: JSON spans.
        sender: The reporter; "" = the batch is a request.
        number: The reporter's number of the batch, from 1; 0 = the batch is a request.
        request: The Idempotency-Key, or another name of this request that no other request has.
    """

    way: str
    spans: list[dict[str, Any]]
    sender: str = ""
    number: int = 0
    request: str = ""


class Call(NamedTuple):
    """
    A telling that was read.

    Attributes:
        key: By what the call is known.
        ids: Trace and span.
        span: The JSON span.
        start_ms, end_ms: Unix milliseconds.
        cost: Nano-dollars; None = unknown.
        usage: Everything that was used; () = nothing is known.
        way: The way in and the scope.
    """

    key: tuple[str, ...]
    ids: tuple[str, str]
    span: dict[str, Any]
    start_ms: int
    end_ms: int
    cost: int | None
    usage: tuple[Any, ...]
    way: tuple[str, str]

    @property
    def kind(self) -> str:
        """The kind of the call."""
        return str(self.span.get("kind", "llm"))

    @property
    def pays(self) -> bool:
        """Whether its money and tokens are added to sums."""
        return self.kind not in ROLLUP_KINDS

    def text(self, name: str) -> str:
        """Return the field *name*, ``unknown`` if it is empty."""
        return str(self.span.get(name) or "unknown")

    def tokens(self, name: str) -> int:
        """Return prompt_tokens, comp_tokens or total_tokens."""
        return _tokens(self.span)[name]


def _tokens(span: Mapping[str, Any]) -> dict[str, int]:
    prompt, completion = int(span.get("prompt_tokens", 0)), int(span.get("comp_tokens", 0))
    total = int(span.get("total_tokens", 0)) or prompt + completion
    return {"prompt_tokens": prompt, "comp_tokens": completion, "total_tokens": total}


def milliseconds(instant: str) -> int:
    """Return an RFC 3339 instant as Unix milliseconds."""
    return (datetime.fromisoformat(instant) - _EPOCH) // timedelta(milliseconds=1)


def nano_dollars(usd: object) -> int:
    """Return a number of dollars, as it stands in JSON, in nano-dollars."""
    return int((Decimal(str(usd)) * 10**9).to_integral_exact())


def is_usable(response_id: str) -> bool:
    """Return True if a response can be known by *response_id*."""
    return 0 < len(response_id) <= 256 and all("!" <= sign <= "~" and sign not in "()[]{}<>" for sign in response_id)


def is_long(response_id: str) -> bool:
    """Return True if *response_id* has 12 letters and digits without a prefix such as ``chatcmpl-``."""
    letters = 0
    while letters < len(response_id) and response_id[letters].isalpha():
        letters += 1
    has_prefix = 2 <= letters <= 16 and response_id[letters : letters + 1] in ("-", "_")
    rest = response_id[letters + 1 :] if has_prefix else response_id
    return sum(sign.isalnum() for sign in rest) >= 12


def call_of(span: dict[str, Any], sent: Sent, index: int) -> Call:
    """Return what is known of the *index*-th span of *sent*."""
    kind, tokens = span.get("kind", "llm"), _tokens(span)
    usage = (*tokens.values(), *(span.get(name, 0) for name in ("cache_read_tokens", "reasoning_tokens")))
    made = f"made for {sent.sender} {sent.number} {sent.request} {index}"
    ids = (str(span.get("trace_id", made)), str(span.get("span_id", made)))
    cost = nano_dollars(span["cost_usd"]) if "cost_usd" in span else None
    if cost is None and kind not in MODEL_KINDS:
        cost = 0
    response_id = span.get("response_id", "")
    known_by_response = kind in MODEL_KINDS and any(tokens.values()) and is_usable(response_id)
    return Call(
        key=("response", response_id) if known_by_response else ("span", *ids),
        ids=ids,
        span=span,
        start_ms=milliseconds(span["started_at"]),
        end_ms=milliseconds(span["ended_at"]),
        cost=cost,
        usage=usage if any(usage) or cost is not None else (),
        way=(sent.way, span.get("scope", "")),
    )


class Recount:
    """
    The calls that count.

    Args:
        calls: How many of the newest calls a reader remembers; with several shards, more than there are.

    Attributes:
        counted: The first telling of each call, in the order of the log.
        repeated, conflicting: Tellings that do not count, and those of them with another usage or cost.
        reused: How many calls were counted although another one had the same response id.
        reported: Number of spans in batches of reporters that were not read before.
        later: Number of the telling in ``counted`` -> how often the call was told again.
    """

    def __init__(self, calls: int) -> None:
        self._newest: deque[tuple[int, Call]] = deque(maxlen=calls)
        self._batches: set[tuple[str, int]] = set()
        self.counted: list[Call] = []
        self.repeated: list[Call] = []
        self.conflicting: list[Call] = []
        self.reused = self.reported = 0
        self.later: dict[int, int] = {}

    @property
    def remembered(self) -> int:
        """The number of calls that a reader remembers."""
        return len(self._newest)

    def read(self, sent: Sent) -> None:
        """Read the next batch of the log."""
        if sent.number:
            if (sent.sender, sent.number) in self._batches:
                return
            self._batches.add((sent.sender, sent.number))
            self.reported += len(sent.spans)
        for index, span in enumerate(sent.spans):
            self._take(call_of(span, sent, index))

    def _take(self, call: Call) -> None:
        same_key = [(n, told) for n, told in reversed(self._newest) if told.key == call.key]
        rivals = [(n, told) for n, told in same_key if told.usage or not call.usage]
        for number, told in rivals:
            if is_same_call(told, call):
                self.repeated.append(call)
                self.later[number] = self.later.get(number, 0) + 1
                if (told.usage, told.cost) != (call.usage, call.cost):
                    self.conflicting.append(call)
                return
        self.reused += bool(rivals)
        self._newest.append((len(self.counted), call))
        self.counted.append(call)

    def between(self, from_s: int, to_s: int) -> list[Call]:
        """Return the calls that count and ended from *from_s* until before *to_s*, Unix seconds."""
        return [call for call in self.counted if from_s <= call.end_ms // 1000 < to_s]


def is_same_call(told: Call, call: Call) -> bool:
    """Return True if *call*, whose key is that of *told*, tells the same call again."""
    if told.ids == call.ids:
        return True
    is_response = call.key[0] == "response"
    far = LONG_MS if is_response and is_long(call.key[1]) else SHORT_MS
    if call.start_ms > told.end_ms + far or told.start_ms > call.end_ms + far:
        return False
    return far == LONG_MS or (told.usage == call.usage and told.way != call.way)


class Sums(NamedTuple):
    """
    What some calls add up to.

    Attributes:
        spans: Number of all of them.
        cost: Nano-dollars; None = none of them pays and has a known cost.
        unpriced: Number of those that pay and whose cost is unknown.
        paid: Number of those that pay.
        prompt, completion, total: Tokens of those that pay; None = there are none.
    """

    spans: int
    cost: int | None
    unpriced: int
    paid: int
    prompt: int | None
    completion: int | None
    total: int | None


def sums_of(calls: Iterable[Call]) -> Sums:
    """Return the sums of *calls*."""
    every = list(calls)
    paying = [call for call in every if call.pays]
    known = [call.cost for call in paying if call.cost is not None]

    def tokens(name: str) -> int | None:
        return sum(call.tokens(name) for call in paying) if paying else None

    return Sums(
        spans=len(every),
        cost=sum(known) if known else None,
        unpriced=len(paying) - len(known),
        paid=len(paying),
        prompt=tokens("prompt_tokens"),
        completion=tokens("comp_tokens"),
        total=tokens("total_tokens"),
    )


def grouped(calls: Iterable[Call], key: Callable[[Call], str]) -> dict[str, list[Call]]:
    """Return the calls by *key*."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(key(call), []).append(call)
    return groups

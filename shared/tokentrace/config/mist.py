"""``mist``: the endpoint for messages of MIST."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tokentrace.config.section import Section, without_effect


class Mist(Section, frozen=True, kw_only=True):
    """The endpoint for messages of MIST."""

    require_auth: Annotated[
        bool, Meta(description="Require the bearer token for POST /mist. MIST's Go clients cannot send one.")
    ] = False
    accept_eval_result: Annotated[
        bool, without_effect("Take messages of type eval.result.", "only messages of type trace.span are taken")
    ] = False

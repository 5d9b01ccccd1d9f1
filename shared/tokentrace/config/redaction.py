"""``redaction``: which values are removed from every record before it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from tokentrace.config.section import Section

if TYPE_CHECKING:
    from tokentrace.redact import Redactor


class Redaction(Section, frozen=True, kw_only=True):
    """Which values are removed from every record before it is stored."""

    mode: Annotated[
        Literal["redact", "metadata_only", "off"],
        Meta(
            description="redact: replace secrets; metadata_only: also drop the text of messages, prompts and answers; "
            "off: change nothing."
        ),
    ] = "redact"
    keys: Annotated[list[str], Meta(description="More keys whose values are secrets.")] = msgspec.field(
        default_factory=list
    )
    replace: Annotated[bool, Meta(description="Use only the keys in `keys`, not the built-in ones.")] = False
    store_raw_content: Annotated[
        bool, Meta(description="Also store the original text of messages beside the redacted text.")
    ] = False

    @property
    def redactor(self) -> Redactor:
        """The redactor with these settings."""
        from tokentrace.redact import Redactor

        return Redactor(self.keys, replace_keys=self.replace, mode=self.mode, keep_raw=self.store_raw_content)

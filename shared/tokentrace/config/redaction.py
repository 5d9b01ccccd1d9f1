"""``redaction``: which values are removed from every record before it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from tokentrace.config.section import Section
from tokentrace.errors import ConfigError

if TYPE_CHECKING:
    from tokentrace.redact import Redactor


#: Fewest characters of the key of the hash.
MIN_KEY = 16


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
    replace: Annotated[
        bool, Meta(description="Use only the keys in `keys`, not the built-in ones; `patterns` is not affected.")
    ] = False
    patterns: Annotated[
        bool, Meta(description="Also remove secrets and personal data that are recognised by their form.")
    ] = True
    hash_ids: Annotated[
        bool, Meta(description="Replace user ids, and ids in attributes, by a keyed hash; needs `hash_key`.")
    ] = False
    hash_key: Annotated[
        str, Meta(description="Secret key of the hash, the same in every process; at least 16 characters.")
    ] = ""
    store_raw_content: Annotated[
        bool, Meta(description="Also store the original text of messages beside the redacted text.")
    ] = False

    @property
    def redactor(self) -> Redactor:
        """The redactor with these settings."""
        from tokentrace.redact import Redactor

        return Redactor(
            self.keys,
            replace_keys=self.replace,
            mode=self.mode,
            keep_raw=self.store_raw_content,
            patterns=self.patterns,
            id_key=self.hash_key if self.hash_ids else "",
        )

    def check(self) -> None:
        """Raise ``ConfigError`` if ids are to be hashed without a key that is long enough."""
        if self.hash_ids and len(self.hash_key) < MIN_KEY:
            raise ConfigError(f"redaction.hash_key: {MIN_KEY} characters or more are needed with redaction.hash_ids")

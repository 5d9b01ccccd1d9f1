"""Converts files of earlier versions in place, so that their content, positions and totals stay as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokentrace_api.store.database import Database
from tokentrace_api.store.segment import SCHEMA_VERSION, Segment

#: The versions that are converted. Version 4 kept the scope of a span among the rarely set fields.
CONVERTED_VERSIONS = (3, 4)
#: The version whose rows do not say which telling of a span counts; it knew no calls.
UNTOLD_VERSION = 3
_USED = "(cost_nusd, prompt_tokens, completion_tokens, total_tokens)"
_NEW_COLUMNS = (
    "spans ADD COLUMN IF NOT EXISTS counted BOOLEAN DEFAULT true",
    "spans ADD COLUMN IF NOT EXISTS conflicting BOOLEAN DEFAULT false",
    "spans ADD COLUMN IF NOT EXISTS response_id VARCHAR DEFAULT ''",
    "spans ADD COLUMN IF NOT EXISTS scope VARCHAR",
    "folded ADD COLUMN IF NOT EXISTS layout INTEGER DEFAULT 0",
)


def later_rows(database: Database, segments: Sequence[Segment]) -> dict[str, Any]:
    """
    Return the rows that an earlier version did not show, because the same span was told again after them.

    Args:
        segments: All files of the store, of any version.

    Returns:
        Numpy columns: ``ordinal``, and ``conflicting``, true if the cost or the tokens differ from those shown.
    """
    # Spans with several rows are rare. They are found by a hash first, because sorting all rows takes much longer.
    every = " UNION ALL ".join(f"SELECT hash(trace_id, span_id) AS key FROM {each.name}.spans" for each in segments)
    keys = database.arrays(f"SELECT key FROM ({every}) GROUP BY key HAVING count(*) > 1")
    if not len(keys["key"]):
        return {}
    rows = " UNION ALL ".join(
        f"SELECT ordinal, trace_id, span_id, {_USED} AS used FROM {each.name}.spans "
        "WHERE hash(trace_id, span_id) IN (SELECT key FROM repeated)"
        for each in segments
    )
    with database.registered("repeated", keys):
        return database.arrays(
            "SELECT ordinal, used IS DISTINCT FROM first_value(used) OVER newest_first AS conflicting "
            f"FROM ({rows}) WINDOW newest_first AS (PARTITION BY trace_id, span_id ORDER BY ordinal DESC) "
            "QUALIFY row_number() OVER newest_first > 1"
        )


def convert(database: Database, segment: Segment, later: dict[str, Any]) -> None:
    """
    Convert *segment* from one of ``CONVERTED_VERSIONS``, in one transaction.

    Args:
        later: As ``later_rows`` returned it for all files; {} for a file that says which rows count.

    Raises:
        duckdb.Error: The disk refused or the file is damaged; the transaction is left open and nothing is changed.
    """
    database.run("BEGIN")
    for column in _NEW_COLUMNS:
        database.run(f"ALTER TABLE {segment.name}.{column}")
    if later:
        with database.registered("later", later):
            database.run(
                f"UPDATE {segment.name}.spans AS held SET counted = false, conflicting = later.conflicting "
                "FROM later WHERE held.ordinal = later.ordinal"
            )
    database.run(f"INSERT INTO {segment.name}.schema_version VALUES ({SCHEMA_VERSION})")
    database.run("COMMIT")

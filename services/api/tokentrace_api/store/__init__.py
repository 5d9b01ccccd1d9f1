"""
The span store: every span that arrived, in DuckDB files on the disk of the api.

**Files.** One file holds what arrived on one UTC day; a day that exceeds 1 GiB continues in a second file. Such a file
is called a *segment*. New rows are appended to the newest segment only: a span that arrives late goes there too.
There is no primary key, because an index would slow down every append. Retention removes whole files, because DuckDB
does not give the space of deleted rows back to the disk.

**Positions.** The store can be rebuilt from the log, so each segment also says how far the log has been read: the
position of every shard, and the ids of the batches that were folded (the *reader state*, which recognises duplicates).
Spans and reader state are written in one transaction. After a kill at any moment the file therefore holds exactly the
spans up to its position, and reading the log from that position neither loses nor doubles a span.

**Which state counts.** The first transaction of a new segment writes the reader state of every shard, also of shards
that had no message in it. The newest segment thus holds the state of all shards, and any older one may be removed.
When the store opens, it reads the state of the files from old to new, and newer state replaces older state.

**Scores and annotations** change the attributes of rows that are already stored, wherever they are. A transaction can
write to one file only; rows in older files are updated first, then the newest file's transaction commits. If the
process dies between the two, the update is applied again when the log is read on, with the same result. An update whose
span has not arrived yet waits in the table ``amendments``.

**Deletions.** A tombstone deletes a trace, a session or a user. The rows of its target are removed from every file, and
records of that target that arrived before it are skipped whenever the log is read again. The store itself does not keep
tombstones: its caller reads all of them from the log and applies them before anything else is appended or shown.

**A full or read-only disk** is not damage. The call raises ``Unavailable``; nothing of the failed transaction is
stored, and the same call succeeds once the disk accepts writes again. Before the next write the store reads the state
of the files again, since its memory may be ahead of them. A database that DuckDB has invalidated is reopened.

**A damaged file** is renamed to ``<name>.damaged-<time>`` and kept. If it was the newest one, its content is read from
the log again; otherwise the positions of the newer files stay valid and its content is no longer shown. After a crash
the newest file is read completely before it is trusted. If damage is found while the store is open, its callers may
have read the log past what the remaining files hold; ``StoreDamaged`` then tells them to open the store again and to
continue from its positions.

**Threads.** One thread writes, any number of threads query, and a query never waits for the writer. A query that meets
a file being removed is repeated over the files that are left.

Modules: ``store`` (the public class), ``catalog`` (open files and their state), ``append``, ``span_updates``,
``deletions``, ``retention``, ``visible`` (queries), ``reader_state``, ``segment`` (file names and tables), ``columns``
(a span as a row), ``database`` (DuckDB).
"""

from tokentrace_api.store.append import Item
from tokentrace_api.store.catalog import StoreDamaged
from tokentrace_api.store.columns import (
    COLUMNS,
    ONE_TELLING,
    Telling,
    attribute_is,
    attribute_text,
    columns_of,
    span_of,
    telling_of,
    trace_hash,
)
from tokentrace_api.store.database import Database
from tokentrace_api.store.deletions import USER_OF_SPAN
from tokentrace_api.store.segment import MESSAGES, STARTED, Segment, day_of
from tokentrace_api.store.store import Store
from tokentrace_api.store.text import contains_text, folded

__all__ = [
    "COLUMNS",
    "MESSAGES",
    "ONE_TELLING",
    "STARTED",
    "USER_OF_SPAN",
    "Database",
    "Item",
    "Segment",
    "Store",
    "StoreDamaged",
    "Telling",
    "attribute_is",
    "attribute_text",
    "columns_of",
    "contains_text",
    "day_of",
    "folded",
    "span_of",
    "telling_of",
    "trace_hash",
]

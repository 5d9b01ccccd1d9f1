"""
Rollups: the sums and distributions from which every window over the last 31 days is answered.

**What is stored.** A span becomes one row of integers: the number of its series (one combination of kind, model,
provider, caller, name and status; ``series.py``), the second in which it counts, and its values (``rows.py``). There is
one bucket for every second, ten seconds, minute, ten minutes, hour, six hours and day. It holds the sums and the
histograms of each series that occurred in it (``bucket.py``). Buckets of a second are kept for 20 minutes, those of an
hour and longer for 31 days (``resolutions.py``).

**How a row is added** (``rollup.py``). Rows wait until there are 8,192 of them or their sums are needed, because numpy
groups thousands of rows in about the time of ten. They are sorted by (second, series), added up, and stored in the
buckets of one second. These sums, not the rows, are then added up to sums over ten seconds, and so on: most rows are
grouped once instead of seven times, and all resolutions agree.

**Sums** (``int_sums.py``) are exact integers. They are int64 while that is enough; where a column could overflow, its
upper bits move to a second array. A bucket that ended 30 seconds ago is packed into as few bytes as its numbers need.

**Distributions** (``histograms.py``, ``quantile.py``) are counts per bin, where a bin is about 1.1 % wide. All
distributions of all series of a bucket share one sorted block. The most recent values of each series are also kept
unrounded (``recent_values.py``), so that quantiles of up to 100 values are exact in windows that end now. The unrounded
values are used only if their number equals the count in the buckets; otherwise the histogram is used.

**Extremes** (``extremes.py``). The smallest and the largest value of each distribution are kept beside its histogram,
so that a quantile is never outside the range of the values.

**Reading** (``reader.py``). ``cover`` finds the fewest buckets that make up an interval: wide ones in the middle and
narrow ones at the edges. ``BucketReader`` adds up their sums and merges their histograms by group of series.

**Late scores** (``score_changes.py``). A score that is given after its span was counted becomes up to two rows: one
removes the old value, one adds the new value. Removed values have separate histograms, because counts are unsigned. The
span may have been counted by another shard, so one shard alone may hold negative numbers; only the sum over all shards
is meaningful.

**Too many series** (``series.py``, ``folded.py``). The first 500 models and 100 providers are kept apart, and later
ones are counted as ``other``. If there are 1,500 series with a name, a new combination is counted under the name
``other``; if there are 500 with a caller only, under the caller ``other`` too. So the number of series is bounded,
totals are exact, and so are the values by a model that is kept apart. The table knows which values are exact, so that
no answer shows a part as the whole.

**Cumulative counters** (``cumulative.py``) count everything since the stream began. Eviction does not affect them.

**Snapshots.** The buckets of a resolution are saved in about 16 pieces. A piece has a revision. A piece that did not
change since the last snapshot is not saved again, so a snapshot every minute writes only the recent pieces.
"""

from tokentrace.rollup.cumulative import (
    HISTOGRAMS,
    LATENCY_EDGES_MS,
    PLACES,
    TOKEN_EDGES,
    WALL_EDGES_MS,
    Counters,
    CumulativeCounters,
    histogram_quantile_ms,
)
from tokentrace.rollup.folded import DistinctCount, distinct, merge_registers
from tokentrace.rollup.int_sums import IntSums, add_by, add_together
from tokentrace.rollup.quantile import (
    MAX_BIN,
    RAW_LIMIT,
    RELATIVE_ERROR,
    SCALE,
    Histogram,
    Ints,
    Summary,
    bins_of,
    check_summaries,
    merge,
    percentile,
    values_of,
)
from tokentrace.rollup.reader import Steps
from tokentrace.rollup.resolutions import (
    HORIZON_NS,
    RESOLUTIONS,
    Resolution,
    Stretch,
    cover,
    cover_in_steps,
    finest_step_s,
)
from tokentrace.rollup.rollup import Rollup, decode_part
from tokentrace.rollup.rows import (
    ADDED,
    ARRIVED,
    CHANGED,
    CLAMPED,
    COST_SUMS,
    COUNTED,
    FIELDS,
    REASON,
    REASONS,
    SECOND_OF,
    SERIES,
    SIGN,
    SPAN_SCHEMA,
    STATUS,
    TOKEN_SUMS,
    WIDTH,
    Field,
    Schema,
    Sums,
    rows_of,
    sums_of,
)
from tokentrace.rollup.score_changes import ScoreDelta, change_rows, changes_in, score_rows
from tokentrace.rollup.series import (
    DIMENSIONS,
    FOLDABLE,
    MAX_MODELS,
    MAX_PROVIDERS,
    MAX_SERIES,
    OTHER,
    UNKNOWN,
    SeriesTable,
)

__all__ = [
    "ADDED",
    "ARRIVED",
    "CHANGED",
    "CLAMPED",
    "COST_SUMS",
    "COUNTED",
    "DIMENSIONS",
    "FIELDS",
    "FOLDABLE",
    "HISTOGRAMS",
    "HORIZON_NS",
    "LATENCY_EDGES_MS",
    "MAX_BIN",
    "MAX_MODELS",
    "MAX_PROVIDERS",
    "MAX_SERIES",
    "OTHER",
    "PLACES",
    "RAW_LIMIT",
    "REASON",
    "REASONS",
    "RELATIVE_ERROR",
    "RESOLUTIONS",
    "SCALE",
    "SECOND_OF",
    "SERIES",
    "SIGN",
    "SPAN_SCHEMA",
    "STATUS",
    "TOKEN_EDGES",
    "TOKEN_SUMS",
    "UNKNOWN",
    "WALL_EDGES_MS",
    "WIDTH",
    "Counters",
    "CumulativeCounters",
    "DistinctCount",
    "Field",
    "Histogram",
    "IntSums",
    "Ints",
    "Resolution",
    "Rollup",
    "Schema",
    "ScoreDelta",
    "SeriesTable",
    "Steps",
    "Stretch",
    "Summary",
    "Sums",
    "add_by",
    "add_together",
    "bins_of",
    "change_rows",
    "changes_in",
    "check_summaries",
    "cover",
    "cover_in_steps",
    "decode_part",
    "distinct",
    "finest_step_s",
    "histogram_quantile_ms",
    "merge",
    "merge_registers",
    "percentile",
    "rows_of",
    "score_rows",
    "sums_of",
    "values_of",
]

"""What the service counts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from headrace.telemetry import names

EVENTS: Final = Counter(
    names.METRIC_INGESTION_EVENTS.removesuffix("_total"),
    "Events read, whatever became of them; an event that is delivered again counts again",
)
ROWS: Final = Counter(
    names.METRIC_INGESTION_ROWS.removesuffix("_total"), "Rows stored, by dataset", ["dataset"]
)
REJECTED: Final = Counter(
    names.METRIC_INGESTION_REJECTED.removesuffix("_total"), "Events rejected, by reason", ["reason"]
)
DUPLICATES: Final = Counter(
    names.METRIC_INGESTION_DUPLICATES.removesuffix("_total"),
    "Events left out because their producer had sent them before, by dataset",
    ["dataset"],
)
RESOLVED: Final = Counter(
    names.METRIC_INGESTION_RESOLVED.removesuffix("_total"),
    "Rejected events that were replayed or discarded, by state",
    ["state"],
)
REJECT_SHARE: Final = Gauge(
    names.METRIC_INGESTION_REJECT_SHARE,
    "Of a dataset's events within its window, the share that was rejected and waits; absent where it is 0",
    ["dataset"],
)
REJECT_ALERT: Final = Gauge(
    names.METRIC_INGESTION_REJECT_ALERT,
    "1 while a dataset's rejected events raise an alert; absent where there are none",
    ["dataset"],
)
CUT_HELD: Final = Gauge(
    names.METRIC_INGESTION_CUT_HELD,
    "1 while a dataset's rejected events hold back a cut that is due; absent where there are none",
    ["dataset"],
)
VERSIONS: Final = Counter(
    names.METRIC_INGESTION_VERSIONS.removesuffix("_total"), "Versions cut, by dataset", ["dataset"]
)
CLAIMED_BYTES: Final = Counter(
    names.METRIC_INGESTION_CLAIMED_BYTES.removesuffix("_total"),
    "Bytes of payloads that were fetched from the object store and are what their events claim",
)
REMOVED_CLAIMS: Final = Counter(
    names.METRIC_INGESTION_REMOVED_CLAIMS.removesuffix("_total"),
    "Claimed payloads that were removed from the object store for their age",
)
BATCH_EVENTS: Final = Histogram(
    names.METRIC_INGESTION_BATCH_EVENTS,
    "Events in a batch",
    buckets=(1, 10, 100, 1_000, 5_000, 10_000, 20_000, 50_000, 100_000),
)
BATCH_SECONDS: Final = Histogram(
    names.METRIC_INGESTION_BATCH_SECONDS, "From a batch's last event to its commit"
)
BATCH_FAILURES: Final = Counter(
    names.METRIC_INGESTION_BATCH_FAILURES.removesuffix("_total"),
    "Attempts to store a batch that failed and were repeated",
)
LAG: Final = Gauge(
    names.METRIC_INGESTION_LAG, "Events that are in the topic and not yet in a batch", ["topic", "partition"]
)
FRESHNESS: Final = Histogram(
    names.METRIC_INGESTION_FRESHNESS,
    "From a batch's first event's arrival in the topic to its visibility in the table",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
)
DATASET_FRESHNESS: Final = Gauge(
    names.METRIC_INGESTION_DATASET_FRESHNESS,
    "Of the last batch with rows for a dataset: from its first event's arrival to its visibility",
    ["dataset"],
)
EVENT_AGE: Final = Gauge(
    names.METRIC_INGESTION_EVENT_AGE,
    "Of the last batch with rows for a dataset: from its newest event's own time to its visibility",
    ["dataset"],
)
COMMIT_SECONDS: Final = Histogram(
    names.METRIC_INGESTION_COMMIT_SECONDS,
    "Writing and committing a batch's rows of one dataset, conflicts included",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
TABLE_FILES: Final = Gauge(
    names.METRIC_INGESTION_TABLE_FILES, "Files of a dataset's table, as maintenance last saw it", ["dataset"]
)
MERGED_FILES: Final = Counter(
    names.METRIC_INGESTION_MERGED_FILES.removesuffix("_total"),
    "Small files that were merged into larger ones, by dataset",
    ["dataset"],
)
MERGED_BYTES: Final = Counter(
    names.METRIC_INGESTION_MERGED_BYTES.removesuffix("_total"),
    "Bytes of the small files that were merged, by dataset",
    ["dataset"],
)
REMOVED_FILES: Final = Counter(
    names.METRIC_INGESTION_REMOVED_FILES.removesuffix("_total"),
    "Files that no version and no reader needed any more, by dataset",
    ["dataset"],
)
MAINTENANCE_FAILURES: Final = Counter(
    names.METRIC_INGESTION_MAINTENANCE_FAILURES.removesuffix("_total"),
    "Rounds of maintenance of a table that failed and are repeated",
)
EXPIRED_EVENTS: Final = Counter(
    names.METRIC_INGESTION_EXPIRED_EVENTS.removesuffix("_total"),
    "Events left out because they are older than their dataset keeps rows, by dataset",
    ["dataset"],
)
EXPIRED_ROWS: Final = Counter(
    names.METRIC_INGESTION_EXPIRED_ROWS.removesuffix("_total"),
    "Rows that were taken out of a table for their age, by dataset",
    ["dataset"],
)
EXPIRED_VERSIONS: Final = Counter(
    names.METRIC_INGESTION_EXPIRED_VERSIONS.removesuffix("_total"),
    "Versions that were forgotten for their age, by dataset",
    ["dataset"],
)
EXPIRED_REJECTED: Final = Counter(
    names.METRIC_INGESTION_EXPIRED_REJECTED.removesuffix("_total"),
    "Rejected events that were removed for their age, by dataset and by the state that they were in",
    ["dataset", "state"],
)
EXPIRY_FAILURES: Final = Counter(
    names.METRIC_INGESTION_EXPIRY_FAILURES.removesuffix("_total"),
    "Attempts to remove what is old that failed and are repeated",
)

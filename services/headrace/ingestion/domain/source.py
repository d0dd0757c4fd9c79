"""The columns that say where a row came from."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

SOURCE_COLUMNS: Final = pa.schema(
    [
        ("_event_id", pa.string()),
        ("_event_source", pa.string()),
        ("_event_time", pa.timestamp("us", "UTC")),
        ("_cluster", pa.string()),
        ("_topic", pa.string()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_traceparent", pa.string()),
    ]
)
"""Beside the schema's own columns, whose names never begin with "_"."""

"""A process that merges a table's files and removes unneeded ones once, for tests that kill or measure it.

It writes how many bytes Arrow held at most.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
from tests.component.ingestion.test_delta_tables import DATASET

from headrace.ingestion.storage.maintenance import DeltaMaintenance
from headrace.runtime.clock import utc_now

if __name__ == "__main__":
    root, cut, target_bytes = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    maintenance = DeltaMaintenance(
        lambda name: (root / name).as_uri(),
        {},
        clock=utc_now,
        target_bytes=target_bytes,
        min_files=3,
        retention_hours=0,
    )
    while maintenance.merge(DATASET).merged:
        pass
    maintenance.remove_unneeded(DATASET, cut)
    print(pa.default_memory_pool().max_memory())

"""A process that merges a table's files and removes unneeded ones once, for tests that kill it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.component.ingestion.test_delta_tables import DATASET

from headrace.ingestion.storage.maintenance import DeltaMaintenance
from headrace.runtime.clock import utc_now

if __name__ == "__main__":
    root, cut = Path(sys.argv[1]), json.loads(sys.argv[2])
    maintenance = DeltaMaintenance(
        lambda name: (root / name).as_uri(),
        {},
        clock=utc_now,
        target_bytes=1 << 20,
        min_files=3,
        retention_hours=0,
    )
    while maintenance.merge(DATASET).merged:
        pass
    maintenance.remove_unneeded(DATASET, cut)

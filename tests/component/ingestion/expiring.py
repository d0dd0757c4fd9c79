"""A process that takes old rows out of a table once, for tests that kill it."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from tests.component.ingestion.test_delta_tables import DATASET

from headrace.ingestion.storage.expiry import DeltaExpiry
from headrace.runtime.clock import utc_now

if __name__ == "__main__":
    root, before = Path(sys.argv[1]), datetime.fromisoformat(sys.argv[2])
    expiry = DeltaExpiry(lambda name: (root / name).as_uri(), {}, clock=utc_now)
    while expiry.expire_rows(DATASET, before).more:
        pass

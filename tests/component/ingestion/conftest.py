from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.ingestion import Ingestion


@pytest.fixture
async def ingestion(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[Ingestion]:
    environment = Ingestion(kafka_bootstrap, postgres_dsn, store_uri, tmp_path)
    yield environment
    await environment.close()

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.scheduling import Process, Scheduling, Stub, play_peers, stub_of


@pytest.fixture
async def scheduling(kafka_bootstrap: str, postgres_dsn: str, tmp_path: Path) -> AsyncIterator[Scheduling]:
    async with play_peers() as peers:
        scheduling = Scheduling(kafka_bootstrap, postgres_dsn, tmp_path, peers)
        yield scheduling
        await scheduling.close()


@pytest.fixture
async def service(scheduling: Scheduling) -> Process:
    return await scheduling.start_ready()


@pytest.fixture
async def stub(service: Process) -> AsyncIterator[Stub]:
    async with stub_of(service) as stub:
        yield stub

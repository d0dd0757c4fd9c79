from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.support.ingestion import Headers, Ingestion
from tests.support.proxy import proxied
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


def record(ingestion: Ingestion, number: int, radius: float = 1) -> tuple[bytes, bytes, Headers]:
    row = {"id": f"p{number}", "radius": radius, "grade": 1, "malignant": 0}
    return b"p", json.dumps(row).encode(), ingestion.headers(f"{ingestion.dataset}-{number:03}")


async def test_while_postgresql_is_away_nothing_is_lost(ingestion: Ingestion) -> None:
    async with proxied(ingestion.dsn) as (proxy, dsn):
        behind = replace(ingestion, dsn=dsn)
        process = await behind.start_ready(HEADRACE_INGESTION_RETRY_SECONDS="0.5")
        ingestion.processes = behind.processes
        await behind.apply(process, rows=5, seconds=1)
        await behind.publish([record(behind, number) for number in range(5)])
        await eventually(behind.rows, lambda rows: len(rows) == 5)

        await proxy.cut()
        await behind.publish([record(behind, number, radius=-(number % 2)) for number in range(5, 15)])

        async def unready() -> bool:
            return not await process.is_ready()

        await eventually(unready, bool)
        await proxy.open()

        await eventually(process.is_ready, bool)
        rows = await eventually(behind.rows, lambda rows: len(rows) >= 10)
        rejected = await eventually(lambda: behind.rejected(process), lambda rejected: len(rejected) >= 5)
        assert (len(rows), len(rejected)) == (10, 5)
        await eventually(
            lambda: behind.versions(process), lambda versions: bool(versions) and versions[-1].row_count == 10
        )
        assert await process.stop() == 0

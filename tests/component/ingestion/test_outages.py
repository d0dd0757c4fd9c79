from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.brokers import new_broker
from tests.support.ingestion import Headers, Ingestion
from tests.support.proxy import proxied
from tests.support.waiting import eventually

from headrace.embedded.parts.kafka import ApacheKafka
from headrace.messaging.topics import ensure_topics, load_topics

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


async def test_a_broker_that_stops_and_comes_back_loses_nothing_that_it_keeps(
    postgres_dsn: str, store_uri: str, tmp_path: Path
) -> None:
    """The embedded one keeps nothing: it comes back as another cluster, whose offsets begin again."""
    broker = new_broker(tmp_path)
    ingestion = Ingestion(broker.bootstrap, postgres_dsn, store_uri, tmp_path)
    await broker.start()
    try:
        await ensure_topics(broker.bootstrap, load_topics().values())
        process = await ingestion.start_ready(HEADRACE_INGESTION_RETRY_SECONDS="0.5")
        await ingestion.apply(process)
        await ingestion.publish([record(ingestion, number) for number in range(5)])
        await eventually(ingestion.rows, lambda rows: len(rows) == 5)
        numbers = [*range(5)]
        if isinstance(broker, ApacheKafka):
            # In the topic, and read by nobody before it stops.
            process.process.send_signal(signal.SIGSTOP)
            await ingestion.publish([record(ingestion, number) for number in range(5, 10)])
            numbers += range(5, 10)
        await broker.stop()
        process.process.send_signal(signal.SIGCONT)
        await broker.start()
        await ensure_topics(broker.bootstrap, load_topics().values())
        # Its producer sends one of them again.
        repeated = [9] if isinstance(broker, ApacheKafka) else []
        await ingestion.publish([record(ingestion, number) for number in [*repeated, *range(10, 15)]])
        numbers += range(10, 15)
        rows = await eventually(ingestion.rows, lambda rows: len(rows) >= len(numbers))
        assert [row["_event_id"] for row in rows] == [f"{ingestion.dataset}-{n:03}" for n in numbers]
        assert await process.stop() == 0
    finally:
        await ingestion.close()
        await broker.stop()

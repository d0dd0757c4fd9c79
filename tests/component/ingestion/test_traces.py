from __future__ import annotations

import json
import uuid

import pytest
from tests.support.ingestion import Headers, Ingestion, free_port
from tests.support.otlp import collecting
from tests.support.waiting import eventually

from headrace.messaging import topics

pytestmark = pytest.mark.broker

# Other tests' events, which the process reads too, have traces of their own.
FIRST = (uuid.uuid4().hex, "b7ad6b7169203331")
SECOND = (uuid.uuid4().hex, "c8ad6b7169203332")


def traced(ingestion: Ingestion, number: int, trace: tuple[str, str]) -> tuple[bytes, bytes, Headers]:
    row = {"id": "p", "radius": 1, "grade": number, "malignant": 0}
    traceparent = f"00-{trace[0]}-{trace[1]}-01"
    headers = ingestion.headers(f"{ingestion.dataset}-{number}", traceparent=traceparent)
    return b"same", json.dumps(row).encode(), headers


async def test_one_trace_leads_from_the_first_sample_to_the_version(ingestion: Ingestion) -> None:
    async with collecting() as collector:
        process = await ingestion.start_ready(HEADRACE_OTLP_ENDPOINT=collector.endpoint)
        await ingestion.apply(process, rows=2)
        await ingestion.caught_up(process)
        await ingestion.publish([traced(ingestion, 0, FIRST), traced(ingestion, 1, SECOND)])
        [version] = await eventually(lambda: ingestion.versions(process), bool)
        [(headers, _)] = await ingestion.published(topics.DATASET_VERSIONS, 1)
        assert await process.stop() == 0
        batches = await collector.named(f"process {topics.SAMPLES}")
        [batch] = [span for span in batches if span.trace_id == FIRST[0]]
        [commit] = [
            span for span in await collector.named("commit dataset table") if span.parent_id == batch.span_id
        ]
        [cut] = await collector.named("cut dataset version")
    assert batch.service == "headrace-ingestion"
    assert batch.kind == "CONSUMER"
    assert batch.parent_id == FIRST[1]
    assert {f"{FIRST[0]}-{FIRST[1]}", f"{SECOND[0]}-{SECOND[1]}"} <= batch.links
    assert commit.trace_id == FIRST[0]
    assert (cut.trace_id, cut.parent_id) == FIRST
    assert version.traceparent == f"00-{FIRST[0]}-{FIRST[1]}-01"
    # The version's event continues from the cut.
    assert headers["traceparent"].decode() == f"00-{FIRST[0]}-{cut.span_id}-01"


async def test_a_collector_that_is_away_costs_no_event_and_no_clean_stop(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(HEADRACE_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    await ingestion.apply(process)
    await ingestion.publish([traced(ingestion, number, FIRST) for number in range(5)])
    await eventually(ingestion.rows, lambda rows: len(rows) == 5)
    assert await process.stop() == 0

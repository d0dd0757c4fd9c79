from __future__ import annotations

import json
import uuid

import pytest
from tests.support.ingestion import Headers, Ingestion
from tests.support.otlp import collecting
from tests.support.waiting import eventually

from headrace.embedded.parts import free_port
from headrace.messaging import topics

pytestmark = pytest.mark.broker

Trace = tuple[str, str]


def new_trace() -> Trace:
    """The ids of a trace and a span of it."""
    return uuid.uuid4().hex, uuid.uuid4().hex[:16]


def traced(ingestion: Ingestion, number: int, trace: Trace) -> tuple[bytes, bytes, Headers]:
    row = {"id": "p", "radius": 1, "grade": number, "malignant": 0}
    traceparent = f"00-{trace[0]}-{trace[1]}-01"
    headers = ingestion.headers(f"{ingestion.dataset}-{number}", traceparent=traceparent)
    return b"same", json.dumps(row).encode(), headers


async def test_one_trace_leads_from_the_first_sample_to_the_version(ingestion: Ingestion) -> None:
    first, second = new_trace(), new_trace()
    async with collecting() as collector:
        process = await ingestion.start_ready(HEADRACE_OTLP_ENDPOINT=collector.endpoint)
        await ingestion.apply(process, rows=2)
        await ingestion.caught_up(process)
        await ingestion.publish([traced(ingestion, 0, first), traced(ingestion, 1, second)])
        [version] = await eventually(lambda: ingestion.versions(process), bool)
        [(headers, _)] = await ingestion.published(topics.DATASET_VERSIONS, 1)
        assert await process.stop() == 0
        # A batch that is read again, after a rebalance, has a span again but commits nothing.
        commits = await collector.named("commit dataset table")
        [commit] = [span for span in commits if span.trace_id == first[0]]
        batches = await collector.named(f"process {topics.SAMPLES}")
        [batch] = [span for span in batches if span.span_id == commit.parent_id]
        [cut] = await collector.named("cut dataset version")
    assert batch.service == "headrace-ingestion"
    assert batch.kind == "CONSUMER"
    assert batch.parent_id == first[1]
    assert {f"{first[0]}-{first[1]}", f"{second[0]}-{second[1]}"} <= batch.links
    assert batch.trace_id == first[0]
    assert (cut.trace_id, cut.parent_id) == first
    assert version.traceparent == f"00-{first[0]}-{first[1]}-01"
    # The version's event continues from the cut.
    assert headers["traceparent"].decode() == f"00-{first[0]}-{cut.span_id}-01"


async def test_a_collector_that_is_away_costs_no_event_and_no_clean_stop(ingestion: Ingestion) -> None:
    trace = new_trace()
    process = await ingestion.start_ready(HEADRACE_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    await ingestion.apply(process)
    await ingestion.publish([traced(ingestion, number, trace) for number in range(5)])
    await eventually(ingestion.rows, lambda rows: len(rows) == 5)
    assert await process.stop() == 0

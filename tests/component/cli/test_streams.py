"""Commands that read the broker and the trace store themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.cli import events
from headrace.cli.main import app
from headrace.client import HeadraceClient, Targets
from headrace.embedded.trace_sink.store import SCHEMA
from headrace.errors import Unavailable
from headrace.events.scheduling.v1 import events_pb2
from headrace.messaging import topics
from headrace.messaging.events import protobuf_event
from headrace.messaging.producer import Producer
from headrace.runtime.ids import new_id

TRACE = "0af7651916cd43dd8448eb211c80319c"
START = datetime(2026, 1, 1, tzinfo=UTC)

Headrace = Callable[..., Result]


@pytest.fixture
def headrace(tmp_path: Path) -> Headrace:
    def command(*arguments: str, **environment: str) -> Result:
        env = {"HEADRACE_DATA": str(tmp_path / "no-stack"), **environment}
        return CliRunner().invoke(app, arguments, env=env)

    return command


async def publish_job(bootstrap: str, job: str) -> str:
    await topics.ensure_topics(bootstrap, topics.load_topics().values())
    event = protobuf_event(
        events_pb2.JobChanged(job=scheduling.Job(id=job, state=scheduling.JOB_STATE_RUNNING)),
        type="headrace.scheduling.job-changed.v1",
        source="headrace/scheduling",
        subject=job,
        id=new_id(),
        time=START,
        traceparent=f"00-{TRACE}-b7ad6b7169203331-01",
    )
    async with Producer(bootstrap, client_id="test", idempotence=False) as producer:
        await producer.publish(topics.JOBS, job, event)
    return event.id


@pytest.mark.broker
async def test_events_are_read_and_decoded(kafka_bootstrap: str, headrace: Headrace) -> None:
    job = new_id()
    event_id = await publish_job(kafka_bootstrap, job)

    listed = await asyncio.to_thread(
        headrace, "events", "jobs", "-o", "json", HEADRACE_KAFKA_BOOTSTRAP=kafka_bootstrap
    )
    assert listed.exit_code == 0, listed.output
    (row,) = [row for row in json.loads(listed.stdout) if row["id"] == event_id]
    assert (row["topic"], row["key"], row["subject"]) == (topics.JOBS, job, job)
    assert row["data"]["job"]["state"] == "RUNNING"

    described = await asyncio.to_thread(
        headrace, "describe", "event", event_id, HEADRACE_KAFKA_BOOTSTRAP=kafka_bootstrap
    )
    assert "type:" in described.stdout
    missing = await asyncio.to_thread(
        headrace, "describe", "event", "nothing", HEADRACE_KAFKA_BOOTSTRAP=kafka_bootstrap
    )
    assert missing.exit_code == 3


@pytest.mark.broker
async def test_reading_ends_while_somebody_goes_on_publishing(kafka_bootstrap: str) -> None:
    before = await publish_job(kafka_bootstrap, new_id())
    published, enough = asyncio.Event(), asyncio.Event()

    async def busy() -> None:
        while not enough.is_set():
            await publish_job(kafka_bootstrap, new_id())
            published.set()

    publishing = asyncio.create_task(busy())
    try:
        async with asyncio.timeout(60):
            await published.wait()
            rows = [
                row
                async for row in events.read(
                    kafka_bootstrap, [topics.JOBS], follow=False, from_beginning=True
                )
            ]
    finally:
        enough.set()
        await publishing
    assert before in {row["id"] for row in rows}


@pytest.mark.broker
async def test_samples_of_the_sdk_are_events_on_the_samples_topic(
    kafka_bootstrap: str, headrace: Headrace
) -> None:
    await topics.ensure_topics(kafka_bootstrap, topics.load_topics().values())
    dataset = f"d-{new_id()}"
    async with HeadraceClient(Targets({"kafka": kafka_bootstrap}, kafka_idempotence=False)) as client:
        assert await client.produce(dataset, ({"id": str(n), "x": n} for n in range(3)), key="id") == 3
    listed = await asyncio.to_thread(
        headrace, "events", "samples", "-o", "json", HEADRACE_KAFKA_BOOTSTRAP=kafka_bootstrap
    )
    rows = [row for row in json.loads(listed.stdout) if row["subject"] == dataset]
    assert sorted(row["data"]["x"] for row in rows) == [0, 1, 2]
    assert len({row["traceparent"] for row in rows}) == 1


@pytest.mark.broker
async def test_produce_publishes_each_line_and_names_their_trace(
    kafka_bootstrap: str, headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def key_field(_client: HeadraceClient, _dataset: str) -> str:
        return "id"

    monkeypatch.setattr(HeadraceClient, "_key_field", key_field)
    await topics.ensure_topics(kafka_bootstrap, topics.load_topics().values())
    file = tmp_path / "samples.jsonl"
    file.write_text('{"id": "a"}\n\n{"id": "b"}\n')
    result = await asyncio.to_thread(
        headrace,
        *("produce", f"d-{new_id()}", "-f", str(file), "-o", "json"),
        HEADRACE_KAFKA_BOOTSTRAP=kafka_bootstrap,
        HEADRACE_KAFKA_IDEMPOTENCE="false",
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["published"] == 2
    assert json.loads(result.stdout)["traceparent"].startswith("00-")


def test_a_broker_that_is_not_there_is_unavailable(headrace: Headrace) -> None:
    result = headrace("events", HEADRACE_KAFKA_BOOTSTRAP="127.0.0.1:1")
    assert result.exit_code == 4
    assert "127.0.0.1:1" in result.stderr


async def store_spans(dsn: str, spans: list[tuple[Any, ...]]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(SCHEMA)
        await connection.executemany(
            "INSERT INTO telemetry.spans VALUES "
            "($1, $2, $3, $4, $5, 'internal', $6, $7, 'unset', $8::jsonb, '[]'::jsonb)",
            spans,
        )
    finally:
        await connection.close()


def span(number: int, service: str, name: str, **attributes: str) -> tuple[Any, ...]:
    parent = f"{number - 1:016x}" if number else ""
    start = START + timedelta(seconds=number)
    end = START + timedelta(seconds=10)
    return TRACE, f"{number:016x}", parent, service, name, start, end, json.dumps(attributes)


async def test_a_trace_is_drawn_and_found_by_a_prediction(postgres_dsn: str, headrace: Headrace) -> None:
    await store_spans(
        postgres_dsn,
        [
            span(0, "headrace-ingestion", "commit"),
            span(1, "headrace-inference", "process", **{"headrace.prediction_id": "p-1"}),
        ],
    )
    for arguments in (
        ("trace", TRACE),
        ("trace", f"00-{TRACE}-b7ad6b7169203331-01"),
        ("trace", "--prediction", "p-1"),
    ):
        drawn = await asyncio.to_thread(headrace, *arguments, HEADRACE_POSTGRES_DSN=postgres_dsn)
        assert drawn.exit_code == 0, drawn.output
        lines = drawn.stdout.splitlines()
        assert lines[0] == f"trace {TRACE}"
        assert lines[2].split()[:3] == ["headrace-ingestion", "commit", "10.00"]
        assert lines[3].split()[:2] == ["headrace-inference", "process"]
    document = await asyncio.to_thread(
        headrace, "trace", TRACE, "-o", "json", HEADRACE_POSTGRES_DSN=postgres_dsn
    )
    services = [row["service"] for row in json.loads(document.stdout)]
    assert services == ["headrace-ingestion", "headrace-inference"]
    unknown = await asyncio.to_thread(headrace, "trace", "f" * 32, HEADRACE_POSTGRES_DSN=postgres_dsn)
    assert unknown.exit_code == 3


async def test_a_stack_without_a_trace_store_says_so(postgres_dsn: str, headrace: Headrace) -> None:
    result = await asyncio.to_thread(headrace, "trace", TRACE, HEADRACE_POSTGRES_DSN=postgres_dsn)
    assert result.exit_code == 4
    assert "keeps no traces of its own" in result.stderr


async def test_publishing_to_a_broker_that_is_not_there_is_unavailable() -> None:
    async with HeadraceClient(Targets({"kafka": "127.0.0.1:1"}, kafka_idempotence=False)) as client:
        with pytest.raises(Unavailable) as caught:
            await client.produce("d", [{"id": "a"}], key="id")
    assert caught.value.reason == "BROKER_UNAVAILABLE"

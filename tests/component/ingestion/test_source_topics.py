"""A dataset's own topic: plain values, none of them with CloudEvents attributes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tests.support.ingestion import Ingestion, Process
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2
from headrace.errors import HeadraceError

pytestmark = pytest.mark.broker

PARTITIONS = 2


def value(name: str, radius: float = 1.5) -> bytes:
    return orjson.dumps({"id": name, "radius": radius, "malignant": 0})


async def create(ingestion: Ingestion, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=ingestion.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    finally:
        await admin.close()


async def produce(ingestion: Ingestion, topic: str, values: Sequence[bytes | None]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=ingestion.bootstrap) as producer:
        for number, each in enumerate(values):
            await producer.send_and_wait(topic, each, b"k", partition=number % PARTITIONS)


async def apply(ingestion: Ingestion, process: Process, name: str, topic: str = "") -> api.Dataset:
    source = api.SourceTopic(topic=topic) if topic else None
    request = api.ApplyDatasetRequest(name=name, schema=ingestion.schema(), source=source)
    async with ingestion.stub(process) as stub:
        return await stub.ApplyDataset(request)


async def refused(ingestion: Ingestion, process: Process, name: str, topic: str) -> tuple[str, str]:
    with pytest.raises(HeadraceError) as raised:
        await apply(ingestion, process, name, topic)
    return raised.value.reason, raised.value.message


async def start(ingestion: Ingestion) -> Process:
    return await ingestion.start_ready(
        HEADRACE_INGESTION_FEEDS_SECONDS="0.2", HEADRACE_INGESTION_RETRY_SECONDS="0.5"
    )


async def test_an_existing_topics_values_become_rows_once_whoever_reads_them_dies(
    ingestion: Ingestion,
) -> None:
    topic = f"clinic.{uuid.uuid4()}"
    first = await ingestion.start_ready(
        HEADRACE_INGESTION_FEEDS_SECONDS="0.2", HEADRACE_FAULT="ingestion.after-delta-commit"
    )
    assert await refused(ingestion, first, ingestion.dataset, topic) == (
        "SOURCE_MISSING",
        f"there is no topic {topic}; create it, or correct its name, and apply again",
    )
    await create(ingestion, topic)
    # They were there before the dataset was.
    await produce(ingestion, topic, [value("a"), value("b"), value("c", radius=-1.0), None])
    dataset = await apply(ingestion, first, ingestion.dataset, topic)
    assert dataset.source == api.SourceTopic(topic=topic, format=api.SOURCE_FORMAT_JSON)
    await first.killed()

    second = await start(ingestion)
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert [(row["id"], row["_event_source"], row["_topic"], row["_offset"]) for row in rows] == [
        ("a", topic, topic, 0),
        ("b", topic, topic, 0),
    ]
    assert str(rows[0]["_event_id"]).endswith(f"/{topic}/0/0")
    rejected = await eventually(lambda: ingestion.rejected(second), lambda found: len(found) == 2)
    by_rule = {sample.rule: sample for sample in rejected}
    assert by_rule.keys() == {"min", "json"}

    # What is mended becomes a row with the place that it had, and the time.
    again = api.ReplayRejectedRequest(
        ids=[by_rule["min"].id], correction=api.Correction(payload=value("c", radius=2.5))
    )
    async with ingestion.stub(second) as stub:
        await stub.ReplayRejected(again)
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 3)
    [mended] = [row for row in rows if row["id"] == "c"]
    assert (mended["_event_id"], mended["_event_source"]) == (by_rule["min"].event_id, topic)
    assert mended["_topic"] != topic

    # Its topics, both of them, still make the same version.
    async with ingestion.stub(second) as stub:
        await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
    asked = versions_pb2.ReplayVersionRequest(
        dataset=ingestion.dataset, version=versions_pb2.VersionName(number=1)
    )
    async with ingestion.version_stub(second) as versions:
        answers = [answer async for answer in versions.ReplayVersion(asked)]
    assert answers[-1].result.same
    assert await second.stop() == 0
    assert {row["_topic"] for row in await ingestion.rows()} == {topic, mended["_topic"]}


async def test_a_topic_is_one_datasets_until_that_lets_it_go(ingestion: Ingestion) -> None:
    topic, other = f"clinic.{uuid.uuid4()}", f"{ingestion.dataset[:50]}-b"
    await create(ingestion, topic)
    process = await start(ingestion)
    await apply(ingestion, process, ingestion.dataset, topic)
    reason, message = await refused(ingestion, process, other, topic)
    assert reason == "SOURCE_TAKEN"
    assert f"are samples of {ingestion.dataset}" in message
    reason, _ = await refused(ingestion, process, other, "headrace.ingestion.samples.v1")
    assert reason == "INVALID_SOURCE"

    await produce(ingestion, topic, [value("a")])
    await eventually(ingestion.rows, lambda rows: len(rows) == 1)
    assert not (await apply(ingestion, process, ingestion.dataset)).HasField("source")
    await apply(ingestion, process, other, topic)
    await produce(ingestion, topic, [value("b")])
    heir = Ingestion(ingestion.bootstrap, ingestion.dsn, ingestion.store_uri, ingestion.folder, dataset=other)
    [row] = await eventually(heir.rows, lambda rows: len(rows) == 1)
    # It goes on where the first one stood.
    assert (row["id"], row["_offset"]) == ("b", 1)
    assert [row["id"] for row in await ingestion.rows()] == ["a"]
    assert await process.stop() == 0


@pytest.mark.skipif(
    os.environ.get("HEADRACE_TEST_BROKER") != "kafka", reason="the embedded broker has no transactions"
)
async def test_what_a_producer_aborted_is_no_row(ingestion: Ingestion) -> None:
    topic = f"clinic.{uuid.uuid4()}"
    await create(ingestion, topic)
    process = await start(ingestion)
    await apply(ingestion, process, ingestion.dataset, topic)
    async with AIOKafkaProducer(bootstrap_servers=ingestion.bootstrap, transactional_id=topic) as producer:
        for name, keeps in (("a", True), ("b", False), ("c", True)):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, value(name), partition=0)
            await (producer.commit_transaction() if keeps else producer.abort_transaction())
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert [row["id"] for row in rows] == ["a", "c"]
    assert await ingestion.rejected(process) == []
    assert await process.stop() == 0

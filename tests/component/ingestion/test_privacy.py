"""Personal data on real parts: what is stored, told and shown, and what happens without a key."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from aiokafka import AIOKafkaConsumer
from tests.support.ingestion import Headers, Ingestion, Process
from tests.support.otlp import collecting
from tests.support.traces_of_data import files_with, sql_tables_with
from tests.support.waiting import PATIENCE_SECONDS, eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2
from headrace.errors import FailedPrecondition
from headrace.events.ingestion.v1 import events_pb2
from headrace.messaging import topics

pytestmark = pytest.mark.broker

OLD = "k1=" + base64.b64encode(b"1" * 32).decode()
KEYS = f"{OLD},k2=" + base64.b64encode(b"2" * 32).decode()
EMAIL, PHONE, STREET = "ada.lovelace@example.org", "+44-20-7946-0001", "St James Square 12"
CLEAR = (EMAIL, PHONE, STREET)


def field(name: str, treatment: api.FieldTreatment.ValueType) -> api.Field:
    return api.Field(
        name=name,
        type=api.FIELD_TYPE_STRING,
        nullable=True,
        role=api.FIELD_ROLE_PERSONAL,
        treatment=treatment,
    )


async def declare(ingestion: Ingestion, process: Process) -> None:
    schema = ingestion.schema()
    schema.attributes.extend(
        [
            field("email", api.FIELD_TREATMENT_PSEUDONYMISE),
            field("phone", api.FIELD_TREATMENT_ENCRYPT),
            field("street", api.FIELD_TREATMENT_UNSPECIFIED),
        ]
    )
    async with ingestion.stub(process) as stub:
        await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=schema))


def person(ingestion: Ingestion, number: int, **changes: object) -> tuple[bytes, bytes, Headers]:
    sample = {
        "id": f"p{number}",
        "radius": 1.5,
        "grade": 3,
        "malignant": 1,
        "email": EMAIL,
        "phone": PHONE,
        "street": STREET,
        **changes,
    }
    headers = ingestion.headers(f"{ingestion.dataset}-{number}")
    return b"p", json.dumps(sample).encode(), headers


async def test_personal_values_are_in_clear_nowhere(ingestion: Ingestion) -> None:
    async with collecting() as collector:
        process = await ingestion.start_ready(
            HEADRACE_OTLP_ENDPOINT=collector.endpoint, HEADRACE_INGESTION_PRIVACY_KEYS=KEYS
        )
        await declare(ingestion, process)
        await ingestion.caught_up(process)
        key, payload, headers = person(ingestion, 5)
        astray = [(name, b"nowhere" if name == "ce_subject" else value) for name, value in headers]
        await ingestion.publish(
            [
                person(ingestion, 1),
                person(ingestion, 2),
                # Somebody's own value in a field that is not marked as such.
                person(ingestion, 3, radius=EMAIL),
                (EMAIL.encode(), f"no JSON of {PHONE}".encode(), ingestion.headers(f"{ingestion.dataset}-4")),
                (key, payload, astray),
            ]
        )
        rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
        rejected = await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 3)
        async with ingestion.stub(process) as stub:
            await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
        async with ingestion.version_stub(process) as versions:
            newest = versions_pb2.VersionName(number=1)
            profile = await versions.GetProfile(
                versions_pb2.GetProfileRequest(dataset=ingestion.dataset, version=newest)
            )
            replayed = [
                answer
                async for answer in versions.ReplayVersion(
                    versions_pb2.ReplayVersionRequest(dataset=ingestion.dataset, version=newest)
                )
            ]
            read = versions_pb2.ReadVersionRequest(dataset=ingestion.dataset, version=newest, reveal=True)
            parts = [answer.arrow_stream async for answer in versions.ReadVersion(read)]
        told = await rejected_events(ingestion, 3)
        for path in ingestion.folder.glob("*.log"):
            assert not [value for value in CLEAR if value in path.read_text()]
        assert await process.stop() == 0

    assert replayed[-1].result.same
    phones = pa.concat_tables(pa.ipc.open_stream(part).read_all() for part in parts).column("phone")
    assert phones.to_pylist() == [PHONE, PHONE]
    assert rows[0]["email"] == rows[1]["email"] != EMAIL
    assert rows[0]["phone"] != rows[1]["phone"]
    assert "street" not in rows[0]
    counted = {described.name: described for described in profile.fields}
    assert counted["email"].count == 2
    assert not counted["email"].top_values
    assert {entry.sealed_by for entry in rejected} == {"k2"}
    assert {event.rejected.sealed_by for event in told} == {"k2"}
    for shown in (*map(str, rejected), *map(str, told), str(profile), str(rows)):
        assert not [value for value in CLEAR if value in shown]
    assert not [value for value in CLEAR if any(value.encode() in sent for sent in collector.requests)]
    assert await sql_tables_with(ingestion.dsn, "ingestion", CLEAR) == []
    if ingestion.store_uri.startswith("file:"):
        folder = Path(urlsplit(ingestion.store_uri).path)
        assert await asyncio.to_thread(files_with, folder / "datasets" / ingestion.dataset, CLEAR) == []


async def rejected_events(ingestion: Ingestion, count: int) -> list[events_pb2.SampleRejected]:
    consumer = AIOKafkaConsumer(
        topics.REJECTED_SAMPLES,
        bootstrap_servers=ingestion.bootstrap,
        auto_offset_reset="earliest",
        group_id=None,
    )
    found: dict[int, events_pb2.SampleRejected] = {}
    async with consumer, asyncio.timeout(PATIENCE_SECONDS):
        while len(found) < count:
            record = await consumer.getone()
            event = events_pb2.SampleRejected.FromString(record.value)
            if event.rejected.event_id.startswith(ingestion.dataset):
                found[event.rejected.id] = event
    return list(found.values())


async def test_a_sealed_event_is_revealed_on_request_and_replayed_whole(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(HEADRACE_INGESTION_PRIVACY_KEYS=OLD)
    await declare(ingestion, process)
    event = person(ingestion, 1, radius=-1)
    await ingestion.publish([event])
    [entry] = await eventually(lambda: ingestion.rejected(process), bool)
    assert (entry.key, dict(entry.headers), entry.message) == (b"", {}, '"radius" is below the minimum 0')
    await process.stop()

    # A new key writes, and the old one still reads.
    process = await ingestion.start_ready(HEADRACE_INGESTION_PRIVACY_KEYS=KEYS)
    async with ingestion.stub(process) as stub:
        shown = await stub.GetRejected(api.GetRejectedRequest(id=entry.id, reveal=True))
        assert (shown.key, shown.payload, dict(shown.headers)) == (event[0], event[1], dict(event[2]))
        corrected = json.dumps({**json.loads(event[1]), "radius": 2}).encode()
        await stub.ReplayRejected(
            api.ReplayRejectedRequest(ids=[entry.id], correction=api.Correction(payload=corrected))
        )
    [row] = await eventually(ingestion.rows, bool)
    assert row["_event_id"] == entry.event_id
    assert str(row["phone"]).startswith("k2.")


async def test_without_a_key_applying_is_refused_and_events_wait(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready()
    with pytest.raises(FailedPrecondition, match="set HEADRACE_INGESTION_PRIVACY_KEYS_FILE") as refused:
        await declare(ingestion, process)
    assert refused.value.reason == "PRIVACY_KEY_MISSING"
    await process.stop()

    keys = ingestion.folder / "keys"
    keys.write_text(KEYS.replace(",", "\n"))
    process = await ingestion.start_ready(HEADRACE_INGESTION_PRIVACY_KEYS_FILE=str(keys))
    await declare(ingestion, process)
    await ingestion.caught_up(process)
    await process.stop()

    process = await ingestion.start_ready()
    await ingestion.publish([person(ingestion, 1)])
    why = await eventually(process.why_unready, lambda text: "needs a key" in text)
    assert EMAIL not in why
    assert await ingestion.rows() == []
    await process.stop()

    await ingestion.start_ready(HEADRACE_INGESTION_PRIVACY_KEYS_FILE=str(keys))
    [row] = await eventually(ingestion.rows, bool)
    assert str(row["email"]).startswith("k2.")


async def test_a_wrong_key_ring_ends_the_service_without_telling_it(ingestion: Ingestion) -> None:
    process = await ingestion.start(HEADRACE_INGESTION_PRIVACY_KEYS="k1=hunter2")
    assert await process.process.wait() == 1
    log = (ingestion.folder / "ingestion-0.log").read_text()
    assert "key 1 of the key ring" in log
    assert "hunter2" not in log

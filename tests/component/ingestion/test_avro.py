"""Avro events over a broker, with the schemas of their writers in a real registry."""

from __future__ import annotations

import io
from collections.abc import Mapping

import fastavro
import pytest
from tests.component.ingestion import test_erasure as erasing
from tests.component.ingestion.test_privacy import EMAIL, KEYS, field
from tests.support.avro import framed
from tests.support.faulty_http import Fault, faulty_http
from tests.support.ingestion import Headers, Ingestion, Process
from tests.support.schema_registry import Registry
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2

# The first time, the registry is fetched.
pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

FIRST = {
    "type": "record",
    "name": "Scan",
    "namespace": "tests",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "radius", "type": "double"},
        {"name": "malignant", "type": "int"},
    ],
}
# Its writer learns to grade, and keeps notes that are nobody's business.
SECOND = {
    **FIRST,
    "fields": [
        *FIRST["fields"],
        {"name": "grade", "type": ["null", "int"], "default": None},
        {"name": "notes", "type": {"type": "array", "items": "string"}, "default": []},
    ],
}
PERSON = {**FIRST, "fields": [*FIRST["fields"], {"name": "email", "type": "string"}]}


def event(
    ingestion: Ingestion, name: str, schema_id: int, schema: Mapping[str, object], **values: object
) -> tuple[bytes, bytes, Headers]:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, {"id": name, "radius": 1.5, "malignant": 0, **values})
    headers = ingestion.headers(f"{ingestion.dataset}-{name}", content__type="application/vnd.apache.avro")
    return name.encode(), framed(schema_id, stream.getvalue()), headers


async def start(ingestion: Ingestion, url: str) -> Process:
    process = await ingestion.start_ready(
        HEADRACE_INGESTION_SCHEMA_REGISTRY_URL=url, HEADRACE_INGESTION_RETRY_SECONDS="0.5"
    )
    await ingestion.apply(process)
    return process


async def test_a_writers_schema_grows_and_an_outage_of_the_registry_rejects_nothing(
    ingestion: Ingestion, registry: Registry
) -> None:
    async with faulty_http(registry.port) as proxy:
        process = await start(ingestion, registry.through(proxy.port))
        first = await registry.register(ingestion.dataset, FIRST)
        await ingestion.publish([event(ingestion, "a", first, FIRST)])
        await eventually(ingestion.rows, lambda rows: len(rows) == 1)

        await proxy.fail(Fault.ERROR)
        second = await registry.register(ingestion.dataset, SECOND)
        assert second != first
        unknown = second + 1_000_000
        await ingestion.publish(
            [
                event(ingestion, "b", second, SECOND, grade=3, notes=["x", "y"]),
                event(ingestion, "c", unknown, FIRST),
                event(ingestion, "d", second, SECOND, grade=None, notes=[], radius=-1.0),
                event(ingestion, "e", first, FIRST, radius=2.5),
            ]
        )
        why = await eventually(process.why_unready, lambda why: "schema registry answers 500" in why)
        assert "HEADRACE_INGESTION_SCHEMA_REGISTRY_URL" in why
        await proxy.fail(Fault.SILENCE)
        await eventually(process.why_unready, lambda why: "schema registry does not answer" in why)
        assert len(await ingestion.rows()) == 1
        assert await ingestion.rejected(process) == []

        proxy.heal()
        rows = await eventually(ingestion.rows, lambda rows: len(rows) == 3)
        await eventually(process.is_ready, bool)
        assert [(row["id"], row["radius"], row["grade"], row["malignant"]) for row in rows] == [
            ("a", 1.5, None, 0),
            ("b", 1.5, 3, 0),
            ("e", 2.5, None, 0),
        ]
        rejected = {sample.event_id[-1]: sample for sample in await ingestion.rejected(process)}
        assert {name: (sample.reason, sample.rule) for name, sample in rejected.items()} == {
            "c": ("SCHEMA_UNKNOWN", "schema_id"),
            "d": ("SCHEMA_VIOLATION", "min"),
        }
        assert str(unknown) in rejected["c"].message
        assert await process.stop() == 0


async def test_a_schema_may_refer_to_others_that_refer_to_others(
    ingestion: Ingestion, registry: Registry
) -> None:
    ward = {"type": "record", "name": "Ward", "namespace": "shared", "fields": [{"name": "n", "type": "int"}]}
    place = {**ward, "name": "Place", "fields": [{"name": "ward", "type": "Ward"}]}
    scan = {**FIRST, "fields": [{"name": "place", "type": ["null", "shared.Place"]}, *FIRST["fields"]]}
    wards, places = f"{ingestion.dataset}-ward", f"{ingestion.dataset}/place"
    await registry.register(wards, ward)
    await registry.register(places, place, {"shared.Ward": wards})
    known = await registry.register(ingestion.dataset, scan, {"shared.Place": places})
    named: dict[str, object] = {}
    for schema in (ward, place):
        fastavro.parse_schema(schema, named)
    writer = fastavro.parse_schema(scan, named)
    assert isinstance(writer, dict)
    process = await start(ingestion, registry.url)
    await ingestion.publish(
        [
            event(ingestion, "a", known, writer, place={"ward": {"n": 70_000}}, radius=2.5),
            event(ingestion, "b", known, writer, place=None, malignant=1),
        ]
    )
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert [(row["id"], row["radius"], row["malignant"]) for row in rows] == [("a", 2.5, 0), ("b", 1.5, 1)]
    assert await process.stop() == 0


async def test_what_was_rejected_without_a_registry_is_replayed_with_one(
    ingestion: Ingestion, registry: Registry
) -> None:
    process = await ingestion.start_ready()
    await ingestion.apply(process)
    first = await registry.register(ingestion.dataset, FIRST)
    await ingestion.publish([event(ingestion, "a", first, FIRST)])
    [sample] = await eventually(lambda: ingestion.rejected(process), lambda rejected: len(rejected) == 1)
    assert (sample.reason, sample.rule) == ("SCHEMA_UNKNOWN", "registry")
    assert await process.stop() == 0

    process = await start(ingestion, registry.url)
    async with ingestion.stub(process) as stub:
        await stub.ReplayRejected(api.ReplayRejectedRequest(ids=[sample.id]))
    [row] = await eventually(ingestion.rows, lambda rows: len(rows) == 1)
    assert (row["id"], row["_event_id"]) == ("a", sample.event_id)
    assert await process.stop() == 0


async def test_a_persons_events_are_covered_sealed_and_erased(
    ingestion: Ingestion, registry: Registry
) -> None:
    process = await ingestion.start_ready(
        HEADRACE_INGESTION_SCHEMA_REGISTRY_URL=registry.url, HEADRACE_INGESTION_PRIVACY_KEYS=KEYS
    )
    schema = ingestion.schema()
    schema.attributes.append(field("email", api.FIELD_TREATMENT_PSEUDONYMISE))
    async with ingestion.stub(process) as stub:
        await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=schema))
    await ingestion.caught_up(process)
    known = await registry.register(ingestion.dataset, PERSON)
    who = erasing.subject(ingestion)

    def of(name: str, key: str, schema_id: int = known, **values: object) -> tuple[bytes, bytes, Headers]:
        _, payload, headers = event(ingestion, name, schema_id, PERSON, id=key, email=EMAIL, **values)
        return b"", payload, headers

    await ingestion.publish(
        [
            of("a", who),
            of("b", "other"),
            of("c", who, radius=-1.0),
            of("d", who, known + 1_000_000),
            of("e", "other", radius=-1.0),
        ]
    )
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert rows[0]["email"] == rows[1]["email"] != EMAIL
    rejected = await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 3)
    assert {sample.sealed_by for sample in rejected} == {"k2"}
    assert EMAIL not in str(rejected)
    async with ingestion.stub(process) as stub:
        await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
    name = versions_pb2.VersionName(number=1)
    async with ingestion.version_stub(process) as versions:
        asked = versions_pb2.ReplayVersionRequest(dataset=ingestion.dataset, version=name)
        assert [answer async for answer in versions.ReplayVersion(asked)][-1].result.same

    await erasing.request(ingestion, process, who)
    done = await erasing.erased(ingestion, process)
    # One of the rejected ones cannot be read, and has the subject in its bytes.
    assert (done.row_count, done.rejected_count, list(done.versions)) == (1, 2, [1])
    assert [row["id"] for row in await ingestion.rows()] == ["other"]
    left = {sample.event_id[-1:]: sample.payload for sample in await ingestion.rejected(process)}
    assert left.keys() == {"", "e"}
    assert left["e"]
    assert await process.stop() == 0

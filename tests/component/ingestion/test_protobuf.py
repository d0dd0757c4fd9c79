"""Protobuf events over a broker, with the schemas of their writers in a real registry."""

from __future__ import annotations

import pytest
from tests.component.ingestion.test_privacy import EMAIL, KEYS, field
from tests.support.avro import framed
from tests.support.ingestion import Headers, Ingestion
from tests.support.protobuf import FIRST_MESSAGE, message, registered
from tests.support.schema_registry import Registry
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.ingestion.use_cases.ports import RegisteredSchema

# The first time, the registry is fetched.
pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

DEFINITION = """
syntax = "proto3";
package tests;
import "google/protobuf/timestamp.proto";
message Scan {
  string id = 1;
  double radius = 2;
  int32 malignant = 3;
  optional int32 grade = 4;
  string email = 5;
  google.protobuf.Timestamp noted = 6;
  repeated string notes = 7;
}
"""
WRITER = registered(DEFINITION)


def event(
    ingestion: Ingestion, name: str, schema_id: int, text: str, writer: RegisteredSchema = WRITER
) -> tuple[bytes, bytes, Headers]:
    written = message(writer, "tests.Scan", f'id: "{name}" notes: "x" noted {{ seconds: 1 }} {text}')
    headers = ingestion.headers(f"{ingestion.dataset}-{name}", content__type="application/x-protobuf")
    return name.encode(), framed(schema_id, FIRST_MESSAGE + written), headers


async def test_a_writers_messages_become_rows_covered_as_the_dataset_says(
    ingestion: Ingestion, registry: Registry
) -> None:
    process = await ingestion.start_ready(
        HEADRACE_INGESTION_SCHEMA_REGISTRY_URL=registry.url, HEADRACE_INGESTION_PRIVACY_KEYS=KEYS
    )
    schema = ingestion.schema()
    schema.attributes.append(field("email", api.FIELD_TREATMENT_PSEUDONYMISE))
    async with ingestion.stub(process) as stub:
        await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=schema))
    known = await registry.register_protobuf(ingestion.dataset, DEFINITION)
    avro = await registry.register(
        f"{ingestion.dataset}-avro",
        {"type": "record", "name": "R", "fields": [{"name": "id", "type": "string"}]},
    )
    email = f'email: "{EMAIL}"'
    await ingestion.publish(
        [
            event(ingestion, "a", known, f"radius: 1.5 {email}"),
            event(ingestion, "b", known, f"radius: 2.5 malignant: 1 grade: 0 {email}"),
            event(ingestion, "c", known, f"radius: -1 {email}"),
            event(ingestion, "d", known + 1_000_000, email),
            event(ingestion, "e", avro, email),
        ]
    )
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert [(row["id"], row["radius"], row["grade"], row["malignant"]) for row in rows] == [
        ("a", 1.5, None, 0),
        ("b", 2.5, 0, 1),
    ]
    assert rows[0]["email"] == rows[1]["email"] != EMAIL
    rejected = await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 3)
    assert sorted((sample.reason, sample.rule) for sample in rejected) == [
        ("SCHEMA_UNKNOWN", "schema_id"),
        ("SCHEMA_UNUSABLE", "protobuf"),
        ("SCHEMA_VIOLATION", "min"),
    ]
    assert {sample.sealed_by for sample in rejected} == {"k2"}
    assert EMAIL not in str(rejected)
    assert await process.stop() == 0


async def test_a_schema_may_import_others_that_import_others(
    ingestion: Ingestion, registry: Registry
) -> None:
    side = 'syntax = "proto3"; package shared; message Side { sint32 n = 1; }'
    place = 'syntax = "proto3"; package shared; import "side.proto"; message Place { Side side = 1; }'
    scan = DEFINITION.replace(
        "message Scan {", 'import "shared/place.proto";\nmessage Scan {\n  shared.Place place = 8;'
    )
    sides, places = f"{ingestion.dataset}-side", f"{ingestion.dataset}/place"
    await registry.register_protobuf(sides, side)
    await registry.register_protobuf(places, place, {"side.proto": sides})
    known = await registry.register_protobuf(ingestion.dataset, scan, {"shared/place.proto": places})
    writer = registered(scan, {"side.proto": side, "shared/place.proto": place})
    process = await ingestion.start_ready(HEADRACE_INGESTION_SCHEMA_REGISTRY_URL=registry.url)
    await ingestion.apply(process)
    await ingestion.publish(
        [event(ingestion, "a", known, "radius: 2.5 place { side { n: -3 } }", writer=writer)]
    )
    [row] = await eventually(ingestion.rows, lambda rows: len(rows) == 1)
    assert (row["id"], row["radius"]) == ("a", 2.5)
    assert await process.stop() == 0

"""Personal fields in every format that a sample may have: covered alike, and quoted in no message."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import orjson
import pyarrow as pa
import pytest
from tests.support.avro import framed, text
from tests.support.claims import FakePayloads, claims_of
from tests.support.protobuf import FIRST_MESSAGE, message, registered
from tests.support.records import Sent, records_of
from tests.unit.ingestion.test_privacy import NOW, RING, SECRET, personal
from tests.unit.ingestion.test_store_batch import World

from headrace.ingestion.domain.dataset import Dataset, SourcePartition
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema, Treatment, check_schema
from headrace.ingestion.domain.sealing import unsealed
from headrace.ingestion.domain.treatment import revealed
from headrace.ingestion.use_cases.envelopes import open_envelopes
from headrace.ingestion.use_cases.judge_batch import Batch, Judge, Judged
from headrace.ingestion.use_cases.ports import Append, Catalogue, RegisteredSchema, SampleTables, Span
from headrace.ingestion.use_cases.store_batch import StoreBatch
from headrace.messaging.attributes import read_attributes
from headrace.messaging.record_columns import Records
from headrace.tensors import TensorType

SIGNAL = TensorType("float32", (2,))


def tensor(name: str, treatment: Treatment | None) -> Field:
    return replace(personal(name, treatment, FieldType.TENSOR), tensor=SIGNAL)


SCHEMA = Schema(
    "id",
    (Field("a", FieldType.FLOAT32, min=0, max=10),),
    Field("y", FieldType.INT8, allowed_values=(0, 1)),
    attributes=(
        personal("email", Treatment.PSEUDONYMISE),
        personal("phone", Treatment.ENCRYPT),
        personal("street", None),
        tensor("face", Treatment.ENCRYPT),
        tensor("voice", Treatment.PSEUDONYMISE),
        tensor("gait", None),
    ),
)
DATASET = Dataset("people", SCHEMA, Cut(), 1, NOW, NOW)
HEADERS = {
    "ce_specversion": b"1.0",
    "ce_source": b"tests",
    "ce_type": b"headrace.ingestion.sample.v1",
    "ce_subject": b"people",
    "ce_time": b"2026-01-02T03:04:05Z",
}
JSON, AVRO, PROTOBUF = b"application/json", b"application/avro", b"application/protobuf"
WRITTEN = (
    ("id", "string"),
    ("a", "float"),
    ("y", "int"),
    *((n, "string") for n in ("email", "phone", "street")),
)
WRITER = RegisteredSchema(
    "AVRO",
    json.dumps(
        {
            "type": "record",
            "name": "Person",
            "fields": [{"name": name, "type": kind} for name, kind in WRITTEN],
        }
    ),
)
MESSAGES = registered(
    """
    syntax = "proto3";
    message Person {
      string id = 1;
      float a = 2;
      int32 y = 3;
      string email = 4;
      string phone = 5;
      string street = 6;
      optional bytes face = 7;
    }
    """
)
FACE = np.array([1.5, -2.5], "<f4").tobytes()


def sent(*payloads: bytes, form: bytes) -> Records:
    return records_of(
        Sent(place, payload, [*HEADERS.items(), ("content-type", form), ("ce_id", b"%d" % place)])
        for place, payload in enumerate(payloads)
    )


def judged(*payloads: bytes, form: bytes, schemas: Mapping[int, RegisteredSchema] | None = None) -> Judged:
    records = sent(*payloads, form=form)
    opened = open_envelopes(records, read_attributes(records), {}, 1 << 20)
    return Judge(RING).judge("cluster", opened, {"people": DATASET}, schemas)


def in_json(**values: object) -> bytes:
    return orjson.dumps({"id": "p1", "a": 1.5, "y": 1, **values})


def in_avro(*, y: int = 1) -> bytes:
    record = text(b"p1") + struct.pack("<f", 1.5) + bytes([2 * y])
    return framed(7, record + text(SECRET.encode()) + text(b"+4412345") + text(b"Elm St 7"))


def in_protobuf(*, y: int = 1, more: str = "") -> bytes:
    text = f'id: "p1" a: 1.5 y: {y} email: "{SECRET}" phone: "+4412345" street: "Elm St 7" {more}'
    return framed(6, FIRST_MESSAGE + message(MESSAGES, "Person", text))


SCHEMAS = {7: WRITER, 6: MESSAGES}


@pytest.mark.parametrize(("payload", "form"), [(in_avro(), AVRO), (in_protobuf(), PROTOBUF)])
def test_a_person_is_the_same_by_a_schema_registry_as_in_json(payload: bytes, form: bytes) -> None:
    person = {"email": SECRET, "phone": "+4412345", "street": "Elm St 7"}
    asked = judged(in_json(**person), form=JSON).rows["people"]
    same = judged(payload, form=form, schemas=SCHEMAS).rows["people"]
    names = [field.name for field in SCHEMA.stored_fields]
    assert same.select(names).to_pylist() == asked.select(names).to_pylist()
    assert not [clear for clear in person.values() if clear in str(same.to_pylist())]


def test_no_message_about_an_avro_event_quotes_a_value() -> None:
    payloads = [
        in_avro(y=8),
        in_avro()[:-1],
        in_avro() + SECRET.encode(),
        framed(9, SECRET.encode()),
        framed(8, SECRET.encode()),
        SECRET.encode(),
    ]
    schemas = {7: WRITER, 8: RegisteredSchema("PROTOBUF", "")}
    rejections = judged(*payloads, form=AVRO, schemas=schemas).rejections
    told = {rejection.offset: rejection.verdict.message for rejection in rejections}
    assert sorted(told) == [0, 1, 2, 3, 4, 5]
    assert told[0] == '"y" is none of the allowed values'
    clear = (SECRET, "+4412345", "Elm", "8125")
    assert not [message for message in told.values() if any(value in message for value in clear)]


def test_no_message_about_a_protobuf_event_quotes_a_value() -> None:
    payloads = [
        in_protobuf(y=8),
        in_protobuf()[:-1],
        in_protobuf() + SECRET.encode(),
        framed(6, SECRET.encode()),
        framed(9, SECRET.encode()),
        framed(7, SECRET.encode()),
        SECRET.encode(),
        in_protobuf(more='face: "8125"'),
    ]
    rejections = judged(*payloads, form=PROTOBUF, schemas=SCHEMAS).rejections
    told = {rejection.offset: rejection.verdict.message for rejection in rejections}
    assert sorted(told) == list(range(8))
    assert told[0] == '"y" is none of the allowed values'
    clear = (SECRET, "+4412345", "Elm", "8125")
    assert not [text for text in told.values() if any(value in text for value in clear)]


def test_a_personal_tensor_in_protobuf_is_its_bytes() -> None:
    escaped = "".join(f"\\x{byte:02x}" for byte in FACE)
    rows = judged(in_protobuf(more=f'face: "{escaped}"'), form=PROTOBUF, schemas=SCHEMAS).rows["people"]
    [field] = [field for field in SCHEMA.personal if field.name == "face"]
    shown = revealed("people", field, rows.column("face").combine_chunks(), RING)
    assert shown.to_pylist() == [FACE]


def test_a_personal_tensor_is_treated_as_its_bytes() -> None:
    check_schema(SCHEMA)
    encoded = base64.b64encode(FACE).decode()
    payload = in_json(face=encoded, voice=encoded, gait=encoded)
    rows = judged(payload, payload, in_json(), form=JSON).rows["people"]
    assert "gait" not in rows.column_names
    voices, faces = rows.column("voice").to_pylist(), rows.column("face").to_pylist()
    assert voices[0] == voices[1]
    assert faces[0] != faces[1]
    assert voices[2] is faces[2] is None
    assert encoded not in str(rows.to_pylist())
    [face] = [field for field in SCHEMA.personal if field.name == "face"]
    shown = revealed("people", face, rows.column("face").combine_chunks(), RING)
    assert shown.type == pa.binary()
    assert shown.to_pylist() == [FACE, FACE, None]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (SECRET, "base64"),
        (base64.b64encode(FACE[:5]).decode(), "size"),
        (base64.b64encode(np.array([1, np.nan], "<f4").tobytes()).decode(), "finite"),
        (8125, "type"),
    ],
)
def test_a_message_about_a_personal_tensor_quotes_nothing(value: object, rule: str) -> None:
    [rejection] = judged(in_json(face=value), form=JSON).rejections
    assert (rejection.verdict.rule, rejection.verdict.message) == (rule, '"face" is no float32[2]')


@dataclass
class PersonalWorld(World):
    """One whose tables show what they are given, and with a registry that knows the writer's schema."""

    given: list[Append] = field(default_factory=list)

    async def schemas(self, ids: Collection[int]) -> Mapping[int, RegisteredSchema]:
        return {7: WRITER} if 7 in ids else {}

    def append(self, append: Append) -> int:
        self.given.append(append)
        return super().append(append)


async def test_avro_is_sealed_and_covered_by_the_schema_that_holds_when_it_is_stored() -> None:
    open_to_all = replace(DATASET, schema=replace(SCHEMA, attributes=()))
    world = PersonalWorld(declared=open_to_all, apply_next=replace(DATASET, schema_version=2))
    store = StoreBatch(
        cast("Catalogue", world),
        cast("SampleTables", world),
        world,
        clock=lambda: NOW,
        max_event_bytes=1000,
        deduplicate_events=0,
        registry=world,
        claims=claims_of(FakePayloads()),
        keys=RING,
    )
    payloads = [in_avro(), in_avro(y=8), framed(9, SECRET.encode())]
    records = sent(*payloads, form=AVRO)
    spans = [Span(SourcePartition("cluster", "t", 0), 0, 3)]
    stored = await store(Batch("cluster", records, read_attributes(records), spans))
    assert [each.verdict.reason.value for each in stored.rejections] == ["SCHEMA_UNKNOWN", "SCHEMA_VIOLATION"]
    kept = [row.rejection for row in world.kept.values()]
    assert {each.sealed_by for each in kept} == {"k2"}
    assert SECRET not in str(kept)
    assert sorted(unsealed(each, RING).payload for each in kept) == sorted(payloads[1:])
    [append] = world.given
    assert append.dataset.schema_version == 2
    [email] = append.rows.column("email").to_pylist()
    assert email.startswith("k2.")

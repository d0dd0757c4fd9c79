"""Protobuf by a schema registry: messages, the schemas of their writers, and what is wrong with either."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.avro import framed
from tests.support.protobuf import FIRST_MESSAGE, message, registered
from tests.unit.ingestion.test_judge_avro import FIRST, first, rejected
from tests.unit.ingestion.test_judge_batch import DATASETS, ENVELOPE, opened, sent

from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion import proto_compiler
from headrace.ingestion.domain.avro import Unreadable, UnusableSchema
from headrace.ingestion.domain.protobuf import ProtobufReader
from headrace.ingestion.domain.schema import Field, FieldType, Role, Schema
from headrace.ingestion.use_cases.judge_batch import Judge, Judged
from headrace.ingestion.use_cases.ports import RegisteredSchema

WRITER = registered(
    """
    syntax = "proto3";
    package clinic;
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/wrappers.proto";
    message Other { string id = 1; }
    message Scan {
      enum Kind { SMALL = 0; LARGE = 1; }
      string id = 1;
      double radius = 2;
      optional sint32 grade = 3;
      uint64 count = 4;
      google.protobuf.Timestamp taken = 5;
      google.protobuf.StringValue site = 6;
      Kind kind = 7;
      bytes face = 8;
      bool done = 9;
      repeated string names = 10;
      map<string, string> tags = 11;
      message Inner { string id = 1; }
      Inner inner = 12;
      oneof either { int32 left = 13; int32 right = 14; }
      string nobodys = 15;
    }
    """
)
NAMES = (
    ("radius", FieldType.FLOAT64),
    ("grade", FieldType.INT8),
    ("count", FieldType.INT64),
    ("taken", FieldType.TIMESTAMP),
    ("site", FieldType.STRING),
    ("kind", FieldType.STRING),
    ("face", FieldType.STRING),
    ("done", FieldType.BOOL),
    ("names", FieldType.STRING),
    ("tags", FieldType.STRING),
    ("inner", FieldType.STRING),
    ("left", FieldType.INT32),
    ("right", FieldType.INT32),
)
SCHEMA = Schema(
    "id",
    tuple(Field(name, kind, nullable=True) for name, kind in NAMES[:2]),
    Field("y", FieldType.INT8, nullable=True),
    attributes=tuple(Field(name, kind, nullable=True, role=Role.IGNORED) for name, kind in NAMES[2:]),
)
SCAN = bytes([2, 2])
"""One index, 1, in zig-zag: the schema's second message."""


def reader(writer: RegisteredSchema = WRITER) -> ProtobufReader:
    assert isinstance(writer.descriptors, bytes)
    return ProtobufReader(writer.descriptors, SCHEMA)


def scan(text: str) -> dict[str, object]:
    read = reader().read(SCAN + message(WRITER, "clinic.Scan", text))
    assert isinstance(read, dict)
    return read


ALWAYS = {"names": [], "tags": []}
"""Repeated fields are no values of a sample's, whatever is in them."""


def test_what_is_not_written_is_zero_or_missing_as_the_schema_has_it() -> None:
    zero = {"id": "", "radius": 0.0, "count": 0, "kind": "SMALL", "face": b"", "done": False}
    assert scan("") == {**zero, **ALWAYS}


FULL = """
    id: "p" radius: 1.5 grade: -3 count: 18446744073709551615 taken { seconds: 5 nanos: 1999 }
    site { value: "" } kind: LARGE face: "x" done: true names: "n" tags { key: "k" value: "v" }
    inner { id: "q" } right: 0 nobodys: "secret"
"""


def test_values_are_taken_by_name_and_others_are_skipped() -> None:
    assert scan(FULL) == {
        "id": "p",
        "radius": 1.5,
        "grade": -3,
        "count": 2**64 - 1,
        "taken": "1970-01-01T00:00:05.000001+00:00",
        "site": "",
        "kind": "LARGE",
        "face": b"x",
        "done": True,
        "inner": {},
        "right": 0,
        **ALWAYS,
    }


def test_a_symbol_that_the_schema_does_not_name_stays_a_number() -> None:
    assert scan("kind: 7")["kind"] == 7


def test_a_time_before_the_epoch_is_one() -> None:
    assert scan("taken { seconds: -1 }")["taken"] == "1969-12-31T23:59:59+00:00"


def test_a_time_of_no_calendar_is_no_time() -> None:
    assert scan("taken { seconds: 9000000000000 }")["taken"] == {}


@pytest.mark.parametrize(
    ("indexes", "name"),
    [
        (b"\0", "clinic.Other"),
        (bytes([2, 0]), "clinic.Other"),
        (SCAN, "clinic.Scan"),
        (bytes([4, 2, 0]), "clinic.Scan.Inner"),
    ],
)
def test_the_payload_says_which_of_the_schemas_messages_it_is(indexes: bytes, name: str) -> None:
    read = reader().read(indexes + message(WRITER, name, 'id: "p"'))
    assert isinstance(read, dict)
    assert read["id"] == "p"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\1",
        bytes([2, 4]),
        bytes([2, 1]),
        bytes([4, 2, 2]),
        bytes([6, 2, 0, 0]),
        bytes([200, 1]) + bytes(100),
        b"\xff" * 20,
        SCAN + b"\xff",
        SCAN + b"\x0a\x01\xff",
        SCAN + b"\x0a\x7f",
    ],
)
def test_what_is_no_message_of_the_schema_is_told_without_what_it_is(payload: bytes) -> None:
    read = reader().read(payload)
    assert isinstance(read, Unreadable)
    assert read.message.startswith("the payload ")


@pytest.mark.parametrize(
    ("definition", "rule", "says"),
    [
        ("", "message", "describes no message"),
        ("message {", "protobuf", "1:9: Expected message name"),
        ('syntax = "proto3"; message M { Missing m = 1; }', "protobuf", '"Missing" is not defined'),
        ('syntax = "proto3"; import "other.proto"; message M {}', "protobuf", "other.proto: File not found"),
        ('syntax = "proto3"; import "/etc/hostname"; message M {}', "protobuf", "/etc/hostname"),
        ("message M {" * 1000, "protobuf", ""),
        ("x" * (2 << 20), "size", "characters"),
        ("// \ud800", "message", "describes no message"),
    ],
)
def test_a_schema_that_nothing_can_be_read_by_is_named(definition: str, rule: str, says: str) -> None:
    with pytest.raises(UnusableSchema) as raised:
        reader(registered(definition))
    assert raised.value.rule == rule
    assert says in raised.value.message
    assert len(raised.value.message) < 300


def test_a_schema_that_takes_protoc_too_long_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proto_compiler, "_SECONDS", 0.0)
    with pytest.raises(UnusableSchema) as raised:
        proto_compiler.compile_proto('syntax = "proto3"; message M {}')
    assert raised.value.rule == "size"


IMPORTING = 'syntax = "proto3"; import "{0}"; message Row { string id = 1; shared.Side site = 2; }'
SIDE = 'syntax = "proto3"; package shared; enum Side { NONE = 0; LEFT = 1; }'


@pytest.mark.parametrize("name", ["side.proto", "shared/v1/side.proto", "schema.proto", "a.b/c-d.proto"])
def test_an_enum_of_another_schema_is_its_symbol(name: str) -> None:
    schema = registered(IMPORTING.replace("{0}", name), {name: SIDE})
    payload = FIRST_MESSAGE + message(schema, "Row", 'id: "p" site: LEFT')
    assert reader(schema).read(payload) == {"id": "p", "site": "LEFT"}


def test_protobufs_own_types_are_its_own() -> None:
    """Confluent's registry names them among the references; whatever it has there is not asked."""
    own = "google/protobuf/timestamp.proto"
    definition = f'syntax = "proto3"; import "{own}"; message Row {{ google.protobuf.Timestamp noted = 1; }}'
    assert registered(definition, {own: "message {"}).descriptors == registered(definition).descriptors


@pytest.mark.parametrize(
    "name",
    [
        "../side.proto",
        "/tmp/side.proto",
        "a/../../side.proto",
        "a//side.proto",
        ".schema.proto",
        "-I.proto",
        "",
        "a\0.proto",
        "a\\b.proto",
        "x" * 300,
    ],
)
def test_another_schema_is_written_nowhere_else(name: str) -> None:
    with pytest.raises(UnusableSchema) as raised:
        registered(IMPORTING.replace("{0}", name), {name: SIDE})
    assert raised.value.rule == "references"


def test_a_schema_is_no_folder_of_others() -> None:
    with pytest.raises(UnusableSchema, match="others below it"):
        registered(IMPORTING, {"a.proto": SIDE, "a.proto/b.proto": SIDE})
    with pytest.raises(UnusableSchema, match="others below it"):
        registered(IMPORTING, {"a.proto/b.proto": SIDE, "a.proto": SIDE})


def test_a_schema_and_its_imports_are_bounded_together() -> None:
    with pytest.raises(UnusableSchema) as raised:
        registered(IMPORTING, {"side.proto": SIDE + "/" * (1 << 20)})
    assert raised.value.rule == "size"


@given(st.binary(max_size=60))
@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
def test_every_byte_string_is_read_or_is_none(data: bytes) -> None:
    assert isinstance(reader().read(SCAN + data), dict | Unreadable)
    assert isinstance(reader().read(data), dict | Unreadable)


ROW = registered('syntax = "proto3"; message Row { string id = 1; float a = 2; }')


def row(key: str, a: float, schema_id: int = 3) -> bytes:
    return framed(schema_id, FIRST_MESSAGE + message(ROW, "Row", f'id: "{key}" a: {a}'))


def judge(*payloads: bytes, content_type: str = "application/protobuf") -> Judged:
    headers = list({**ENVELOPE, "content-type": content_type.encode()}.items())
    batch = opened([sent(offset, payload, headers) for offset, payload in enumerate(payloads)])
    known = {1: FIRST, 3: ROW, 5: unusable("references"), 6: unusable("protobuf")}
    assert batch.schema_ids() <= {1, 3, 5, 6, 9}
    return Judge().judge("cluster", batch, DATASETS, known)


def unusable(rule: str) -> RegisteredSchema:
    return RegisteredSchema("PROTOBUF", "", unusable=UnusableSchema(rule, "is no Protobuf schema"))


@pytest.mark.parametrize(
    "content_type",
    ["application/protobuf", "application/x-protobuf", "application/vnd.google.protobuf; v=1"],
)
def test_samples_and_messages_of_other_schemas_stand_side_by_side(content_type: str) -> None:
    sample = Sample(fields={"id": Value(string_value="q"), "a": Value(int_value=2)}).SerializeToString()
    judged = judge(row("p", 1.5), sample, row("r", 2.5), content_type=content_type)
    rows = judged.rows["known"].select(["id", "a", "y", "_offset"]).sort_by("_offset").to_pylist()
    assert [tuple(values.values()) for values in rows] == [
        ("p", 1.5, None, 0),
        ("q", 2.0, None, 1),
        ("r", 2.5, None, 2),
    ]
    assert rejected(judged) == []


def test_each_fault_has_its_reason() -> None:
    judged = judge(
        row("p", 1.5),
        row("", 1.5),
        row("p", 1.5, schema_id=9),
        first("p", 1.5),
        framed(3, b"\2\2"),
        framed(5, b""),
        framed(6, b""),
        b"\0\0",
    )
    assert judged.rows["known"].column("_offset").to_pylist() == [0]
    assert sorted(rejected(judged)) == [
        (1, "SCHEMA_VIOLATION", "not_empty"),
        (2, "SCHEMA_UNKNOWN", "schema_id"),
        (3, "SCHEMA_UNUSABLE", "protobuf"),
        (4, "MALFORMED_PAYLOAD", "protobuf"),
        (5, "SCHEMA_UNUSABLE", "references"),
        (6, "SCHEMA_UNUSABLE", "protobuf"),
        (7, "MALFORMED_PAYLOAD", "protobuf"),
    ]
    told = {rejection.offset: rejection.verdict.message for rejection in judged.rejections}
    assert told[3] == "schema 1 is one of AVRO, and the event says that it is Protobuf"

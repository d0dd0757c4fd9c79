from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.avro import text, varint

from headrace.ingestion.domain.avro import AvroReader, Unreadable, UnusableSchema
from headrace.ingestion.domain.columnar import ColumnReader, Malformed
from headrace.ingestion.domain.schema import Field, FieldType, Role, Schema
from headrace.ingestion.domain.validation import RowValidator, Rule, Violation
from headrace.native import Spans

SCHEMA = Schema(
    key="id",
    features=(
        Field("radius", FieldType.FLOAT32, min=0),
        Field("depth", FieldType.FLOAT64, nullable=True),
        Field("grade", FieldType.INT8, nullable=True),
        Field("smoker", FieldType.BOOL, nullable=True, default=False),
    ),
    label=Field("site", FieldType.STRING, nullable=True, allowed_values=("left", "right", "é")),
    attributes=(Field("taken", FieldType.TIMESTAMP, nullable=True, role=Role.TIME),),
)
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SIDE = {"type": "enum", "name": "Side", "symbols": ["left", "right", "up"]}
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
NANOS = {"type": "long", "logicalType": "timestamp-nanos"}


def record(*fields: tuple[str, Any]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "Sample",
        "namespace": "tests",
        "fields": [{"name": name, "type": node} for name, node in fields],
    }


PLAIN = record(
    ("id", "string"),
    ("radius", "double"),
    ("depth", ["null", "float"]),
    ("grade", ["int", "null"]),
    ("smoker", "boolean"),
    ("site", SIDE),
    ("taken", ["null", MILLIS]),
)
GOOD: dict[str, Any] = {
    "id": "p1",
    "radius": 1.5,
    "depth": 2.5,
    "grade": 3,
    "smoker": True,
    "site": "left",
    "taken": NOON,
}


def written(schema: dict[str, Any], *samples: dict[str, Any]) -> list[bytes]:
    """Records as a stock library writes them."""
    payloads = []
    for sample in samples:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, sample)
        payloads.append(stream.getvalue())
    return payloads


def rows_of(schema: dict[str, Any], *samples: dict[str, Any]) -> list[dict[str, Any]]:
    columns = ColumnReader(SCHEMA).read_framed(
        Spans.of(written(schema, *samples)), AvroReader(json.dumps(schema), SCHEMA)
    )
    assert not columns.faults
    rows: list[dict[str, Any]] = columns.table.to_pylist()
    return rows


def fault_of(schema: dict[str, Any], payload: bytes) -> Violation | Malformed:
    columns = ColumnReader(SCHEMA).read_framed(Spans.of([payload]), AvroReader(json.dumps(schema), SCHEMA))
    [(index, fault)] = columns.faults
    assert index == 0
    return fault


def test_fields_are_matched_by_name() -> None:
    missing = {"depth": None, "grade": None, "taken": None}
    assert rows_of(PLAIN, GOOD, {**GOOD, **missing}) == [GOOD, {**GOOD, **missing}]


def test_what_the_writer_lacks_is_missing_and_what_the_dataset_does_not_name_is_skipped() -> None:
    schema = record(
        ("notes", {"type": "array", "items": "string"}),
        ("radius", "int"),
        ("where", record(("x", "float"))),
        ("id", "string"),
        ("raw", "bytes"),
        ("tags", {"type": "map", "values": "long"}),
        ("site", "string"),
    )
    schema["fields"][2]["type"]["name"] = "Where"
    sample = {"notes": ["a"], "radius": 2, "where": {"x": 1}, "id": "p", "raw": b"", "tags": {}, "site": "é"}
    absent = {"depth": None, "grade": None, "smoker": False, "taken": None}
    assert rows_of(schema, sample) == [{"id": "p", "radius": 2.0, "site": "é", **absent}]


@pytest.mark.parametrize(("node", "unit"), [(MILLIS, 1000), (MICROS, 1), (NANOS, None)])
def test_logical_times_are_moments(node: dict[str, str], unit: int | None) -> None:
    schema = record(("id", "string"), ("radius", "float"), ("taken", node))
    micros = (NOON - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    count = micros // unit if unit else micros * 1000 + 999
    payload = text(b"p") + struct.pack("<f", 1) + varint(count)
    columns = ColumnReader(SCHEMA).read_framed(Spans.of([payload]), AvroReader(json.dumps(schema), SCHEMA))
    assert columns.table.column("taken").to_pylist() == [NOON]


@pytest.mark.parametrize(
    ("node", "value", "rule"),
    [
        (MILLIS, varint(2**62), Rule.TYPE),
        (MICROS, varint(-(2**62)), Rule.TYPE),
        ("long", varint(0), Rule.TYPE),
        ({"type": "long", "logicalType": "local-timestamp-millis"}, varint(0), Rule.TYPE),
        ("string", text(b"2026-01-02T12:00:00"), Rule.TYPE),
    ],
)
def test_what_is_no_moment_is_a_wrong_value(node: Any, value: bytes, rule: Rule) -> None:
    fault = fault_of(
        record(("id", "string"), ("radius", "float"), ("taken", node)),
        text(b"p") + struct.pack("<f", 1) + value,
    )
    assert isinstance(fault, Violation)
    assert (fault.field, fault.rule) == ("taken", rule)


@pytest.mark.parametrize(
    ("node", "value", "rule"),
    [
        ("double", struct.pack("<d", float("nan")), Rule.FINITE),
        ("double", struct.pack("<d", 1e39), Rule.TYPE_RANGE),
        ("long", varint(-1), Rule.MIN),
        ("string", text(b"1"), Rule.TYPE),
        ("bytes", text(b"1"), Rule.TYPE),
        (["null", "float"], varint(0), Rule.REQUIRED),
        ({"type": "array", "items": "int"}, varint(0), Rule.TYPE),
    ],
)
def test_values_meet_the_rules_that_those_of_json_meet(node: Any, value: bytes, rule: Rule) -> None:
    fault = fault_of(record(("id", "string"), ("radius", node)), text(b"p") + value)
    assert isinstance(fault, Violation)
    assert (fault.field, fault.rule) == ("radius", rule)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        text(b"p"),
        text(b"p") + b"\0" * 5,
        text(b"\xff") + b"\0" * 4,
        varint(-5) + b"p" + b"\0" * 4,
        varint(2**62),
        b"\xff" * 40,
    ],
)
def test_bytes_that_are_no_record_of_their_schema_are_malformed(payload: bytes) -> None:
    fault = fault_of(record(("id", "string"), ("radius", "float")), payload)
    assert isinstance(fault, Malformed)
    assert fault.rule == "avro"


def doubling(depth: int) -> Any:
    """A record that takes no bytes, and 2 ** depth steps to read."""
    node: Any = "null"
    for level in range(depth):
        fields = [
            {"name": "a", "type": node},
            {"name": "b", "type": f"tests.R{level - 1}" if level else "null"},
        ]
        node = {"type": "record", "name": f"R{level}", "namespace": "tests", "fields": fields}
    return node


def nested(depth: int, **members: str) -> str:
    """A schema that is deeper than most that write JSON can go."""
    arrays = '{"type": "array", "items": ' * depth + '"int"' + "}" * depth
    return json.dumps({**record(("a", "int")), **members}).replace('"int"', arrays)


@pytest.mark.parametrize(
    ("definition", "rule"),
    [
        ("{", "avro"),
        ('"string"', "record"),
        ("[]", "record"),
        ('{"type": "record"}', "avro"),
        ('{"type": "record", "name": "R", "fields": 1}', "avro"),
        ('{"type": "record", "name": "R", "fields": [{"name": ["a"], "type": "int"}]}', "avro"),
        (json.dumps(record(("a", "unheard"))), "avro"),
        (json.dumps(record(("a", "int"), ("a", "string"))), "avro"),
        (json.dumps(record(("a", {"type": "enum", "name": "E", "symbols": [1]}))), "avro"),
        (json.dumps(record(("a", {"type": "fixed", "name": "F", "size": -1}))), "size"),
        (json.dumps(record(("a", {"type": "fixed", "name": "F", "size": 2**70}))), "size"),
        (json.dumps(record(("a", ["null", "tests.Sample"]))), "recursive"),
        (json.dumps(record(("a", {"type": "array", "items": "null"}))), "size"),
        (
            json.dumps(record(("a", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}))),
            "size",
        ),
        (json.dumps(record(("a", doubling(30)))), "size"),
        (nested(100), "size"),
        (nested(1000), "size"),
    ],
)
def test_schemas_by_which_no_sample_can_be_read_are_refused(definition: str, rule: str) -> None:
    with pytest.raises(UnusableSchema) as caught:
        AvroReader(definition, SCHEMA)
    assert caught.value.rule == rule


SHARED = {
    "type": "record",
    "name": "Place",
    "namespace": "shared",
    "fields": [
        {"name": "side", "type": {**SIDE, "namespace": "shared.sides"}},
        {
            "name": "ward",
            "type": {"type": "record", "name": "Ward", "fields": [{"name": "n", "type": "int"}]},
        },
        {"name": "other", "type": ["null", "shared.sides.Side"]},
    ],
}


def test_schemas_that_are_referred_to_stand_where_their_names_do() -> None:
    """A type within another, before the other, in a namespace of its own, and again by its name."""
    schema = record(
        ("id", "string"),
        ("site", "shared.sides.Side"),
        ("ward", "shared.Ward"),
        ("place", {"type": "array", "items": "shared.Place"}),
        ("grade", ["null", "int"]),
        ("taken", MILLIS),
    )
    ward, place = {"n": 7}, {"side": "up", "ward": {"n": 8}, "other": "left"}
    sample = {"id": "p1", "site": "right", "ward": ward, "place": [place, place], "grade": 3, "taken": NOON}
    named: dict[str, Any] = {}
    fastavro.parse_schema(SHARED, named)
    [payload] = written(fastavro.parse_schema(schema, named), sample)
    reader = AvroReader(json.dumps(schema), SCHEMA, [json.dumps(SHARED)])
    assert reader.read(payload) == {
        "id": "p1",
        "site": "right",
        "grade": 3,
        "taken": "2026-01-02T12:00:00+00:00",
    }


def test_what_is_referred_to_may_refer_to_others_and_have_no_namespace() -> None:
    """Within a namespace, a name without a dot is one of that namespace: `Code` there is not `.Code`."""
    code = {"type": "fixed", "name": "Code", "size": 2}
    note = {
        "type": "record",
        "name": "Note",
        "fields": [{"name": "code", "type": "Code"}, {"name": "again", "type": "Code"}],
    }
    schema = {
        "type": "record",
        "name": "Sample",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "note", "type": "Note"},
            {"name": "grade", "type": "int"},
        ],
    }
    named: dict[str, Any] = {}
    fastavro.parse_schema(code, named)
    fastavro.parse_schema(note, named)
    sample = {"id": "p1", "note": {"code": b"ab", "again": b"cd"}, "grade": 3}
    [payload] = written(fastavro.parse_schema(schema, named), sample)
    reader = AvroReader(json.dumps(schema), SCHEMA, [json.dumps(note), json.dumps(code)])
    assert reader.read(payload) == {"id": "p1", "grade": 3}
    inside = {**schema, "namespace": "tests"}
    with pytest.raises(UnusableSchema, match="is no Avro schema"):
        AvroReader(json.dumps(inside), SCHEMA, [json.dumps(note), json.dumps(code)])


@pytest.mark.parametrize(
    ("reference", "rule"),
    [
        ("{", "avro"),
        ("1", "avro"),
        ('{"type": "record"}', "avro"),
        ('{"type": "record", "name": "shared.Place", "fields": 1}', "avro"),
        (json.dumps(record(("a", "int"))), "avro"),
        (json.dumps({**record(("a", ["null", "shared.Place"])), "name": "shared.Place"}), "recursive"),
        (json.dumps({**record(("a", ["null", "tests.Sample"])), "name": "shared.Place"}), "recursive"),
        (json.dumps({**record(("a", doubling(30))), "name": "shared.Place"}), "size"),
        (nested(1000, name="shared.Place"), "size"),
    ],
)
def test_what_is_referred_to_is_refused_as_what_refers_to_it(reference: str, rule: str) -> None:
    schema = record(("id", "string"), ("place", "shared.Place"))
    with pytest.raises(UnusableSchema) as caught:
        AvroReader(json.dumps(schema), SCHEMA, [reference])
    assert caught.value.rule == rule


PRIMITIVES = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"]
FLAT: list[Any] = [
    *PRIMITIVES,
    MILLIS,
    MICROS,
    NANOS,
    {"type": "string", "avro.java.string": "String"},
    ["null", "string"],
    ["null", "double"],
    ["long", "null"],
    ["null", MILLIS],
    ["null", "int", "string", "double", "boolean"],
    ["string"],
]


def named(name: str) -> list[Any]:
    """Types that have a name of their own."""
    side = {**SIDE, "name": f"{name}_side"}
    fixed = {"type": "fixed", "name": f"{name}_fixed", "size": 3}
    return [side, ["null", side], ["string", side], fixed, ["null", fixed]]


NESTED: list[Any] = [{"type": "array", "items": "int"}, {"type": "map", "values": "string"}]
NAMES = [*(field.name for field in SCHEMA.fields), "more"]
# Mostly what the dataset takes, so that records become rows now and then.
FITTING: dict[str, Any] = {"id": "string", "radius": "double", "grade": ["null", "int"]}


@st.composite
def writers(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.permutations(NAMES))[: draw(st.integers(2, len(NAMES)))]
    fields = []
    for name in names:
        fitting = FITTING.get(name, "string")
        fields.append(
            (name, draw(st.one_of(st.just(fitting), st.sampled_from([*FLAT, *named(name), *NESTED]))))
        )
    return record(*fields)


@st.composite
def values(draw: st.DrawFn, node: Any) -> bytes:
    """A value as it is written, and hardly ever something else."""
    if isinstance(node, list):
        branch = draw(st.integers(0, len(node) - 1))
        return varint(branch) + draw(values(node[branch]))
    kind = node["type"] if isinstance(node, dict) else node
    if kind in ("int", "long"):
        return varint(draw(st.one_of(st.integers(-3, 200), st.integers(-(2**63), 2**63 - 1))))
    if kind in ("float", "double"):
        width = 32 if kind == "float" else 64
        drawn = draw(st.one_of(st.integers(0, 9).map(float), st.floats(width=width)))
        return struct.pack("<f" if kind == "float" else "<d", drawn)
    if kind == "string":
        texts = st.sampled_from(["left", "é", "2026-01-02T12:00:00Z", ""])
        return text(draw(st.one_of(texts.map(str.encode), st.binary(max_size=4))))
    if kind == "array":
        return varint(1) + draw(values(node["items"])) + b"\0"
    if kind == "map":
        return varint(1) + text(b"k") + draw(values(node["values"])) + b"\0"
    written: dict[str, st.SearchStrategy[bytes]] = {
        "null": st.just(b""),
        "boolean": st.sampled_from([b"\0", b"\1", b"\1", b"\2"]),
        "bytes": st.binary(max_size=4).map(text),
        "enum": st.integers(-1, 3).map(varint),
        "fixed": st.binary(min_size=3, max_size=3),
    }
    return draw(written[kind])


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes]]:
    schema = draw(writers())
    payloads = []
    for _ in range(draw(st.integers(1, 6))):
        payload = b"".join(draw(values(field["type"])) for field in schema["fields"])
        if draw(st.integers(0, 4)) == 0:
            cut = draw(st.integers(0, len(payload)))
            payload = payload[:cut] + draw(st.binary(max_size=3)) + payload[cut + 1 :]
        payloads.append(payload)
    return schema, payloads


def assert_columns_and_records_agree(schema: dict[str, Any], payloads: Sequence[bytes]) -> None:
    """By column, what is read record by record becomes the same row or meets the same fault."""
    reader, validator = AvroReader(json.dumps(schema), SCHEMA), RowValidator(SCHEMA)
    columns = ColumnReader(SCHEMA).read_framed(Spans.of(payloads), reader)
    faults = dict(columns.faults)
    table = dict(zip(columns.accepted, columns.table.to_pylist(), strict=True))
    assert sorted([*table, *faults]) == list(range(len(payloads)))
    for index, payload in enumerate(payloads):
        sample = reader.read(payload)
        if isinstance(sample, Unreadable):
            assert faults[index] == Malformed("avro", sample.message)
            continue
        row = validator.validate(sample)
        if isinstance(row, Violation):
            assert faults[index] == row
            continue
        expected = pa.table(
            [
                pa.array([value], *([field.type] if value is None else [])).cast(field.type, safe=False)
                for value, field in zip(row, columns.table.schema, strict=True)
            ],
            schema=columns.table.schema,
        ).to_pylist()[0]
        assert table[index] == expected


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(batches())
def test_columns_and_records_agree(batch: tuple[dict[str, Any], list[bytes]]) -> None:
    assert_columns_and_records_agree(*batch)


@given(writers(), st.lists(st.binary(max_size=60), max_size=10))
def test_any_bytes_end_as_a_row_or_as_a_fault(schema: dict[str, Any], payloads: list[bytes]) -> None:
    assert_columns_and_records_agree(schema, payloads)

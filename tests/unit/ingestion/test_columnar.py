from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.ingestion.domain.columnar import ColumnReader, Malformed, parse_object
from headrace.ingestion.domain.schema import Field, FieldType, Role, Schema
from headrace.ingestion.domain.validation import RowValidator, Rule, Violation
from headrace.native import Spans

SCHEMA = Schema(
    key="id",
    features=(
        Field("radius", FieldType.FLOAT32, min=0),
        Field("depth", FieldType.FLOAT64, nullable=True, max=1e300),
        Field("grade", FieldType.INT8, min=-1.5, max=100.5),
        Field("count", FieldType.INT64, nullable=True),
        Field("smoker", FieldType.BOOL, nullable=True),
        Field("site", FieldType.STRING, nullable=True, allowed_values=("left", "right")),
    ),
    label=Field("malignant", FieldType.INT8, allowed_values=(0, 1)),
    attributes=(
        Field("ward", FieldType.STRING, pattern="^[A-Z]{1,2}$|é", default="W", role=Role.IGNORED),
        Field("dose", FieldType.FLOAT32, default=-0.0, role=Role.IGNORED),
        Field("round", FieldType.INT16, nullable=True, default=7, role=Role.PROTECTED),
        Field("taken", FieldType.TIMESTAMP, nullable=True, role=Role.TIME),
    ),
)
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
GOOD: dict[str, Any] = {
    "id": "p1",
    "radius": 1.5,
    "depth": 2,
    "grade": 3,
    "count": 4,
    "smoker": True,
    "site": "left",
    "malignant": 1,
    "ward": "AB",
    "dose": 0.5,
    "round": 3,
    "taken": "2026-01-02T12:00:00Z",
}


def faults_of(payloads: Sequence[bytes]) -> dict[int, Violation | Malformed]:
    columns = ColumnReader(SCHEMA).read_json(Spans.of(payloads))
    faults = dict(columns.faults)
    assert sorted([*columns.accepted, *faults]) == list(range(len(payloads)))
    assert columns.table.num_rows == len(columns.accepted)
    return faults


def test_a_valid_sample_becomes_a_row_of_the_schemas_types() -> None:
    columns = ColumnReader(SCHEMA).read_json(Spans.of([orjson.dumps(GOOD)]))
    assert columns.table.to_pylist() == [{**GOOD, "depth": 2.0, "taken": NOON}]
    assert columns.table.schema.field("radius").type == pa.float32()
    assert columns.table.schema.field("grade").type == pa.int8()


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        ({"radius": None}, "radius", Rule.REQUIRED),
        ({"radius": -0.1}, "radius", Rule.MIN),
        ({"radius": "1"}, "radius", Rule.TYPE),
        ({"radius": True}, "radius", Rule.TYPE),
        ({"radius": [1]}, "radius", Rule.TYPE),
        ({"radius": {"a": 1}}, "radius", Rule.TYPE),
        ({"radius": 3.5e38}, "radius", Rule.TYPE_RANGE),
        ({"depth": 1e301}, "depth", Rule.MAX),
        ({"grade": 128}, "grade", Rule.TYPE_RANGE),
        ({"grade": -2}, "grade", Rule.MIN),
        ({"grade": 101}, "grade", Rule.MAX),
        ({"grade": 1.0}, "grade", Rule.TYPE),
        ({"grade": True}, "grade", Rule.TYPE),
        ({"count": 2**63}, "count", Rule.TYPE_RANGE),
        ({"count": 2**70}, "count", Rule.TYPE),
        ({"smoker": 1}, "smoker", Rule.TYPE),
        ({"site": "middle"}, "site", Rule.ALLOWED_VALUES),
        ({"malignant": 2}, "malignant", Rule.ALLOWED_VALUES),
        ({"id": ""}, "id", Rule.NOT_EMPTY),
        ({"id": 7}, "id", Rule.TYPE),
        ({"extra": 1}, "extra", Rule.UNKNOWN_FIELD),
        ({"ward": "abc"}, "ward", Rule.PATTERN),
        ({"ward": ""}, "ward", Rule.PATTERN),
        ({"ward": 1}, "ward", Rule.TYPE),
        ({"ward": None}, "ward", Rule.REQUIRED),
        ({"dose": None}, "dose", Rule.REQUIRED),
        ({"taken": "noon"}, "taken", Rule.TYPE),
        ({"taken": "2026-01-02T12:00:00"}, "taken", Rule.TYPE),
        ({"taken": "0001-01-01T00:00:00+01:00"}, "taken", Rule.TYPE),
        ({"taken": 1767355200}, "taken", Rule.TYPE),
    ],
)
def test_a_broken_rule_is_named_and_the_neighbours_stay(
    change: dict[str, Any], field: str, rule: Rule
) -> None:
    good = orjson.dumps(GOOD)
    faults = faults_of([good, json.dumps({**GOOD, **change}).encode(), good])
    assert list(faults) == [1]
    fault = faults[1]
    assert isinstance(fault, Violation)
    assert (fault.field, fault.rule) == (field, rule)
    assert field in fault.message


def test_a_default_takes_the_place_of_what_is_missing_and_not_of_a_null() -> None:
    bare = {name: value for name, value in GOOD.items() if name not in ("ward", "dose", "round", "taken")}
    # The second is for the row path: it has an escape.
    payloads = [
        orjson.dumps({**bare, "round": None}),
        orjson.dumps(bare).replace(b'"p1"', b'"\\u0070"'),
        orjson.dumps(GOOD),
    ]
    columns = ColumnReader(SCHEMA).read_json(Spans.of(payloads))
    rows = dict(zip(columns.accepted.tolist(), columns.table.to_pylist(), strict=True))
    assert [(rows[n]["ward"], rows[n]["dose"], rows[n]["round"], rows[n]["taken"]) for n in range(3)] == [
        ("W", 0.0, None, None),
        ("W", 0.0, 7, None),
        ("AB", 0.5, 3, NOON),
    ]
    assert math.copysign(1, rows[0]["dose"]) == 1


@pytest.mark.parametrize(
    "text", ["2026-01-02T13:00:00+01:00", "2026-01-02 12:00:00Z", "2026-01-02T12:00:00.000Z"]
)
def test_a_time_is_one_moment_however_it_is_written(text: str) -> None:
    columns = ColumnReader(SCHEMA).read_json(Spans.of([orjson.dumps({**GOOD, "taken": text})]))
    assert columns.table.column("taken").to_pylist() == [NOON]


def test_no_pattern_makes_a_reader_run_for_ever() -> None:
    """Other engines need some 2^50000 steps for this."""
    field = Field("ward", FieldType.STRING, pattern="^(a+)+$", role=Role.IGNORED)
    sample = {**GOOD, "ward": "a" * 50_000 + "!"}
    del sample["dose"], sample["round"], sample["taken"]
    reader = ColumnReader(replace(SCHEMA, attributes=(field,)))
    [(_, fault)] = reader.read_json(Spans.of([orjson.dumps(sample)])).faults
    assert isinstance(fault, Violation)
    assert fault.rule is Rule.PATTERN


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (b"", "json"),
        (b"{", "json"),
        (b"\xff\xfe", "json"),
        (b"[]", "object"),
        (b"null", "object"),
        (orjson.dumps(GOOD) * 2, "json"),
        (orjson.dumps(GOOD).replace(b"1.5", b"NaN"), "json"),
        (orjson.dumps(GOOD).replace(b"1.5", b"Infinity"), "json"),
        (orjson.dumps(GOOD).replace(b"1.5", b"1e999"), "json"),
        (orjson.dumps(GOOD).replace(b'"p1"', b'"\xff"'), "json"),
        (orjson.dumps(GOOD).replace(b"{", b'{"id":"other",'), "unique_names"),
        (b'{"a":' * 100_000, "json"),
    ],
)
def test_what_is_no_object_is_malformed(payload: bytes, rule: str) -> None:
    good = orjson.dumps(GOOD)
    faults = faults_of([good, payload, good])
    assert list(faults) == [1]
    fault = faults[1]
    assert isinstance(fault, Malformed)
    assert fault.rule == rule


def test_two_objects_in_one_payload_do_not_shift_the_rows_behind_them() -> None:
    # As many objects as payloads, and yet not one each.
    good = orjson.dumps(GOOD)
    assert list(faults_of([good + good, b" ", good])) == [0, 1]


def test_pretty_printed_json_and_surrounding_space_are_fine() -> None:
    assert faults_of([json.dumps(GOOD, indent=2).encode(), b" " + orjson.dumps(GOOD) + b"\n"]) == {}


def test_a_broken_row_among_many_costs_only_itself() -> None:
    payloads = [orjson.dumps({**GOOD, "id": f"p{index}"}) for index in range(1000)]
    payloads[333] = b"{broken"
    payloads[700] = orjson.dumps({**GOOD, "grade": 120})
    columns = ColumnReader(SCHEMA).read_json(Spans.of(payloads))
    assert sorted(index for index, _ in columns.faults) == [333, 700]
    assert [f"p{index}" for index in columns.accepted] == columns.table.column("id").to_pylist()


def test_a_huge_nested_value_is_named_without_being_printed() -> None:
    nested = b"[" * 900 + b"]" * 900
    fault = faults_of([orjson.dumps(GOOD).replace(b"1.5", nested)])[0]
    assert fault.message == '"radius" is an array, not a float32'


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.sampled_from([0, 1, -1, 127, 128, -128, -129, 100, 101, 2**53 + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 3.4028234663852886e38, 3.4028235677973366e38, 1e-45, 0.1]),
    st.text(max_size=5),
    st.sampled_from(["left", "right", "A", "AB", "ABC", "é", "A\n", "\u212a"]),
    st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat()),
    st.sampled_from(
        ["2026-01-02T12:00:00Z", "2026-13-01T00:00:00Z", "2026-01-02T12:00:00.1234567Z", "2026-W01-1"]
    ),
    st.lists(st.integers(), max_size=2),
)
NAMES = st.sampled_from([*GOOD, "extra"])
ABSENT = object()
SAMPLES = st.dictionaries(NAMES, st.one_of(SCALARS, st.just(ABSENT))).map(
    lambda change: {name: value for name, value in {**GOOD, **change}.items() if value is not ABSENT}
)
PAYLOADS = st.one_of(
    SAMPLES.map(lambda sample: json.dumps(sample).encode()),
    st.just(orjson.dumps(GOOD)),
    st.just(orjson.dumps(GOOD)),
    st.binary(max_size=30),
)


@given(st.lists(PAYLOADS, min_size=1, max_size=60))
def test_columns_and_rows_agree(payloads: list[bytes]) -> None:
    assert_columns_and_rows_agree(payloads)


def assert_columns_and_rows_agree(payloads: Sequence[bytes]) -> None:
    """The fast path accepts what the row path accepts, with the same values, and nothing else."""
    columns = ColumnReader(SCHEMA).read_json(Spans.of(payloads))
    faults = dict(columns.faults)
    table = dict(zip(columns.accepted, columns.table.to_pylist(), strict=True))
    validator = RowValidator(SCHEMA)
    assert sorted([*table, *faults]) == list(range(len(payloads)))
    for index, payload in enumerate(payloads):
        sample = parse_object(payload)
        row = sample if isinstance(sample, Malformed) else validator.validate(sample)
        if isinstance(row, tuple):
            expected = pa.table(
                [
                    pa.array([value], *([field.type] if value is None else [])).cast(field.type, safe=False)
                    for value, field in zip(row, columns.table.schema, strict=True)
                ],
                schema=columns.table.schema,
            ).to_pylist()[0]
            assert table[index] == expected
            assert math.copysign(1, table[index]["radius"]) == 1 or table[index]["radius"] < 0
        else:
            assert faults[index] == row


@given(st.lists(st.binary(max_size=200), max_size=40))
def test_any_bytes_end_as_a_row_or_as_a_fault(payloads: list[bytes]) -> None:
    faults_of(payloads)

"""Protobuf samples by column, and by Protobuf's own library: the same rows and the same faults."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ingestion.test_columnar import GOOD, SCHEMA

from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion.domain.columnar import ColumnReader, Malformed
from headrace.ingestion.domain.flat_protobuf import FlatProtobufReader
from headrace.ingestion.domain.validation import RowValidator
from headrace.ingestion.use_cases.judge_batch import parse_sample
from headrace.native import Spans

NAMES = [field.name for field in SCHEMA.fields]


def value_of(given: object) -> Value:
    if given is None:
        return Value()
    if isinstance(given, bool):
        return Value(bool_value=given)
    if isinstance(given, int):
        return Value(int_value=given)
    if isinstance(given, float):
        return Value(double_value=given)
    return Value(bytes_value=given) if isinstance(given, bytes) else Value(string_value=str(given))


def written(**values: object) -> bytes:
    return Sample(fields={name: value_of(value) for name, value in values.items()}).SerializeToString()


def assert_columns_and_messages_agree(payloads: Sequence[bytes]) -> None:
    """What is read by column is what the library reads, judged by the same rules."""
    columns = ColumnReader(SCHEMA).read_protobuf(Spans.of(payloads), parse_sample)
    faults = dict(columns.faults)
    rows = dict(zip(columns.accepted.tolist(), columns.table.to_pylist(), strict=True))
    validator = RowValidator(SCHEMA)
    assert sorted([*rows, *faults]) == list(range(len(payloads)))
    for index, payload in enumerate(payloads):
        sample = parse_sample(payload)
        row = sample if isinstance(sample, Malformed) else validator.validate(sample)
        if isinstance(row, tuple):
            expected = [
                pa.array([value], *([stored.type] if value is None else [])).cast(stored.type, safe=False)
                for value, stored in zip(row, columns.table.schema, strict=True)
            ]
            assert rows[index] == pa.table(expected, schema=columns.table.schema).to_pylist()[0]
        else:
            assert faults[index] == row


@pytest.fixture
def flat() -> FlatProtobufReader:
    """A reader of the schema's fields, as `ColumnReader` has it."""
    return ColumnReader(SCHEMA)._flat_protobuf


def test_samples_as_libraries_write_them_are_all_read_by_column(flat: FlatProtobufReader) -> None:
    bare = {name: value for name, value in GOOD.items() if name not in ("ward", "dose")}
    payloads = [
        written(**GOOD),
        written(**{**GOOD, "depth": None, "radius": 0.0, "grade": -1, "count": -(2**63), "smoker": False}),
        written(**dict(reversed(bare.items()))),
        written(**{**GOOD, "radius": 7, "ward": "é"}),
    ]
    assert flat.read(Spans.of(payloads)).read.all()
    assert_columns_and_messages_agree(payloads)


@pytest.mark.parametrize(
    "payload",
    [
        # A name twice: the last one counts.
        written(**GOOD) + written(grade=4),
        # A value of two kinds: the last one counts.
        written(**{**GOOD, "grade": None}) + b"\x0a\x0d\x0a\x05grade\x12\x04\x20\x01\x10\x05",
        # A field that a later release may have.
        written(**GOOD) + b"\x10\x01",
        # A key behind its value, and an entry without a value.
        b"\x0a\x0b\x12\x02\x10\x01\x0a\x05grade",
        b"\x0a\x07\x0a\x05grade",
        # True, written as 2; a number in more bytes than it needs; more bits than there are.
        written(**{**GOOD, "smoker": True}).replace(b"\x12\x02\x20\x01", b"\x12\x02\x20\x02"),
        written(**GOOD).replace(b"\x12\x02\x10\x03", b"\x12\x03\x10\x83\x00"),
        b"\x0a\x14\x0a\x05grade\x12\x0b\x10" + b"\xff" * 9 + b"\x7f",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        written(**{**GOOD, "site": b"left"}),
        written(**{**GOOD, "taken": "2026-01-02T13:00:00+01:00"}),
        written(**{**GOOD, "unknown": 1}),
        written(**{**GOOD, "radius": math.nan}),
        written(**{**GOOD, "radius": math.inf}),
        written(**GOOD)[:-1],
        b"",
        b"\x0a",
        b"\x0a\x00",
    ],
)
def test_what_is_unusual_ends_as_the_library_reads_it(payload: bytes) -> None:
    assert_columns_and_messages_agree([written(**GOOD), payload, written(**GOOD)])


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from(["left", "AB", "2026-01-02T12:00:00Z", "2026-01-02T12:00:00.5+00:00"]),
)
SAMPLES = st.dictionaries(st.sampled_from([*NAMES, "extra"]), VALUES).map(lambda some: {**GOOD, **some})


@given(st.lists(SAMPLES.map(lambda some: written(**some)) | st.binary(max_size=30), min_size=1, max_size=40))
def test_columns_and_messages_agree(payloads: list[bytes]) -> None:
    assert_columns_and_messages_agree(payloads)


@given(st.data())
def test_a_message_with_changed_bytes_ends_as_the_library_reads_it(data: st.DataObject) -> None:
    payload = bytearray(written(**GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    assert_columns_and_messages_agree([written(**GOOD), bytes(payload)])


def test_no_byte_beyond_a_message_is_read(flat: FlatProtobufReader) -> None:
    """Its neighbour follows in the same buffer, where a length that is too long finds its bytes."""
    message = written(**GOOD)
    sizes = np.arange(len(message))
    cut = Spans(np.frombuffer(message * 2, np.uint8), np.zeros(len(message), np.int64), sizes)
    alone = [flat.read(Spans.of([message[:size]])).read[0] for size in sizes]
    assert flat.read(cut).read.tolist() == alone
    # Between two entries a message may end.
    assert sum(alone) == len(GOOD)

"""Fields of tensors: from events to columns, hashes and profiles."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion.domain.columnar import ColumnReader
from headrace.ingestion.domain.content_hash import hash_rows
from headrace.ingestion.domain.profile import extended, is_extensible
from headrace.ingestion.domain.schema import Field, FieldType, Schema
from headrace.ingestion.domain.validation import Rule, Violation
from headrace.ingestion.use_cases.judge_batch import parse_sample
from headrace.native import Spans
from headrace.tensors import TensorType

SCHEMA = Schema(
    key="id",
    features=(
        Field("signal", FieldType.TENSOR, tensor=TensorType("float32", (3,))),
        Field("image", FieldType.TENSOR, nullable=True, tensor=TensorType("uint8", (2, 2), "png")),
    ),
    label=Field("y", FieldType.INT8),
)
NAMES = [field.name for field in SCHEMA.fields]
SIGNAL = np.array([1, 2, 3], "<f4").tobytes()


def png(*shape: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(shape, 7, np.uint8)).save(file, "png")
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sample(**changes: Any) -> bytes:
    fields = {"id": "a", "signal": text(SIGNAL), "image": text(png(2, 2)), "y": 1, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def read(*payloads: bytes) -> pa.Table:
    columns = ColumnReader(SCHEMA).read_json(Spans.of(payloads))
    assert not columns.faults
    return columns.table


def test_base64_becomes_the_bytes_that_were_sent() -> None:
    # The second one has an escape: it is read by the slow path.
    escaped = sample(image=None).replace(b'"id": "a"', b'"id": "\\u0062"')
    table = read(sample(), escaped, sample(id="c", image=...))
    assert table.schema.field("signal").type == pa.binary()
    rows = sorted(table.to_pylist(), key=lambda row: row["id"])
    assert [row["signal"] for row in rows] == [SIGNAL] * 3
    assert [row["image"] for row in rows] == [png(2, 2), None, None]


def test_protobuf_has_the_bytes_themselves() -> None:
    message = Sample(
        fields={
            "id": Value(string_value="a"),
            "signal": Value(bytes_value=SIGNAL),
            "image": Value(bytes_value=png(2, 2)),
            "y": Value(int_value=1),
        }
    )
    payloads = Spans.of([message.SerializeToString()])
    columns = ColumnReader(SCHEMA).read_protobuf(payloads, parse_sample)
    assert columns.table.to_pylist() == read(sample()).to_pylist()


@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        ({"signal": 3}, "signal", Rule.TYPE),
        ({"signal": [1, 2, 3]}, "signal", Rule.TYPE),
        ({"signal": ...}, "signal", Rule.REQUIRED),
        ({"signal": "no base64!"}, "signal", Rule.BASE64),
        ({"signal": "é"}, "signal", Rule.BASE64),
        ({"signal": text(SIGNAL[:-1])}, "signal", Rule.SIZE),
        ({"signal": text(np.array([1, 2, np.nan], "<f4").tobytes())}, "signal", Rule.FINITE),
        ({"image": text(b"GIF89a")}, "image", Rule.DECODES),
        ({"image": text(png(3, 2))}, "image", Rule.SHAPE),
        ({"y": text(SIGNAL)}, "y", Rule.TYPE),
    ],
)
def test_what_is_no_such_tensor_is_named_and_the_neighbours_stay(
    changes: dict[str, Any], field: str, rule: Rule
) -> None:
    columns = ColumnReader(SCHEMA).read_json(Spans.of([sample(), sample(**changes), sample(id="c")]))
    assert columns.table.column("id").to_pylist() == ["a", "c"]
    [(index, fault)] = columns.faults
    assert isinstance(fault, Violation)
    assert (index, fault.field, fault.rule) == (1, field, rule)
    assert fault.message.startswith(f'"{field}" ')


def test_bytes_are_no_value_of_another_field() -> None:
    message = Sample(
        fields={
            "id": Value(string_value="a"),
            "signal": Value(bytes_value=SIGNAL),
            "y": Value(bytes_value=b"\1"),
        }
    )
    payloads = Spans.of([message.SerializeToString()])
    [(_, fault)] = ColumnReader(SCHEMA).read_protobuf(payloads, parse_sample).faults
    assert isinstance(fault, Violation)
    assert (fault.rule, fault.message) == (Rule.TYPE, '"y" is 1 bytes, not an int8')


def test_rows_hash_by_the_bytes_that_were_sent() -> None:
    rows = read(sample(), sample(id="b", image=None))
    both = hash_rows(rows, NAMES)
    assert both == hash_rows(read(sample(id="b", image=None), sample()), NAMES)
    other = np.array([1, 2, 4], "<f4").tobytes()
    assert both != hash_rows(read(sample(signal=text(other)), sample(id="b", image=None)), NAMES)


def test_of_a_tensor_a_profile_has_its_counts_and_goes_on() -> None:
    rows = read(sample(), sample(id="b", image=None))
    profile = extended(None, SCHEMA, rows.to_batches())
    assert is_extensible(profile, SCHEMA)
    image = extended(profile, SCHEMA, rows.to_batches()).field("image")
    assert image is not None
    assert (image.type, image.count, image.null_count) == (FieldType.TENSOR, 2, 2)
    assert (image.moments, image.values) == (None, None)


def test_a_tensor_may_be_an_attribute() -> None:
    schema = replace(SCHEMA, features=SCHEMA.features[:1], attributes=SCHEMA.features[1:])
    columns = ColumnReader(schema).read_json(Spans.of([sample()]))
    assert columns.table.column("image").to_pylist() == [png(2, 2)]

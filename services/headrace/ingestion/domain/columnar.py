"""Payloads to columns: whole batches in compiled code, doubtful rows one by one.

The fast path reads and checks a batch by column. Rows that it leaves out, and rows that break a rule, are
read again by `validation`, the authority, which alone says what is wrong with them. A bad row never costs
its neighbours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.ingestion.domain.avro import AvroReader, Unreadable
from headrace.ingestion.domain.flat_avro import flat_reader
from headrace.ingestion.domain.flat_json import FlatJsonReader, Kind, ReadRows
from headrace.ingestion.domain.flat_protobuf import FlatProtobufReader
from headrace.ingestion.domain.protobuf import ProtobufReader
from headrace.ingestion.domain.schema import (
    FLOAT32_OVERFLOW,
    Field,
    FieldType,
    Schema,
    integer_range,
)
from headrace.ingestion.domain.validation import Check, Row, RowValidator, Violation, check_of
from headrace.native import Int64s, Spans

STORED_TYPES: Final[dict[FieldType, pa.DataType]] = {
    FieldType.BOOL: pa.bool_(),
    FieldType.INT8: pa.int8(),
    FieldType.INT16: pa.int16(),
    FieldType.INT32: pa.int32(),
    FieldType.INT64: pa.int64(),
    FieldType.FLOAT32: pa.float32(),
    FieldType.FLOAT64: pa.float64(),
    FieldType.STRING: pa.string(),
    FieldType.TIMESTAMP: pa.timestamp("us", "UTC"),
    FieldType.TENSOR: pa.binary(),
}
"""How a field's values are stored."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """The payload is no sample at all; `rule` names what a sample would need."""

    rule: str
    message: str


Fault = Violation | Malformed

Parse = Callable[[int], dict[str, object] | Malformed]
"""The sample at an index, by the authority on its format."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What a batch of payloads became.

    `table` has one row for each index in `accepted`, in that order; `faults` has the other indexes.
    """

    table: pa.Table
    accepted: Int64s
    faults: Sequence[tuple[int, Fault]]


def stored_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a dataset's own columns in its table."""
    return _arrow_schema(schema.stored_fields)


def _arrow_schema(fields: Sequence[Field]) -> pa.Schema:
    return pa.schema([(field.name, STORED_TYPES[field.type]) for field in fields])


class ColumnReader:
    """A schema, prepared for many batches. Keeps no state between them; any thread may use it."""

    def __init__(self, schema: Schema, *, quotes: bool = True) -> None:
        """`quotes`: whether violations may quote values; in no case where the schema has personal fields."""
        self._fields = schema.fields
        self._rows = RowValidator(schema, quotes=quotes)
        # Personal values as they came: whoever stores them treats them (`treatment`).
        self._stored = _arrow_schema(self._fields)
        self._parsed = pa.schema([(field.name, parsed_type(field)) for field in self._fields])
        self._kinds = [(field.name, _kind(field)) for field in self._fields]
        self._tensors = [
            (index, check_of(field)) for index, field in enumerate(self._fields) if field.tensor is not None
        ]
        self._flat_json = FlatJsonReader(self._kinds)
        self._flat_protobuf = FlatProtobufReader(self._kinds)
        self._defaults = [
            (index, pa.scalar(check_of(field)(field.default), self._parsed.field(index).type))
            for index, field in enumerate(self._fields)
            if field.default is not None
        ]

    def read_json(self, payloads: Spans) -> Columns:
        """Turn JSON objects into columns."""
        return self._checked(self._flat_json.read(payloads), lambda index: parse_object(payloads[index]))

    def read_protobuf(
        self, payloads: Spans, parse: Callable[[bytes], dict[str, object] | Malformed]
    ) -> Columns:
        """Turn Protobuf samples into columns; `parse` is the authority on one."""
        return self._checked(self._flat_protobuf.read(payloads), lambda index: parse(payloads[index]))

    def read_framed(self, payloads: Spans, writer: AvroReader | ProtobufReader) -> Columns:
        """Turn Avro records, or Protobuf messages, into columns, by the schema of who wrote them."""

        def parse(index: int) -> dict[str, object] | Malformed:
            record = writer.read(payloads[index])
            return Malformed(writer.format, record.message) if isinstance(record, Unreadable) else record

        flat = flat_reader(writer.fields, self._kinds) if isinstance(writer, AvroReader) else None
        if flat is None:
            return self._read_row_by_row(parse, np.arange(len(payloads)))
        return self._checked(flat.read(payloads), parse)

    def _checked(self, rows: ReadRows, parse: Parse) -> Columns:
        """What was read by column, where it breaks no rule, and all other rows one by one."""
        read = np.flatnonzero(rows.read)
        columns = self._filled(rows)
        unreadable = [_decode(columns, index, check) for index, check in self._tensors]
        parsed = pa.table(columns, schema=self._parsed)
        doubtful = _doubtful_rows(parsed, self._fields, unreadable)
        if doubtful is None and len(read) == len(rows.read):
            return Columns(self._narrow(parsed), read, ())
        again = np.flatnonzero(~rows.read)
        if doubtful is not None:
            doubts = doubtful.to_numpy()
            parsed = parsed.filter(pc.invert(doubtful))
            again = np.concatenate([again, read[doubts]])
            read = read[~doubts]
        others = self._read_row_by_row(parse, again)
        return Columns(
            pa.concat_tables([self._narrow(parsed), others.table]),
            np.concatenate([read, others.accepted]),
            others.faults,
        )

    def _filled(self, rows: ReadRows) -> list[pa.Array]:
        """The columns with defaults in the place of what is missing."""
        columns = list(rows.columns)
        for index, default in self._defaults:
            missing = rows.missing(index)
            if missing is not None:
                columns[index] = pc.if_else(pa.array(missing), default, columns[index])
        return columns

    def _narrow(self, parsed: pa.Table) -> pa.Table:
        columns = []
        for field, stored in zip(self._fields, self._stored, strict=True):
            column = parsed.column(field.name)
            if field.type.is_float:
                # One zero, as in `validation`: -0.0 + 0.0 is 0.0.
                column = pc.add(column, 0.0)
            columns.append(column if column.type == stored.type else column.cast(stored.type, safe=False))
        return pa.table(columns, schema=self._stored)

    def _read_row_by_row(self, parse: Parse, indexes: Int64s) -> Columns:
        read: list[int] = []
        samples: list[dict[str, object]] = []
        faults: list[tuple[int, Fault]] = []
        for index in map(int, indexes):
            sample = parse(index)
            if isinstance(sample, Malformed):
                faults.append((index, sample))
            else:
                read.append(index)
                samples.append(sample)
        columns = self._read_rows(read, samples)
        return Columns(columns.table, columns.accepted, [*faults, *columns.faults])

    def _read_rows(self, indexes: Sequence[int], samples: Sequence[dict[str, object]]) -> Columns:
        accepted: list[int] = []
        rows: list[Row] = []
        faults: list[tuple[int, Fault]] = []
        for index, sample in zip(indexes, samples, strict=True):
            row = self._rows.validate(sample)
            if isinstance(row, Violation):
                faults.append((index, row))
            else:
                accepted.append(index)
                rows.append(row)
        return Columns(self._table_of(rows), np.array(accepted, np.int64), faults)

    def _table_of(self, rows: Sequence[Row]) -> pa.Table:
        if not rows:
            return self._stored.empty_table()
        columns = [
            # By way of the wide type: Arrow refuses a double for a float32 column.
            pa.array(values, parsed_type(field)).cast(stored.type, safe=False)
            for field, stored, values in zip(self._fields, self._stored, zip(*rows, strict=True), strict=True)
        ]
        return pa.table(columns, schema=self._stored)


def parse_object(payload: bytes) -> dict[str, object] | Malformed:
    """One flat JSON object (RFC 8259, UTF-8, no name twice), or why it is none."""
    try:
        parsed = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        return Malformed("json", f"the payload is not JSON: {error}")
    if not isinstance(parsed, dict):
        return Malformed("object", "the payload is not a JSON object")
    # A container is a violation of any field's type; only flat objects need the search for a name
    # that is there twice, where parsers differ in which value they keep.
    flat = not any(isinstance(value, dict | list) for value in parsed.values())
    if flat and _has_repeated_name(payload):
        return Malformed("unique_names", "the payload has a name twice")
    return parsed


def _has_repeated_name(payload: bytes) -> bool:
    repeated = False

    def collect(pairs: list[tuple[str, object]]) -> None:
        nonlocal repeated
        repeated = repeated or len(pairs) != len({name for name, _ in pairs})

    try:
        json.loads(payload, object_pairs_hook=collect, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        # orjson took it and found it flat: a deeper parse that fails met a value that was overwritten.
        return True
    return repeated


def parsed_type(field: Field) -> pa.DataType:
    """The wide type, in which values can be compared with bounds before they are narrowed."""
    if field.type.is_integer:
        return pa.int64()
    if field.type.is_float:
        return pa.float64()
    return STORED_TYPES[field.type]


def _kind(field: Field) -> Kind:
    if field.type.is_integer:
        return Kind.INTEGER
    if field.type.is_float:
        return Kind.FLOAT
    if field.type is FieldType.TIMESTAMP:
        return Kind.TIME
    return Kind.BOOL if field.type is FieldType.BOOL else Kind.STRING


def _decode(columns: list[pa.Array], index: int, check: Check) -> pa.ChunkedArray:
    """Put bytes in the place of a column's texts, and null where they are no tensor; a mask of those."""
    values = [None if text is None else check(text) for text in columns[index].to_pylist()]
    faulty = [isinstance(value, Violation) for value in values]
    kept = [None if fault else value for value, fault in zip(values, faulty, strict=True)]
    columns[index] = pa.array(kept, pa.binary())
    return pa.chunked_array([pa.array(faulty, pa.bool_())])


def _doubtful_rows(
    table: pa.Table, fields: Sequence[Field], unreadable: Sequence[pa.ChunkedArray]
) -> pa.Array | None:
    """A mask of the rows that break a rule, or None where none does."""
    masks = [
        *(mask for mask in unreadable if pc.any(mask).as_py()),
        *(
            mask
            for index, field in enumerate(fields)
            for mask in _doubts(table.column(field.name), field, is_key=index == 0)
        ),
    ]
    if not masks:
        return None
    doubtful = masks[0]
    for mask in masks[1:]:
        doubtful = pc.or_(doubtful, mask)
    return doubtful


def _doubts(column: pa.ChunkedArray, field: Field, *, is_key: bool) -> Iterator[pa.Array]:
    """Masks of a column's faults. Cheap aggregates first: most columns of most batches have none."""
    if column.null_count and not field.nullable:
        yield column.is_null()
    if is_key and pc.any(pc.equal(column, "")).as_py():
        yield _or_false(pc.equal(column, ""))
    if field.type.is_number:
        yield from _out_of_range(column, field)
    if field.pattern:
        matching = pc.match_substring_regex(column, field.pattern)
        # A null breaks no pattern.
        if not pc.all(matching).as_py():
            yield _or_false(pc.invert(matching))
    if field.allowed_values:
        allowed = pa.array(field.allowed_values, column.type)
        found = pc.or_(pc.is_in(column, value_set=allowed), column.is_null())
        if not pc.all(found).as_py():
            yield pc.invert(found)


def _out_of_range(column: pa.ChunkedArray, field: Field) -> Iterator[pa.Array]:
    low, high = _bounds(field)
    found = pc.min_max(column)
    smallest, largest = found["min"].as_py(), found["max"].as_py()
    if smallest is None:
        return
    # NaN hides from min_max.
    if field.type.is_float and not pc.all(pc.is_finite(column)).as_py():
        yield _or_false(pc.invert(pc.is_finite(column)))
    if smallest < low:
        yield _or_false(pc.less(column, low))
    if largest > high:
        yield _or_false(pc.greater(column, high))


def _bounds(field: Field) -> tuple[float, float]:
    """The smallest and the largest value that a field takes, as numbers of the column's parsed type."""
    if field.type.is_integer:
        smallest, largest = integer_range(field.type)
        low = smallest if field.min is None else max(smallest, math.ceil(field.min))
        high = largest if field.max is None else min(largest, math.floor(field.max))
        # Bounds beyond int64 exclude everything; Arrow compares within int64.
        return min(low, _INT64_MAX), max(high, -_INT64_MAX - 1)
    limit = math.nextafter(FLOAT32_OVERFLOW, 0.0) if field.type is FieldType.FLOAT32 else math.inf
    low_float = -limit if field.min is None else max(-limit, field.min)
    high_float = limit if field.max is None else min(limit, field.max)
    return low_float, high_float


_INT64_MAX: Final = 2**63 - 1


def _or_false(mask: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(mask, False)

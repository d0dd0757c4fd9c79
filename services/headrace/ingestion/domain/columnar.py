"""Payloads to columns: whole batches by Arrow's JSON reader, doubtful rows one by one.

The fast path parses and checks a batch in native code. Where the parse fails, rows that are no JSON are set
aside, and what then still fails is split until small pieces are left; only those are read row by row by
`validation`, the authority. Where single rows break a rule, only they are read again to learn which. A bad
row never costs its neighbours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from headrace.ingestion.domain.schema import (
    FLOAT32_OVERFLOW,
    Field,
    FieldType,
    Schema,
    integer_range,
)
from headrace.ingestion.domain.validation import Row, RowValidator, Violation

STORED_TYPES: Final[dict[FieldType, pa.DataType]] = {
    FieldType.BOOL: pa.bool_(),
    FieldType.INT8: pa.int8(),
    FieldType.INT16: pa.int16(),
    FieldType.INT32: pa.int32(),
    FieldType.INT64: pa.int64(),
    FieldType.FLOAT32: pa.float32(),
    FieldType.FLOAT64: pa.float64(),
    FieldType.STRING: pa.string(),
}
"""How a field's values are stored."""

# A piece that does not parse is split into so many, down to a size where rows are read one by one.
_SPLIT: Final = 8
_ROW_BY_ROW: Final = 32
_JSON_SPACE: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Malformed:
    """The payload is no sample at all; `rule` names what a sample would need."""

    rule: str
    message: str


Fault = Violation | Malformed


@dataclass(frozen=True, slots=True)
class Columns:
    """What a batch of payloads became.

    `table` has one row for each index in `accepted`, in that order; `faults` has the other indexes.
    """

    table: pa.Table
    accepted: Sequence[int]
    faults: Sequence[tuple[int, Fault]]


def stored_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a dataset's own columns."""
    return pa.schema([(field.name, STORED_TYPES[field.type]) for field in schema.fields])


class ColumnReader:
    """A schema, prepared for many batches. Keeps no state between them; any thread may use it."""

    def __init__(self, schema: Schema) -> None:
        self._fields = schema.fields
        self._rows = RowValidator(schema)
        self._stored = stored_schema(schema)
        self._parse_options = pa_json.ParseOptions(
            explicit_schema=pa.schema([(field.name, _parsed_type(field)) for field in self._fields]),
            unexpected_field_behavior="error",
        )

    def read_json(self, payloads: Sequence[bytes]) -> Columns:
        """Turn JSON objects into columns."""
        pieces = list(self._read(payloads, range(len(payloads))))
        return self._assemble(pieces)

    def read_samples(self, samples: Sequence[dict[str, object]]) -> Columns:
        """Turn samples that are parsed already into columns."""
        return self._read_rows(range(len(samples)), samples)

    def _assemble(self, pieces: Sequence[Columns]) -> Columns:
        if len(pieces) == 1:
            return pieces[0]
        return Columns(
            pa.concat_tables([piece.table for piece in pieces]) if pieces else self._stored.empty_table(),
            [index for piece in pieces for index in piece.accepted],
            [fault for piece in pieces for fault in piece.faults],
        )

    def _read(self, payloads: Sequence[bytes], indexes: Sequence[int]) -> Iterator[Columns]:
        parsed = self._parse([payloads[index] for index in indexes])
        if parsed is not None:
            yield from self._check(payloads, indexes, parsed)
        elif len(indexes) <= _ROW_BY_ROW:
            yield self._read_row_by_row(payloads, indexes)
        else:
            yield from self._read_apart(payloads, indexes)

    def _read_apart(self, payloads: Sequence[bytes], indexes: Sequence[int]) -> Iterator[Columns]:
        """Set aside what is no JSON, which is what spoils most batches; split what still fails."""
        sound = [index for index in indexes if _is_json(payloads[index])]
        if len(sound) < len(indexes):
            aside = set(indexes).difference(sound)
            yield self._read_row_by_row(payloads, sorted(aside))
            yield from self._read(payloads, sound)
            return
        step = max(_ROW_BY_ROW, math.ceil(len(indexes) / _SPLIT))
        for start in range(0, len(indexes), step):
            yield from self._read(payloads, indexes[start : start + step])

    def _parse(self, payloads: Sequence[bytes]) -> pa.Table | None:
        """All payloads as one table of a row each, or None if that is not what they are.

        The reader accepts any number of objects between two newlines. Each payload starts with "{" and
        ends with "}", so that no object spans two of them ("}" and "{" never stand side by side inside
        one), and each holds at least one; as many rows as payloads then means one each.
        """
        if not _are_bare_objects(payloads):
            payloads = [payload.strip(_JSON_SPACE) for payload in payloads]
            if not _are_bare_objects(payloads):
                return None
        lines = b"\n".join(payloads)
        try:
            table = pa_json.read_json(
                pa.BufferReader(lines),
                read_options=pa_json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
                parse_options=self._parse_options,
            )
            for field in self._fields:
                if field.type is FieldType.STRING:
                    # The reader takes any bytes in a string: only here is it checked that they are UTF-8.
                    table.column(field.name).validate(full=True)
        except (pa.ArrowException, ValueError):
            # UnicodeDecodeError, for a key that is not UTF-8, is a ValueError.
            return None
        return table if table.num_rows == len(payloads) else None

    def _check(
        self, payloads: Sequence[bytes], indexes: Sequence[int], parsed: pa.Table
    ) -> Iterator[Columns]:
        doubtful = _doubtful_rows(parsed, self._fields)
        if doubtful is None:
            yield Columns(self._narrow(parsed), indexes, ())
            return
        good = pc.invert(doubtful)
        accepted = [indexes[row] for row in _true_indexes(good)]
        yield Columns(self._narrow(parsed.filter(good)), accepted, ())
        yield self._read_row_by_row(payloads, [indexes[row] for row in _true_indexes(doubtful)])

    def _narrow(self, parsed: pa.Table) -> pa.Table:
        columns = []
        for field, stored in zip(self._fields, self._stored, strict=True):
            column = parsed.column(field.name)
            if field.type.is_float:
                # One zero, as in `validation`: -0.0 + 0.0 is 0.0.
                column = pc.add(column, 0.0)
            columns.append(column if column.type == stored.type else column.cast(stored.type, safe=False))
        return pa.table(columns, schema=self._stored)

    def _read_row_by_row(self, payloads: Sequence[bytes], indexes: Sequence[int]) -> Columns:
        read: list[int] = []
        samples: list[dict[str, object]] = []
        faults: list[tuple[int, Fault]] = []
        for index in indexes:
            sample = parse_object(payloads[index])
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
        return Columns(self._table_of(rows), accepted, faults)

    def _table_of(self, rows: Sequence[Row]) -> pa.Table:
        if not rows:
            return self._stored.empty_table()
        columns = [
            # By way of the wide type: Arrow refuses a double for a float32 column.
            pa.array(values, _parsed_type(field)).cast(stored.type, safe=False)
            for field, stored, values in zip(self._fields, self._stored, zip(*rows, strict=True), strict=True)
        ]
        return pa.table(columns, schema=self._stored)


def _are_bare_objects(payloads: Sequence[bytes]) -> bool:
    return all(payload[:1] == b"{" and payload[-1:] == b"}" for payload in payloads)


def _is_json(payload: bytes) -> bool:
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError:
        return False
    return True


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


def _parsed_type(field: Field) -> pa.DataType:
    """The wide type, in which values can be compared with bounds before they are narrowed."""
    if field.type.is_integer:
        return pa.int64()
    if field.type.is_float:
        return pa.float64()
    return STORED_TYPES[field.type]


def _doubtful_rows(table: pa.Table, fields: Sequence[Field]) -> pa.Array | None:
    """A mask of the rows that break a rule, or None where none does."""
    masks = [
        mask
        for index, field in enumerate(fields)
        for mask in _doubts(table.column(field.name), field, is_key=index == 0)
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


def _true_indexes(mask: pa.ChunkedArray) -> list[int]:
    indexes: list[int] = pc.indices_nonzero(mask).to_pylist()
    return indexes

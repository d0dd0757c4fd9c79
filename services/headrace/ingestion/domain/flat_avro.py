"""Many flat Avro records of one writer's schema to columns at once, in compiled code.

It reads records whose fields are numbers, booleans, strings, bytes, enums, fixed, null, and unions of those.
It never judges: a row that is no such record, or has a value that the dataset's field does not take as it is,
is left for `avro` to read.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.ingestion.domain.avro import Node, WriterField
from headrace.ingestion.domain.flat_json import MISSING, NULL, Kind, ReadRows, column_of
from headrace.messaging.record_columns import read_varint
from headrace.native import Bools, Bytes, Float64s, Int64s, Spans, UInt64s, compiled
from headrace.native.spans import is_utf8, validity

_NO_FIELD: Final = -1
_NOWHERE: Final = -1
_NANOS: Final = 1000
# Years 1 to 9999, in microseconds since the epoch.
_FIRST_TIME: Final = -62_135_596_800_000_000
_LAST_TIME: Final = 253_402_300_799_999_999


class _Form(enum.IntEnum):
    """How a value is written."""

    NULL = 0
    BOOL = 1
    INTEGER = 2
    FLOAT = 3
    DOUBLE = 4
    BYTES = 5
    STRING = 6
    ENUM = 7
    FIXED = 8


class _Use(enum.IntEnum):
    """What becomes of a value."""

    SKIP = 0
    REFUSE = 1
    """The row is left to others."""
    KEEP = 2
    AS_FLOAT = 3
    AS_TIME = 4


_FORMS: Final = {
    "null": _Form.NULL,
    "boolean": _Form.BOOL,
    "int": _Form.INTEGER,
    "long": _Form.INTEGER,
    "float": _Form.FLOAT,
    "double": _Form.DOUBLE,
    "bytes": _Form.BYTES,
    "string": _Form.STRING,
    "enum": _Form.ENUM,
    "fixed": _Form.FIXED,
}
_USES: Final = {
    (Kind.BOOL, _Form.BOOL): _Use.KEEP,
    (Kind.INTEGER, _Form.INTEGER): _Use.KEEP,
    (Kind.FLOAT, _Form.INTEGER): _Use.AS_FLOAT,
    (Kind.FLOAT, _Form.FLOAT): _Use.KEEP,
    (Kind.FLOAT, _Form.DOUBLE): _Use.KEEP,
    (Kind.STRING, _Form.STRING): _Use.KEEP,
    (Kind.STRING, _Form.ENUM): _Use.KEEP,
}
# As compiled code sees them.
_F_NULL, _F_BOOL, _F_INTEGER, _F_FLOAT, _F_DOUBLE, _F_BYTES, _F_STRING, _F_ENUM, _ = map(int, _Form)
_U_SKIP, _U_REFUSE, _, _U_AS_FLOAT, _U_AS_TIME = map(int, _Use)


@dataclass(frozen=True, slots=True)
class _Branch:
    """One of the types that a field's value may have; `size` is a fixed's, or how many symbols there are."""

    form: _Form
    use: _Use
    size: int
    symbols: tuple[str, ...]


Fields = Sequence[tuple[str, Kind]]


class FlatAvroReader:
    """A writer's flat schema and a dataset's fields, prepared for many batches."""

    def __init__(
        self, writer: Sequence[WriterField], branches: Sequence[Sequence[_Branch]], fields: Fields
    ) -> None:
        """By `flat_reader`, which knows whether the schema is flat."""
        places = {name: index for index, (name, _) in enumerate(fields)}
        self._kinds = [kind for _, kind in fields]
        self._columns = np.array([places.get(field.name, _NO_FIELD) for field in writer], np.int64)
        self._counts = np.array([len(some) for some in branches], np.int64)
        self._unions = np.array([isinstance(field.type, list) for field in writer], np.bool_)
        self._units = np.array([field.units or 0 for field in writer], np.int64)
        flat = [branch for some in branches for branch in some]
        self._forms = np.array([int(branch.form) for branch in flat], np.int64)
        self._uses = np.array([int(branch.use) for branch in flat], np.int64)
        self._sizes = np.array([branch.size for branch in flat], np.int64)
        self._symbols = {
            places[field.name]: branch.symbols
            for field, some in zip(writer, branches, strict=True)
            for branch in some
            if branch.form is _Form.ENUM and branch.use is _Use.KEEP
        }

    def read(self, payloads: Spans) -> ReadRows:
        """Read all payloads: columns as those of JSON; null where null or not among the writer's fields."""
        fields, rows = len(self._kinds), len(payloads)
        values = np.zeros((fields, rows), np.uint64)
        lengths = np.full((fields, rows), MISSING, np.int64)
        read = np.zeros(rows, np.bool_)
        narrow = np.zeros(1, np.uint32)
        _read_rows(
            payloads.buffer,
            payloads.starts,
            payloads.lengths,
            self._columns,
            self._counts,
            self._unions,
            self._units,
            self._forms,
            self._uses,
            self._sizes,
            values,
            values.view(np.float64),
            narrow,
            narrow.view(np.float32),
            lengths,
            read,
        )
        if not read.all():
            values = np.ascontiguousarray(values[:, read])
            lengths = np.ascontiguousarray(lengths[:, read])
        columns = [
            _symbols_of(self._symbols[field], values[field], lengths[field])
            if field in self._symbols
            else column_of(kind, payloads.buffer, values[field], lengths[field])
            for field, kind in enumerate(self._kinds)
        ]
        return ReadRows(columns, read, lengths)


def flat_reader(writer: Sequence[WriterField], fields: Fields) -> FlatAvroReader | None:
    """A reader for a dataset's fields; None where the writer's record is not flat."""
    kinds = dict(fields)
    branches = [_branches(field, kinds.get(field.name)) for field in writer]
    flat = [some for some in branches if some is not None]
    return FlatAvroReader(writer, flat, fields) if len(flat) == len(branches) else None


def _branches(field: WriterField, kind: Kind | None) -> Sequence[_Branch] | None:
    nodes = field.type if isinstance(field.type, list) else [field.type]
    branches = [_branch(node, kind, field.units) for node in nodes]
    flat = [branch for branch in branches if branch is not None]
    if len(flat) < len(branches):
        return None
    texts = [branch for branch in flat if branch.form in (_Form.STRING, _Form.ENUM)]
    # Symbols are kept in another way than strings, and those of two enums are not told apart.
    return flat if len(texts) < 2 else None


def _branch(node: Node, kind: Kind | None, units: int | None) -> _Branch | None:
    """None where the type is not flat, or a name that was defined elsewhere."""
    described: dict[str, Any] = node if isinstance(node, dict) else {"type": node}
    written = described["type"]
    form = _FORMS.get(written) if isinstance(written, str) else None
    if form is None:
        return None
    symbols = tuple(described["symbols"]) if form is _Form.ENUM else ()
    size = described["size"] if form is _Form.FIXED else len(symbols)
    return _Branch(form, _use(form, kind, units if written == "long" else None), size, symbols)


def _use(form: _Form, kind: Kind | None, units: int | None) -> _Use:
    if kind is None:
        return _Use.SKIP
    if form is _Form.NULL:
        return _Use.KEEP
    if kind is Kind.TIME:
        return _Use.AS_TIME if form is _Form.INTEGER and units else _Use.REFUSE
    return _USES.get((kind, form), _Use.REFUSE)


def _symbols_of(symbols: tuple[str, ...], values: UInt64s, lengths: Int64s) -> pa.Array:
    places = pa.Array.from_buffers(
        pa.int64(), len(values), [validity(lengths >= 0), pa.py_buffer(np.ascontiguousarray(values))]
    )
    return pa.array(symbols, pa.string()).take(places)


@compiled
def _read_rows(
    buffer: Bytes,
    starts: Int64s,
    row_lengths: Int64s,
    columns: Int64s,
    counts: Int64s,
    unions: Bools,
    units: Int64s,
    forms: Int64s,
    uses: Int64s,
    sizes: Int64s,
    values: UInt64s,
    doubles: Float64s,
    narrow: npt.NDArray[np.uint32],
    narrow_floats: npt.NDArray[np.float32],
    lengths: Int64s,
    read: Bools,
) -> None:
    """`doubles` is the memory of `values`, and `narrow_floats` that of `narrow`."""
    for row in range(len(starts)):
        position, end = starts[row], starts[row] + row_lengths[row]
        first = 0
        for field in range(len(columns)):
            branch, position = _branch_at(buffer, position, end, first, counts[field], unions[field])
            first += counts[field]
            if position == _NOWHERE or uses[branch] == _U_REFUSE:
                position = _NOWHERE
                break
            form, use, column = forms[branch], uses[branch], columns[field]
            position, bits, length = _read_value(buffer, position, end, form, sizes[branch])
            if position == _NOWHERE:
                break
            if use == _U_SKIP:
                continue
            lengths[column, row] = length
            if form == _F_FLOAT:
                narrow[0] = np.uint32(bits)
                doubles[column, row] = np.float64(narrow_floats[0])
            elif use == _U_AS_FLOAT:
                doubles[column, row] = np.float64(np.int64(bits))
            elif use == _U_AS_TIME:
                # int() would stay unsigned.
                sound, micros = _micros(np.int64(bits), units[field])  # type: ignore[arg-type]
                if not sound:
                    position = _NOWHERE
                    break
                values[column, row] = np.uint64(micros)
            else:
                values[column, row] = bits
        read[row] = position == end


@compiled
def _branch_at(
    buffer: Bytes, position: int, end: int, first: int, count: int, union: bool
) -> tuple[int, int]:
    """Which of a field's branches its value has, and where that begins, or -1."""
    if not union:
        return first, position
    index, position = read_varint(buffer, position, end)
    if position < 0 or not 0 <= index < count:
        return first, _NOWHERE
    return first + index, position


@compiled
def _read_value(buffer: Bytes, position: int, end: int, form: int, size: int) -> tuple[int, np.uint64, int]:
    """The position behind a value, or -1; its bits, or a string's start; its length, which for null is -1."""
    if form == _F_NULL:
        return position, np.uint64(0), NULL
    if form in (_F_STRING, _F_BYTES):
        return _read_bytes(buffer, position, end, form)
    if form == _F_BOOL:
        sound = position < end and buffer[position] <= 1
        return (position + 1, np.uint64(buffer[position]), 0) if sound else (_NOWHERE, np.uint64(0), 0)
    if form in (_F_INTEGER, _F_ENUM):
        number, position = read_varint(buffer, position, end)
        sound = position > 0 and (form == _F_INTEGER or 0 <= number < size)
        return position if sound else _NOWHERE, np.uint64(number), 0
    return _read_fixed(buffer, position, end, form, size)


@compiled
def _read_bytes(buffer: Bytes, position: int, end: int, form: int) -> tuple[int, np.uint64, int]:
    length, position = read_varint(buffer, position, end)
    if position < 0 or length < 0 or length > end - position:
        return _NOWHERE, np.uint64(0), 0
    if form == _F_STRING and not is_utf8(buffer, position, position + length):
        return _NOWHERE, np.uint64(0), 0
    return position + length, np.uint64(position), length


@compiled
def _read_fixed(buffer: Bytes, position: int, end: int, form: int, size: int) -> tuple[int, np.uint64, int]:
    width = 8 if form == _F_DOUBLE else 4 if form == _F_FLOAT else size
    if width > end - position:
        return _NOWHERE, np.uint64(0), 0
    bits = np.uint64(0)
    # Of a fixed nothing is kept.
    for index in range(min(width, 8)):
        bits |= np.uint64(buffer[position + index]) << np.uint64(8 * index)
    return position + width, bits, 0


@compiled
def _micros(number: int, units: int) -> tuple[bool, int]:
    """A number of units, in nanoseconds each, as microseconds since the epoch, where a calendar has them."""
    if units < _NANOS:
        micros = number // (_NANOS // units)
    else:
        scale = units // _NANOS
        if not _FIRST_TIME // scale <= number <= _LAST_TIME // scale:
            return False, 0
        micros = number * scale
    return _FIRST_TIME <= micros <= _LAST_TIME, micros

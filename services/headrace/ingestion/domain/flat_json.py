"""Many flat JSON objects (RFC 8259) to columns at once, in compiled code.

It reads what samples are made of: objects whose names are a schema's, each at most once, and whose values are
numbers, strings, times, booleans and null. It never judges. A row that is anything else, or that would need
care (an escape in a string, an integer of more than 18 digits, a number of more than 19, a time outside of
UTC), is left for others to read, and so is one that lacks nothing but sense: `read` says which it has read.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import pyarrow as pa

from headrace.ingestion.domain.decimals import MAX_DIGITS, to_double
from headrace.native import Bools, Bytes, Float64s, Int64s, Spans, UInt64s, compiled
from headrace.native.rfc3339 import read_time
from headrace.native.spans import same_bytes, utf8_length, validity

_MAX_INTEGER_DIGITS: Final = 18
_MAX_EXPONENT: Final = 10_000

_QUOTE, _COMMA, _MINUS, _POINT, _ZERO, _NINE, _COLON = (ord(c) for c in '",-.09:')
_BACKSLASH, _OPEN, _CLOSE, _SPACE = (ord(c) for c in "\\{} ")
_TAB, _NEWLINE, _RETURN = (ord(c) for c in "\t\n\r")
_E, _SMALL_E, _PLUS, _N, _T, _F, _U, _L, _R, _A, _S = (ord(c) for c in "Ee+ntfulras")
_NOT_ASCII: Final = 0x80
_NO_FIELD: Final = -1
_NOWHERE: Final = -1
NULL, MISSING = -1, -2
"""In the place of a value's length."""


class Kind(enum.IntEnum):
    """What a field's values are."""

    FLOAT = 0
    INTEGER = 1
    BOOL = 2
    STRING = 3
    TIME = 4


_FLOAT, _, _BOOL, _STRING, _TIME = (int(kind) for kind in Kind)


@dataclass(frozen=True, slots=True)
class ReadRows:
    """What was read: a column for each field, with a value for each row in which `read` is set."""

    columns: Sequence[pa.Array]
    read: Bools
    lengths: Int64s
    """For each field and row: a string's length, and less than 0 where there is no value."""

    def missing(self, field: int) -> Bools | None:
        """Where a field that is null was not there at all; None if nowhere."""
        found = self.lengths[field] == MISSING
        return found if found.any() else None


class FlatJsonReader:
    """Names and kinds of a schema's fields, prepared for many batches."""

    def __init__(self, fields: Sequence[tuple[str, Kind]]) -> None:
        self._names = Spans.of(name.encode() for name, _ in fields)
        self._kinds = np.array([int(kind) for _, kind in fields], np.int64)

    def read(self, payloads: Spans) -> ReadRows:
        """Read all payloads: doubles, 64-bit integers, booleans, strings, times; null where null or missing.

        Times are microseconds since the epoch.
        """
        fields, rows = len(self._kinds), len(payloads)
        values = np.zeros((fields, rows), np.uint64)
        lengths = np.full((fields, rows), MISSING, np.int64)
        read = np.zeros(rows, np.bool_)
        names = self._names
        _read_rows(
            payloads.buffer,
            payloads.starts,
            payloads.lengths,
            names.buffer,
            names.starts,
            names.lengths,
            self._kinds,
            values,
            values.view(np.float64),
            lengths,
            np.zeros(fields, np.int64),
            read,
        )
        return rows_of(self._kinds, payloads.buffer, values, lengths, read)


def rows_of(kinds: Int64s, buffer: Bytes, values: UInt64s, lengths: Int64s, read: Bools) -> ReadRows:
    """What was read of [fields, rows]: a column for each field, of the rows in `read`."""
    if not read.all():
        values = np.ascontiguousarray(values[:, read])
        lengths = np.ascontiguousarray(lengths[:, read])
    columns = [
        column_of(Kind(kind), buffer, values[field], lengths[field]) for field, kind in enumerate(kinds)
    ]
    return ReadRows(columns, read, lengths)


def column_of(kind: Kind, buffer: Bytes, values: UInt64s, lengths: Int64s) -> pa.Array:
    """Numbers are bits in `values`; of strings those are the starts. A negative length is null."""
    if kind is Kind.STRING:
        return Spans(buffer, values.view(np.int64), lengths).to_arrow()
    bitmap = validity(lengths >= 0)
    if kind is Kind.BOOL:
        bits = np.packbits(values.astype(np.bool_), bitorder="little")
        return pa.BooleanArray.from_buffers(pa.bool_(), len(values), [bitmap, pa.py_buffer(bits)])
    type_ = {Kind.FLOAT: pa.float64(), Kind.TIME: pa.timestamp("us", "UTC")}.get(kind, pa.int64())
    data = pa.py_buffer(np.ascontiguousarray(values))
    return cast("pa.Array", pa.Array.from_buffers(type_, len(values), [bitmap, data]))


@compiled
def _read_rows(
    buffer: Bytes,
    starts: Int64s,
    sizes: Int64s,
    names: Bytes,
    name_starts: Int64s,
    name_lengths: Int64s,
    kinds: Int64s,
    values: UInt64s,
    doubles: Float64s,
    lengths: Int64s,
    seen: Int64s,
    read: Bools,
) -> None:
    """`values` and `doubles` are the same memory; in `seen` is the row, from one, that had a field last."""
    for row in range(len(starts)):
        position, end = starts[row], starts[row] + sizes[row]
        position = _skip(buffer, position, end, _OPEN)
        expected = 0
        while position != _NOWHERE:
            position = _skip(buffer, position, end, _QUOTE)
            if position == _NOWHERE:
                break
            field = _field_at(buffer, position, end, names, name_starts, name_lengths, expected)
            if field == _NO_FIELD or seen[field] == row + 1:
                break
            seen[field] = row + 1
            expected = field + 1
            position = _skip(buffer, position + name_lengths[field] + 1, end, _COLON)
            if position == _NOWHERE:
                break
            position = _skip_space(buffer, position, end)
            if kinds[field] == _FLOAT and position < end and buffer[position] != _N:
                position, doubles[field, row] = _read_double(buffer, position, end)
                lengths[field, row] = 0
            else:
                position, values[field, row], lengths[field, row] = _read_value(
                    buffer, position, end, kinds[field]
                )
            if position == _NOWHERE:
                break
            position = _skip_space(buffer, position, end)
            if position < end and buffer[position] == _CLOSE:
                read[row] = _skip_space(buffer, position + 1, end) == end
                break
            position = _skip(buffer, position, end, _COMMA)


@compiled
def _skip_space(buffer: Bytes, position: int, end: int) -> int:
    # What follows is hardly ever a space: one comparison tells.
    while position < end and buffer[position] <= _SPACE:
        byte = buffer[position]
        if byte != _SPACE and byte != _NEWLINE and byte != _RETURN and byte != _TAB:
            break
        position += 1
    return position


@compiled
def _skip(buffer: Bytes, position: int, end: int, byte: int) -> int:
    """Behind that byte, which white space may precede; -1 where another one stands."""
    position = _skip_space(buffer, position, end)
    if position < end and buffer[position] == byte:
        return position + 1
    return _NOWHERE


@compiled
def _field_at(
    buffer: Bytes,
    position: int,
    end: int,
    names: Bytes,
    name_starts: Int64s,
    name_lengths: Int64s,
    expected: int,
) -> int:
    """The field whose name and closing quote stand at the position. Rows tend to have one order."""
    count = len(name_starts)
    if expected < count and _is_name(
        buffer, position, end, names, name_starts[expected], name_lengths[expected]
    ):
        return expected
    for field in range(count):
        if _is_name(buffer, position, end, names, name_starts[field], name_lengths[field]):
            return field
    return _NO_FIELD


@compiled
def _is_name(buffer: Bytes, position: int, end: int, names: Bytes, start: int, length: int) -> bool:
    if position + length >= end or buffer[position + length] != _QUOTE:
        return False
    return same_bytes(buffer, position, names, start, length)


@compiled
def _read_value(buffer: Bytes, position: int, end: int, kind: int) -> tuple[int, np.uint64, int]:
    """The position behind a value that is no double, or -1; its bits, or a string's start; -1 for null."""
    if position >= end:
        return _NOWHERE, np.uint64(0), NULL
    if buffer[position] == _N:
        return _read_word(buffer, position, end, (_N, _U, _L, _L)), np.uint64(0), NULL
    if kind == _STRING:
        start = position + 1
        behind = _read_string(buffer, position, end)
        return behind, np.uint64(start), behind - start - 1
    if kind == _TIME:
        behind = _read_string(buffer, position, end)
        sound, micros = read_time(buffer, position + 1, behind - 1)
        return behind if sound else _NOWHERE, np.uint64(micros), 0
    if kind == _BOOL:
        if buffer[position] == _T:
            return _read_word(buffer, position, end, (_T, _R, _U, _SMALL_E)), np.uint64(1), 0
        return _read_word(buffer, position, end, (_F, _A, _L, _S, _SMALL_E)), np.uint64(0), 0
    behind, integer = _read_integer(buffer, position, end)
    return behind, np.uint64(integer), 0


@compiled
def _read_word(buffer: Bytes, position: int, end: int, word: tuple[int, ...]) -> int:
    for byte in word:
        if position >= end or buffer[position] != byte:
            return _NOWHERE
        position += 1
    return position


@compiled
def _read_string(buffer: Bytes, position: int, end: int) -> int:
    """Behind the closing quote; -1 for an escape, a control character, and bytes that are no UTF-8."""
    if buffer[position] != _QUOTE:
        return _NOWHERE
    position += 1
    while position < end:
        byte = buffer[position]
        if byte == _QUOTE:
            return position + 1
        if byte == _BACKSLASH or byte < _SPACE:
            return _NOWHERE
        length = 1 if byte < _NOT_ASCII else utf8_length(buffer, position, end)
        if length == 0:
            return _NOWHERE
        position += length
    return _NOWHERE


@compiled
def _read_integer(buffer: Bytes, position: int, end: int) -> tuple[int, int]:
    """The position behind an integer, or -1. A fraction, an exponent and minus zero are none of them."""
    negative = buffer[position] == _MINUS
    position, digits, count = _read_whole(buffer, position + negative, end)
    if count > _MAX_INTEGER_DIGITS or (negative and digits == 0):
        return _NOWHERE, 0
    value = np.int64(digits)
    return position, -value if negative else value  # type: ignore[return-value] # compiled, it is one


@compiled
def _read_double(buffer: Bytes, position: int, end: int) -> tuple[int, float]:
    """The position behind a number, or -1."""
    negative = buffer[position] == _MINUS
    position, digits, count = _read_whole(buffer, position + negative, end)
    power = 0
    if position != _NOWHERE and position < end and buffer[position] == _POINT:
        start = position + 1
        position, digits, count = _read_digits(buffer, start, end, digits, count)
        power = start - position
        if power == 0:
            return _NOWHERE, 0.0
    if position != _NOWHERE and position < end and (buffer[position] == _E or buffer[position] == _SMALL_E):
        position, exponent = _read_exponent(buffer, position + 1, end)
        power += exponent
    if position == _NOWHERE or count > MAX_DIGITS:
        return _NOWHERE, 0.0
    decided, double = to_double(digits, power)
    return position if decided else _NOWHERE, -double if negative else double


@compiled
def _read_whole(buffer: Bytes, start: int, end: int) -> tuple[int, np.uint64, int]:
    """The position behind a whole part without leading zeros, or -1; its digits; how many of them matter."""
    position, digits, count = _read_digits(buffer, start, end, np.uint64(0), 0)
    if position == start or (buffer[start] == _ZERO and position > start + 1):
        return _NOWHERE, np.uint64(0), 0
    return position, digits, count


@compiled
def _read_digits(
    buffer: Bytes, position: int, end: int, digits: np.uint64, count: int
) -> tuple[int, np.uint64, int]:
    """Continue `digits`, of which `count` matter; the position behind them."""
    while position < end and _ZERO <= buffer[position] <= _NINE:
        digits = digits * np.uint64(10) + np.uint64(buffer[position] - _ZERO)
        if digits or count:
            count += 1
        position += 1
    return position, digits, count


@compiled
def _read_exponent(buffer: Bytes, position: int, end: int) -> tuple[int, int]:
    """The position behind an exponent, or -1, and the exponent."""
    negative = position < end and buffer[position] == _MINUS
    if negative or (position < end and buffer[position] == _PLUS):
        position += 1
    start, exponent = position, 0
    while position < end and _ZERO <= buffer[position] <= _NINE:
        exponent = exponent * 10 + int(buffer[position] - _ZERO)
        if exponent > _MAX_EXPONENT:
            return _NOWHERE, 0
        position += 1
    if position == start:
        return _NOWHERE, 0
    return position, -exponent if negative else exponent

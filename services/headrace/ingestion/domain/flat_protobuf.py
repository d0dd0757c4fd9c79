"""Many Protobuf samples (`headrace.events.ingestion.v1.Sample`) to columns at once, in compiled code.

It reads samples as libraries write them: a map's entries, each a name and then a value, each name at most
once, and each value's type the one that its field has. It never judges: any other row, and any bytes that are
no such message, are left for Protobuf's own library to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from headrace.ingestion.domain.flat_json import MISSING, NULL, Kind, ReadRows, rows_of
from headrace.native import Bools, Bytes, Float64s, Int64s, Spans, UInt64s, compiled
from headrace.native.rfc3339 import read_time
from headrace.native.spans import is_utf8, same_bytes

_NO_FIELD: Final = -1
_NOWHERE: Final = -1
# Field numbers with wire types, as they are written: Sample.fields; of its entries key and value; of Value.
_ENTRY, _KEY, _VALUE = 0x0A, 0x0A, 0x12
_DOUBLE, _INTEGER, _STRING, _BOOL = 0x09, 0x10, 0x1A, 0x20
_K_FLOAT, _, _K_BOOL, _K_STRING, _K_TIME = (int(kind) for kind in Kind)
_MOST_VARINT_BYTES: Final = 10
_DOUBLE_BYTES: Final = 8


class FlatProtobufReader:
    """Names and kinds of a schema's fields, prepared for many batches."""

    def __init__(self, fields: Sequence[tuple[str, Kind]]) -> None:
        self._names = Spans.of(name.encode() for name, _ in fields)
        self._kinds = np.array([int(kind) for _, kind in fields], np.int64)

    def read(self, payloads: Spans) -> ReadRows:
        """Read all payloads: columns as those of JSON; null where unset or missing."""
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
            np.arange(fields + 1),
            read,
        )
        return rows_of(self._kinds, payloads.buffer, values, lengths, read)


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
    following: Int64s,
    read: Bools,
) -> None:
    """`values` and `doubles` are the same memory; in `seen` is the row, from one, that had a field last.

    `following` has the field that came behind each, and at its end the one that came first: maps have no
    order, but one writer's have the same in all its messages.
    """
    count = len(name_starts)
    for row in range(len(starts)):
        position, end = starts[row], starts[row] + sizes[row]
        before = count
        while position != _NOWHERE and position < end:
            behind, key, key_length, position, value_end = _read_entry(buffer, position, end)
            if behind == _NOWHERE:
                position = _NOWHERE
                break
            field = _field_of(
                buffer, key, key_length, names, name_starts, name_lengths, following[before] % count
            )
            if field == _NO_FIELD or seen[field] == row + 1:
                position = _NOWHERE
                break
            seen[field] = row + 1
            following[before] = field
            before = field
            if position == value_end:
                lengths[field, row] = NULL
            else:
                sound, bits, lengths[field, row] = _read_value(buffer, position, value_end, kinds[field])
                if not sound:
                    position = _NOWHERE
                    break
                if kinds[field] == _K_FLOAT and buffer[position] == _INTEGER:
                    doubles[field, row] = np.float64(np.int64(bits))
                else:
                    values[field, row] = bits
            position = behind
        read[row] = position == end


@compiled
def _read_entry(buffer: Bytes, position: int, end: int) -> tuple[int, int, int, int, int]:
    """Behind an entry of the map, or -1; start and length of its name; start and end of its value."""
    start, behind = _read_part(buffer, position, end, _ENTRY)
    if behind == _NOWHERE:
        return _NOWHERE, 0, 0, 0, 0
    key, key_end = _read_part(buffer, start, behind, _KEY)
    if key_end == _NOWHERE:
        return _NOWHERE, 0, 0, 0, 0
    value, value_end = _read_part(buffer, key_end, behind, _VALUE)
    if value_end != behind:
        return _NOWHERE, 0, 0, 0, 0
    return behind, key, key_end - key, value, value_end


@compiled
def _read_part(buffer: Bytes, position: int, end: int, tag: int) -> tuple[int, int]:
    """Start and end of the bytes behind that tag and their length; -1 for the end where there are none."""
    if position >= end or buffer[position] != tag:
        return 0, _NOWHERE
    length, start = _read_varint(buffer, position + 1, end)
    if start == _NOWHERE or length > np.uint64(end - start):
        return 0, _NOWHERE
    return start, start + np.int64(length)  # type: ignore[return-value] # compiled, it is one


@compiled
def _read_varint(buffer: Bytes, position: int, end: int) -> tuple[np.uint64, int]:
    """A varint of up to 64 bits, and the position behind it, or -1."""
    result = np.uint64(0)
    for index in range(_MOST_VARINT_BYTES):
        if position >= end:
            return result, _NOWHERE
        byte = buffer[position]
        position += 1
        if index == _MOST_VARINT_BYTES - 1 and byte > 1:
            return result, _NOWHERE
        result |= np.uint64(byte & 0x7F) << np.uint64(7 * index)
        if byte < 0x80:
            return result, position
    return result, _NOWHERE


@compiled
def _field_of(
    buffer: Bytes,
    start: int,
    length: int,
    names: Bytes,
    name_starts: Int64s,
    name_lengths: Int64s,
    expected: int,
) -> int:
    """The field of that name, or -1."""
    if name_lengths[expected] == length and same_bytes(buffer, start, names, name_starts[expected], length):
        return expected
    for field in range(len(name_starts)):
        if name_lengths[field] == length and same_bytes(buffer, start, names, name_starts[field], length):
            return field
    return _NO_FIELD


@compiled
def _read_value(buffer: Bytes, position: int, end: int, kind: int) -> tuple[bool, np.uint64, int]:
    """Whether a value that takes all of that is of the kind; its bits, or a string's start; its length."""
    form = buffer[position]
    if kind in (_K_STRING, _K_TIME):
        return _read_text(buffer, position, end, kind)
    if kind == _K_FLOAT and form == _DOUBLE:
        bits = np.uint64(0)
        if end - position != 1 + _DOUBLE_BYTES:
            return False, bits, 0
        for index in range(_DOUBLE_BYTES):
            bits |= np.uint64(buffer[position + 1 + index]) << np.uint64(8 * index)
        return True, bits, 0
    if form != (_BOOL if kind == _K_BOOL else _INTEGER):
        return False, np.uint64(0), 0
    bits, behind = _read_varint(buffer, position + 1, end)
    sound = behind == end and (kind != _K_BOOL or bits < np.uint64(2))
    return bool(sound), bits, 0


@compiled
def _read_text(buffer: Bytes, position: int, end: int, kind: int) -> tuple[bool, np.uint64, int]:
    start, behind = _read_part(buffer, position, end, _STRING)
    if behind != end or not is_utf8(buffer, start, end):
        return False, np.uint64(0), 0
    if kind == _K_STRING:
        return True, np.uint64(start), end - start
    sound, micros = read_time(buffer, start, end)
    return sound, np.uint64(micros), 0

"""Many byte strings in one buffer, without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.native.compiler import compiled

Bytes: TypeAlias = npt.NDArray[np.uint8]
Bools: TypeAlias = npt.NDArray[np.bool_]
Int64s: TypeAlias = npt.NDArray[np.int64]
Float64s: TypeAlias = npt.NDArray[np.float64]
UInt64s: TypeAlias = npt.NDArray[np.uint64]

# What says where each string of a column of Arrow begins.
OFFSETS: Final = {pa.string(): np.int32, pa.large_string(): np.int64, pa.binary(): np.int32}


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """`buffer[start : start + length]` for each start and length; a negative length is no string at all."""

    buffer: Bytes
    starts: Int64s
    lengths: Int64s

    @classmethod
    def of(cls, strings: Iterable[bytes | None]) -> Self:
        """Copy strings that are Python objects into a buffer of their own."""
        strings = list(strings)
        lengths = np.array([-1 if text is None else len(text) for text in strings], np.int64)
        taken = np.maximum(lengths, 0)
        buffer = np.frombuffer(b"".join(text or b"" for text in strings), np.uint8)
        return cls(buffer, np.cumsum(taken) - taken, lengths)

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray) -> Self:
        """The bytes of a column of strings, large or not, or of bytes; those of a null are empty.

        Raises TypeError for any other column.
        """
        width = OFFSETS.get(column.type)
        if width is None:
            raise TypeError(f"not a column of strings or bytes but of {column.type}")
        array = column.combine_chunks()
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
        return cls(np.frombuffer(data or b"", np.uint8), ends[:-1], np.diff(ends))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> bytes:
        """One string; b"" for none."""
        start = int(self.starts[index])
        return self.buffer[start : start + max(0, int(self.lengths[index]))].tobytes()

    def take(self, indexes: Int64s) -> Self:
        """The strings at these indexes, in the same buffer."""
        return type(self)(self.buffer, self.starts[indexes], self.lengths[indexes])

    def to_arrow(self) -> pa.StringArray:
        """The strings as an Arrow column, null for none. Not checked to be UTF-8.

        Raises ValueError where they are 2 GiB or more together.
        """
        size = int(np.maximum(self.lengths, 0).sum())
        if size > np.iinfo(np.int32).max:
            raise ValueError(f"{size} bytes do not fit into one Arrow column")
        offsets = np.empty(len(self) + 1, np.int32)
        data = np.empty(size, np.uint8)
        _gather(self.buffer, self.starts, self.lengths, offsets, data)
        return pa.StringArray.from_buffers(
            len(self), pa.py_buffer(offsets), pa.py_buffer(data), validity(self.lengths >= 0)
        )


def validity(present: Bools) -> pa.Buffer | None:
    """Arrow's bitmap of which values are there; None where all are."""
    if present.all():
        return None
    return pa.py_buffer(np.packbits(present, bitorder="little"))


@compiled
def same_bytes(left: Bytes, left_start: int, right: Bytes, right_start: int, length: int) -> bool:
    """Whether `length` bytes are the same in both, which both must have."""
    for index in range(length):  # noqa: SIM110 - compiled code has no generators
        if left[left_start + index] != right[right_start + index]:
            return False
    return True


@compiled
def _gather(
    buffer: Bytes, starts: Int64s, lengths: Int64s, offsets: npt.NDArray[np.int32], data: Bytes
) -> None:
    end = 0
    offsets[0] = 0
    for index in range(len(starts)):
        start = starts[index]
        for position in range(lengths[index]):
            data[end + position] = buffer[start + position]
        end += max(lengths[index], 0)
        offsets[index + 1] = end


@compiled
def utf8_length(  # noqa: C901 - a table of RFC 3629
    buffer: Bytes, position: int, end: int
) -> int:
    """Bytes of the character that begins at `position`; 0 where that is no UTF-8 (RFC 3629)."""
    first = buffer[position]
    if first < 0x80:
        return 1
    low, high = 0x80, 0xBF
    if 0xC2 <= first <= 0xDF:
        length = 2
    elif 0xE0 <= first <= 0xEF:
        length = 3
        if first == 0xE0:  # overlong
            low = 0xA0
        elif first == 0xED:  # surrogates
            high = 0x9F
    elif 0xF0 <= first <= 0xF4:
        length = 4
        if first == 0xF0:  # overlong
            low = 0x90
        elif first == 0xF4:  # beyond U+10FFFF
            high = 0x8F
    else:
        return 0
    if position + length > end or not low <= buffer[position + 1] <= high:
        return 0
    for offset in range(2, length):
        if not 0x80 <= buffer[position + offset] <= 0xBF:
            return 0
    return length


@compiled
def is_utf8(buffer: Bytes, start: int, end: int) -> bool:
    """Whether the bytes from `start` to `end` are UTF-8."""
    position = start
    while position < end:
        length = utf8_length(buffer, position, end)
        if length == 0:
            return False
        position += length
    return True

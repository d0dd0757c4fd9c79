"""What a set of rows is, in 256 bits, whatever the order in which the rows came.

Each row has a digest of four XXH64 over its canonical words, with the seeds 0 to 3, and the digests are added
modulo 2^256. Batches, partitions and instances write rows in any order and in any grouping, and a replay in
yet another one: a sum is the same for all of them, can be kept per commit and added up without reading a row
again, and can be taken back when rows are erased. Unlike XOR it also counts: a row twice is not a row absent.
It guards against accidents and shows that a replay gave the same data. It is no signature against someone who
crafts rows, which a sum could not be with any digest: so the digest is one that costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.native import Bytes, Int64s, Spans, UInt64s, compiled
from headrace.native.xxh64 import put_string, xxh64

MODULUS: Final = 1 << 256


def hash_rows(table: pa.Table, fields: Sequence[str]) -> int:
    """The sum of the rows' digests over the named columns.

    A row's canonical words, each 8 little-endian bytes: XXH64 with seed 0 of the names of the columns that
    are not null in it, joined by a zero byte and padded with zero bytes to whole words; then their values in
    the order of the names, numbers first: integers and bools as one word, floats as IEEE double, strings as a
    word with their length and then their UTF-8, padded too; a tensor is hashed like a string, by its bytes as
    they came. So neither a nullable column that is added later nor a wider type of the same numbers changes
    the hash of a row that is already there.
    """
    names = sorted(fields, key=lambda name: (_is_text(table, name), name))
    if not table.num_rows:
        return 0
    presence = _presence(table, names)
    if presence is None:
        return _hash_group(table, names)
    total = 0
    patterns, group_of_row = np.unique(presence, axis=0, return_inverse=True)
    for group, pattern in enumerate(patterns):
        rows = np.flatnonzero(group_of_row.reshape(-1) == group)
        present = [name for name, here in zip(names, pattern, strict=True) if here]
        total += _hash_group(table.take(pa.array(rows)), present)
    return total % MODULUS


def combine(*sums: int) -> int:
    """The hash of several sets of rows together."""
    return sum(sums) % MODULUS


def to_hex(value: int) -> str:
    """64 hexadecimal digits."""
    return f"{value:064x}"


def from_hex(text: str) -> int:
    """The inverse of `to_hex`."""
    return int(text, 16)


def _presence(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.bool_] | None:
    """Which values are there, by row and column; None if all are."""
    if not any(table.column(name).null_count for name in names):
        return None
    return np.column_stack([pc.is_valid(table.column(name)).to_numpy() for name in names])


def _is_text(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _hash_group(table: pa.Table, names: Sequence[str]) -> int:
    """The hash of rows in which exactly the columns `names` are not null."""
    numbers = [name for name in names if not _is_text(table, name)]
    texts = [name for name in names if _is_text(table, name)]
    rows = table.num_rows
    words = np.empty((len(numbers), rows), np.uint64)
    for index, name in enumerate(numbers):
        words[index] = _words(table.column(name))
    strings = [Spans.from_arrow(table.column(name)) for name in texts]
    # One buffer for all of them: where each column's bytes begin in it.
    begins = np.cumsum([0, *(len(spans.buffer) for spans in strings)])
    starts = np.empty((len(texts), rows), np.int64)
    lengths = np.empty((len(texts), rows), np.int64)
    for index, spans in enumerate(strings):
        starts[index] = spans.starts + begins[index]
        lengths[index] = spans.lengths
    longest = sum(int(spans.lengths.max(initial=0)) for spans in strings)
    scratch = np.empty(1 + len(numbers) + 3 * len(texts) + longest // _WORD, np.uint64)
    sums = np.zeros(2 * _LANES, np.uint64)
    buffer = np.concatenate([np.empty(0, np.uint8), *(spans.buffer for spans in strings)])
    _add_digests(_header(names), words, buffer, starts, lengths, scratch, sums)
    return sum(int(half) << (_HALF_BITS * index) for index, half in enumerate(sums)) % MODULUS


_LANES: Final = 4
_WORD: Final = 8
_HALF_BITS: Final = 32


def _header(names: Sequence[str]) -> np.uint64:
    text = "\0".join(names).encode()
    words = np.frombuffer(text + bytes(-len(text) % _WORD), "<u8").astype(np.uint64)
    # Compiled code answers with a Python integer.
    return np.uint64(xxh64(words, len(words), 0))


def _words(column: pa.ChunkedArray) -> UInt64s:
    wide = pa.float64() if pa.types.is_floating(column.type) else pa.int64()
    values: npt.NDArray[np.generic] = column.cast(wide).to_numpy()
    return values.view(np.uint64)


@compiled
def _add_digests(
    header: np.uint64,
    numbers: UInt64s,
    buffer: Bytes,
    starts: Int64s,
    lengths: Int64s,
    words: UInt64s,
    sums: UInt64s,
) -> None:
    """Add the rows' digests to `sums`, which has the lower and the upper half of each lane, lowest first."""
    for row in range(max(numbers.shape[1], starts.shape[1])):
        words[0] = header
        count = 1
        for column in range(len(numbers)):
            words[count] = numbers[column, row]
            count += 1
        for column in range(len(starts)):
            count = put_string(buffer, starts[column, row], lengths[column, row], words, count)
        for lane in range(_LANES):
            digest = xxh64(words, count, lane)
            sums[2 * lane] += digest & np.uint64(0xFFFFFFFF)
            sums[2 * lane + 1] += digest >> np.uint64(_HALF_BITS)

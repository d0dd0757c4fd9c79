"""What a set of rows is, in 256 bits, whatever the order in which the rows came.

Each row is hashed with SHA-256 over its canonical bytes, and the digests are added modulo 2^256. Batches,
partitions and instances write rows in any order and in any grouping, and a replay in yet another one: a sum
is the same for all of them, can be kept per commit and added up without reading a row again, and can be
taken back when rows are erased. Unlike XOR it also counts: a row twice is not a row absent. It guards against
accidents and shows that a replay gave the same data; it is no signature against someone who crafts rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MODULUS: Final = 1 << 256


def hash_rows(table: pa.Table, fields: Sequence[str]) -> int:
    """The sum of the rows' digests over the named columns.

    A row's canonical bytes: SHA-256 over the names of the columns that are not null in it, then their
    values in the order of the names, numbers first: integers and bools as 8 bytes, floats as IEEE double,
    strings as length and UTF-8. So neither a nullable column that is added later nor a wider type of the
    same numbers changes the hash of a row that is already there.
    """
    names = sorted(fields, key=lambda name: (pa.types.is_string(table.schema.field(name).type), name))
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


def _hash_group(table: pa.Table, names: Sequence[str]) -> int:
    """The hash of rows in which exactly the columns `names` are not null."""
    header = hashlib.sha256("\0".join(names).encode()).digest()
    numbers = [name for name in names if not pa.types.is_string(table.schema.field(name).type)]
    texts = [name for name in names if pa.types.is_string(table.schema.field(name).type)]
    width = 8 * len(numbers)
    fixed = b""
    if numbers:
        words = np.column_stack([_words(table.column(name)) for name in numbers])
        fixed = np.ascontiguousarray(words).tobytes()
    strings = [_length_prefixed(table.column(name)) for name in texts]
    sha256 = hashlib.sha256
    base = sha256(header)
    digests = bytearray()
    for row in range(table.num_rows):
        digest = base.copy()
        digest.update(fixed[row * width : (row + 1) * width])
        for values in strings:
            digest.update(values[row])
        digests += digest.digest()
    return _sum_of(digests)


def _words(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    wide = pa.float64() if pa.types.is_floating(column.type) else pa.int64()
    values: npt.NDArray[np.generic] = column.cast(wide).to_numpy()
    return values.astype(values.dtype.newbyteorder("<")).view(np.uint64)


def _length_prefixed(column: pa.ChunkedArray) -> list[bytes]:
    encoded = (text.encode() for text in column.to_pylist())
    return [len(text).to_bytes(8, "little") + text for text in encoded]


def _sum_of(digests: bytearray) -> int:
    """Add the 32-byte big-endian numbers in `digests` modulo 2^256."""
    # Columns of 16-bit digits add up in 64 bits without overflow for 2^48 rows.
    digits = np.frombuffer(digests, dtype=">u2").reshape(-1, 16).sum(axis=0, dtype=np.uint64)
    total = 0
    for digit in digits:
        total = (total << 16) + int(digit)
    return total % MODULUS

"""Kafka's record batches as they come over the wire: KIP-98, version 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Final

# The compiled one looks beyond the end of what it is given.
from aiokafka.record.util import decode_varint_py as decode_varint

from headrace.messaging.decompression import TooLarge, Undecodable, decompress

MAX_BATCH_BYTES: Final = 64 << 20
"""What a record batch may have, decompressed, where nobody says otherwise."""

_HEADER_BYTES: Final = 61
_CODEC_BITS: Final = 0x07
_APPEND_TIME_BIT: Final = 0x08


class MalformedBatch(Exception):  # noqa: N818 - what it is, not what to call it
    """A record batch whose checksum is right and whose content is no records."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.problem = problem


class OversizeBatch(Exception):  # noqa: N818
    """A record batch has more bytes, decompressed, than there is room for."""

    def __init__(self, place: str, most: int) -> None:
        super().__init__(f"{place}: it has more than {most} bytes, decompressed")
        self.most = most


UnreadableBatch = MalformedBatch | OversizeBatch
UNREADABLE: Final = (MalformedBatch, OversizeBatch)


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """A batch of one partition, undecoded."""

    topic: str
    partition: int
    first_offset: int
    """Records before it were read already: a fetch answers with whole batches."""
    data: memoryview

    @property
    def count(self) -> int:
        """Records in it, those before `first_offset` too."""
        return self._integer(57, 4)

    @property
    def base_offset(self) -> int:
        """The offset of the first record that was ever in it."""
        return self._integer(0, 8)

    @property
    def next_offset(self) -> int:
        """The offset behind the last record, also where that was compacted away."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_offset_delta(self) -> int:
        """How far the last record stands behind the first that was ever in it.

        Whoever reads on does so behind it, so that it is never less than 0, whatever the batch says.
        """
        return max(0, self._integer(23, 4))

    @property
    def base_timestamp(self) -> int:
        """Milliseconds since the epoch; of the first record, or of the batch's arrival."""
        return self._integer(35 if self.has_append_time else 27, 8)

    @property
    def has_append_time(self) -> bool:
        """Whether all records have the time at which the broker took them."""
        return bool(self._attributes & _APPEND_TIME_BIT)

    @property
    def size(self) -> int:
        """Bytes, compressed."""
        return len(self.data)

    @property
    def _codec(self) -> int:
        return self._attributes & _CODEC_BITS

    @property
    def _attributes(self) -> int:
        return self._integer(21, 2)

    def _integer(self, position: int, length: int) -> int:
        return int.from_bytes(self.data[position : position + length], "big", signed=True)

    def room(self, most: int) -> int:
        """Bytes to read it into, where it may have `most`; less where it is not compressed."""
        return most if self._codec else min(len(self.data) - _HEADER_BYTES, most)

    def read_into(self, output: memoryview) -> int:
        """Write the records' bytes, decompressed, to the beginning of `output`; answer how many they are.

        Raises OversizeBatch where they do not fit, MalformedBatch.
        """
        try:
            size = decompress(self._codec, self.data[_HEADER_BYTES:], output)
        except Undecodable as error:
            raise self.malformed(str(error)) from error
        except TooLarge as error:
            raise OversizeBatch(str(self), len(output)) from error
        # Before there is room made for them: no record is without bytes.
        if not 0 <= self.count <= size:
            raise self.malformed(f"it says that it has {self.count} records, and has {size} bytes")
        return size

    def malformed(self, what: str) -> MalformedBatch:
        """The error that says where this batch stands."""
        return MalformedBatch(str(self), what)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}, batch at offset {self.base_offset}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record, as a Python object."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def read_records(batch: RecordBatch) -> Iterator[Record]:
    """The batch's records one by one, whatever the names of their headers are. Raises UnreadableBatch."""
    # Of the system's own pages, which come as they are written to.
    room = memoryview(mmap(-1, MAX_BATCH_BYTES))
    payload, position = bytes(room[: batch.read_into(room)]), 0
    try:
        for _ in range(batch.count):
            length, position = decode_varint(payload, position)
            yield _record(batch, payload, position + 1)
            position += length
    except (IndexError, ValueError) as error:
        raise batch.malformed("no records") from error


def _record(batch: RecordBatch, payload: bytes, position: int) -> Record:
    timestamp_delta, position = decode_varint(payload, position)
    offset_delta, position = decode_varint(payload, position)
    key, position = _string(payload, position)
    value, position = _string(payload, position)
    return Record(
        batch.topic,
        batch.partition,
        batch.base_offset + offset_delta,
        batch.base_timestamp + (0 if batch.has_append_time else timestamp_delta),
        key,
        value,
        read_headers(payload, position),
    )


def read_headers(payload: bytes, position: int = 0) -> list[tuple[str, bytes]]:
    """The names and values of a record's headers, whose count stands at the position.

    A name that is no UTF-8 is shown as far as it can be: it is none that anybody looks for.
    """
    count, position = decode_varint(payload, position)
    headers: list[tuple[str, bytes]] = []
    for _ in range(count):
        name, position = _string(payload, position)
        text, position = _string(payload, position)
        headers.append(((name or b"").decode(errors="replace"), text or b""))
    return headers


def _string(payload: bytes, position: int) -> tuple[bytes | None, int]:
    length = payload[position]
    if length & 0x81:
        # More than one byte, or negative.
        length, position = decode_varint(payload, position)
    else:
        length, position = length >> 1, position + 1
    if length < 0:
        return None, position
    return payload[position : position + length], position + length

"""Avro as the specification writes it down, for tests: nothing of what the service reads it with."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

FRAME = struct.Struct(">bI")
Node = str | Sequence[Any] | Mapping[str, Any]


def framed(schema_id: int, record: bytes) -> bytes:
    """Confluent's wire format."""
    return FRAME.pack(0, schema_id) + record


def varint(number: int) -> bytes:
    """A long: zig-zag, seven bits a byte, the lowest first."""
    left = (number << 1 ^ number >> 63) & 2**64 - 1
    written = bytearray()
    while left > 0x7F:
        written.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*written, left])


def text(value: bytes) -> bytes:
    """A string, or bytes."""
    return varint(len(value)) + value

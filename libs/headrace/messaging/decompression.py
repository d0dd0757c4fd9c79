"""Kafka's codecs, into a buffer that is there already: what comes out may be a million times what went in.

aiokafka's own have no bound: 6 KB of zstd are 200 MiB of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import cramjam

_NONE: Final = 0
_GZIP: Final = 1
_SNAPPY: Final = 2
_LZ4: Final = 3
_ZSTD: Final = 4

# What the codecs say where the buffer is too small, which has no type of its own.
_FULL: Final = ("failed to write whole buffer", "is smaller than required")

# Of the stream that Java's library writes: a header of so many bytes, then blocks with their lengths.
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = 16
_LENGTH: Final = 4


class Undecodable(Exception):  # noqa: N818 - what it is, not what to call it
    """The bytes are not what their codec writes."""


class TooLarge(Exception):  # noqa: N818
    """What comes out does not fit."""


def decompress(codec: int, data: memoryview, output: memoryview) -> int:
    """Decompress into the beginning of `output`; answer how many bytes it is. `codec`: by Kafka's number.

    Raises Undecodable or TooLarge; `output` may have been written to all the same.
    """
    try:
        return _CODECS[codec](data, output)
    except KeyError:
        raise Undecodable(f"there is no codec {codec}") from None
    except cramjam.DecompressionError as error:
        if any(words in str(error) for words in _FULL):
            raise TooLarge from error
        raise Undecodable(f"{_NAMES[codec]}: {error}") from error


def _copied(data: memoryview, output: memoryview) -> int:
    if len(data) > len(output):
        raise TooLarge
    output[: len(data)] = data
    return len(data)


def _snappy(data: memoryview, output: memoryview) -> int:
    if bytes(data[: len(_XERIAL)]) != _XERIAL:
        return cramjam.snappy.decompress_raw_into(data, output)
    position, size = _XERIAL_HEADER, 0
    while position < len(data):
        start = position + _LENGTH
        end = start + int.from_bytes(data[position:start], "big")
        if end > len(data):
            raise Undecodable("snappy: a block ends beyond the batch")
        size += cramjam.snappy.decompress_raw_into(data[start:end], output[size:])
        position = end
    return size


_CODECS: Final[dict[int, Callable[[memoryview, memoryview], int]]] = {
    _NONE: _copied,
    _GZIP: cramjam.gzip.decompress_into,
    _SNAPPY: _snappy,
    _LZ4: cramjam.lz4.decompress_into,
    _ZSTD: cramjam.zstd.decompress_into,
}
_NAMES: Final = {_GZIP: "gzip", _SNAPPY: "snappy", _LZ4: "lz4", _ZSTD: "zstd"}

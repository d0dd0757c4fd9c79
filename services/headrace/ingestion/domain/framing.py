"""Confluent's wire format: a zero byte, the schema's id in four bytes, big-endian, and then the record."""

from __future__ import annotations

from typing import Final

import numpy as np

from headrace.native import Int64s, Spans

UNFRAMED: Final = -1
"""In the place of the id of a payload that has no frame."""

_FRAME_BYTES: Final = 5
_MAGIC: Final = 0


def schema_ids(payloads: Spans) -> Int64s:
    """The schema's id of each payload."""
    ids = np.full(len(payloads), UNFRAMED, np.int64)
    long_enough = np.flatnonzero(payloads.lengths >= _FRAME_BYTES)
    starts = payloads.starts[long_enough]
    framed = payloads.buffer[starts] == _MAGIC
    starts = starts[framed]
    found = np.zeros(len(starts), np.int64)
    for place in range(1, _FRAME_BYTES):
        found = found << 8 | payloads.buffer[starts + place]
    ids[long_enough[framed]] = found
    return ids


def unframed(payloads: Spans) -> Spans:
    """The records of payloads that have a frame."""
    return Spans(payloads.buffer, payloads.starts + _FRAME_BYTES, payloads.lengths - _FRAME_BYTES)

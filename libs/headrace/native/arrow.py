"""Arrow's columns as compiled functions take them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace.native.spans import Spans


def spans_of(strings: pa.Array) -> Spans:
    """The bytes of a column of strings, not copied; none where it is null."""
    strings = strings.cast(pa.string())
    _, offsets, data = strings.buffers()
    ends = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1]
    lengths = np.diff(ends).astype(np.int64)
    if strings.null_count:
        lengths[strings.is_null().to_numpy(zero_copy_only=False)] = -1
    return Spans(np.frombuffer(data or b"", np.uint8), ends[:-1].astype(np.int64), lengths)

from __future__ import annotations

import pyarrow as pa

from headrace.ingestion.versions_grpc_api import _MESSAGE_BYTES, _parts


def test_a_large_batch_goes_in_parts_that_fit_a_message() -> None:
    batch = pa.record_batch({"text": ["x" * 1000] * 20_000, "number": range(20_000)})
    parts = list(_parts(batch))
    assert len(parts) > 1
    assert all(part.nbytes <= _MESSAGE_BYTES for part in parts)
    assert pa.Table.from_batches(parts).column("number").to_pylist() == list(range(20_000))


def test_a_row_is_never_divided() -> None:
    batch = pa.record_batch({"text": ["x" * (_MESSAGE_BYTES + 1)] * 2})
    assert [part.num_rows for part in _parts(batch)] == [1, 1]

from __future__ import annotations

import pytest
from tests.support.avro import framed

from headrace.ingestion.domain.framing import UNFRAMED, schema_ids, unframed
from headrace.native import Spans


def test_a_frame_is_a_zero_byte_and_an_id() -> None:
    payloads = Spans.of([framed(1, b"a"), framed(2**32 - 1, b""), framed(70_000, b"bc")])
    assert schema_ids(payloads).tolist() == [1, 2**32 - 1, 70_000]
    records = unframed(payloads)
    assert [records[index] for index in range(len(records))] == [b"a", b"", b"bc"]


@pytest.mark.parametrize("payload", [None, b"", b"\0\0\0\0", b'{"id": 1}', b"\1\0\0\0\1a"])
def test_other_payloads_have_none(payload: bytes | None) -> None:
    assert schema_ids(Spans.of([framed(3, b""), payload])).tolist() == [3, UNFRAMED]

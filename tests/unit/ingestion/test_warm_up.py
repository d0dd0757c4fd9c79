from __future__ import annotations

from numba.core.dispatcher import Dispatcher
from tests.support.records import Sent, batch_of

from headrace.ingestion.domain import content_hash, decimals, flat_json
from headrace.ingestion.use_cases.envelopes import open_envelopes
from headrace.ingestion.warm_up import warm_up
from headrace.messaging import attributes, record_columns
from headrace.native import spans, xxh64

MODULES = (attributes, content_hash, decimals, flat_json, record_columns, spans, xxh64)


def compiled() -> dict[str, int]:
    """How many kinds of arguments each function was compiled for."""
    return {
        f"{module.__name__}.{name}": len(function.signatures)
        for module in MODULES
        for name, function in vars(module).items()
        if isinstance(function, Dispatcher)
    }


def test_a_batch_finds_everything_compiled() -> None:
    warm_up()
    before = compiled()
    headers = [("ce_id", b"1"), ("ce_time", b"2026-01-01T00:00:00Z"), ("traceparent", b"x")]
    records = record_columns.decode("t", [batch_of(*(Sent(offset, headers=headers) for offset in range(3)))])
    open_envelopes(records, attributes.read_attributes(records), (), 1000)
    assert compiled() == before
    assert before["headrace.messaging.record_columns._decode"] == 1

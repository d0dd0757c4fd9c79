"""Record batches that cannot be read, as entries of the list of rejected events."""

from __future__ import annotations

from headrace.ingestion.domain.rejection import Reason, Rejection, Verdict
from headrace.ingestion.domain.source_topic import Feed
from headrace.ingestion.use_cases.ports import Span
from headrace.messaging.record_batch import OversizeBatch
from headrace.messaging.record_columns import Unreadable


def rejection_of(unreadable: Unreadable, span: Span, feed: Feed | None) -> Rejection:
    """The entry for all offsets of the batch, with its bytes as they came.

    It stands at the first offset. `feed`: of a topic whose events are all samples of one dataset.
    """
    batch, source = unreadable.batch, span.source
    first, last = max(span.start, batch.base_offset), span.end - 1
    offsets = f"offset {first}" if first == last else f"offsets {first} to {last}"
    return Rejection(
        cluster=source.cluster,
        topic=source.topic,
        partition=source.partition,
        offset=first,
        verdict=_verdict(unreadable, offsets),
        dataset=feed.dataset if feed else "",
        event_id="",
        traceparent="",
        key=b"",
        payload=bytes(batch.data),
        headers=(),
        next_offset=span.end,
    )


def _verdict(unreadable: Unreadable, offsets: str) -> Verdict:
    error = unreadable.error
    if isinstance(error, OversizeBatch):
        message = (
            f"the record batch at {offsets} has more than {error.most} bytes, decompressed; "
            "have its producer send smaller batches"
        )
        return Verdict(Reason.OVERSIZE_BATCH, message, rule="max_record_batch_bytes")
    message = f"the record batch at {offsets} cannot be read: {error.problem}"
    return Verdict(Reason.MALFORMED_BATCH, message, rule="record_batch")

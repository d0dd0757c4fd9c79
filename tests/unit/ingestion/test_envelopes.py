"""The law of opening envelopes: what stands beside a record does not change what is read of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import Sent, records_of

from headrace.ingestion.domain.rejection import Reason, Verdict
from headrace.ingestion.use_cases.envelopes import (
    JSON_TYPE,
    PROTOBUF_TYPE,
    SAMPLE_TYPE,
    Opened,
    event_size,
    open_envelopes,
)
from headrace.messaging.attributes import read_attributes
from headrace.messaging.events import InvalidCloudEvent, decode

Headers = list[tuple[str, bytes]]


def one_of(name: str, *values: bytes | None) -> st.SearchStrategy[Headers]:
    return st.sampled_from([[] if value is None else [(name, value)] for value in values])


# Mostly alike, as a producer's records are, and each part wrong now and then.
HEADERS = st.tuples(
    one_of("ce_specversion", b"1.0", b"1.0", b"1.0", b"0.3", None),
    one_of("ce_id", b"a", b"b", "é".encode(), b"", b"\xff", None),
    one_of("ce_source", b"s", b"s", b"s2", b"\xff"),
    one_of("ce_type", b"headrace.ingestion.sample.v1", b"headrace.ingestion.sample.v1", b"other"),
    one_of("ce_subject", b"d", b"d", b"d2", b"", None),
    one_of("ce_time", None, b"2026-01-02T00:00:00Z", b"2026-01-02T00:00:00", b"noon", b"", b"\xff"),
    one_of("traceparent", None, b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01", b"", b"\xff"),
    one_of("tracestate", None, b"k=v", b"\xff"),
    one_of(
        "content-type",
        None,
        b"application/json",
        b"application/protobuf",
        b"text/csv",
        b"application/cloudevents+json",
    ),
    one_of("CE_SUBJECT", None, None, None, b"d3"),
    one_of("ce_id", None, None, None, b"twice"),
).flatmap(lambda parts: st.permutations([header for part in parts for header in part]))


def open_all(records: Sequence[Sent], most: int) -> Opened:
    decoded = records_of(records)
    return open_envelopes(decoded, read_attributes(decoded), {}, most)


def what_became(opened: Opened) -> dict[int, object]:
    offsets = opened.records.offsets.tolist()
    found: dict[int, object] = {offsets[index]: verdict for index, verdict in opened.refused}
    for samples in opened.samples:
        columns = [column.to_pylist() for column in (samples.ids, samples.times, samples.traceparents)]
        columns.append([samples.payloads[index] for index in range(len(samples))])
        for index, *values in zip(samples.indexes.tolist(), *columns, strict=True):
            found[offsets[index]] = (samples.dataset, samples.media_type, *values)
    return found


def by_the_authority(record: Sent, most: int) -> object:
    """What becomes of a record that is read by itself, without a look at columns."""
    one = records_of([record]).record(0)
    if event_size(one) > most:
        return Reason.OVERSIZE_EVENT
    try:
        event = decode(one.headers, one.value, received=datetime.fromtimestamp(record.timestamp / 1000, UTC))
    except InvalidCloudEvent as error:
        return error.attribute
    media_type = event.content_type.partition(";")[0].strip().lower()
    if event.type != SAMPLE_TYPE:
        return "ce_type"
    if not event.subject:
        return "ce_subject"
    if media_type not in (JSON_TYPE, PROTOBUF_TYPE):
        return "content-type"
    return (event.subject, media_type, event.id, event.time, event.traceparent or None, event.data)


# Read as an envelope where a header says so, and else as it is.
PAYLOADS = st.one_of(
    st.fixed_dictionaries(
        {
            "specversion": st.just("1.0"),
            "source": st.just("s"),
            "type": st.sampled_from([SAMPLE_TYPE, "other"]),
        },
        optional={
            "id": st.sampled_from(["a", "b", ""]),
            "subject": st.sampled_from(["d", "d2"]),
            "datacontenttype": st.sampled_from(["application/protobuf", "text/csv"]),
            "data": st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
        },
    ).map(lambda members: json.dumps(members).encode()),
    st.binary(max_size=20),
)


@given(
    st.lists(st.tuples(HEADERS, PAYLOADS), min_size=1, max_size=12), st.sampled_from([1_000, 250, 190, 160])
)
def test_a_record_is_read_as_by_the_authority_whatever_stands_beside_it(
    drawn: list[tuple[Headers, bytes]], most: int
) -> None:
    # Twice, so that every shape is met again.
    records = [
        Sent(offset, payload, values, timestamp=1000)
        for offset, (values, payload) in enumerate([*drawn, *drawn])
    ]
    found = what_became(open_all(records, most))
    assert found.keys() == {record.offset for record in records}
    for record in records:
        became = found[record.offset]
        if isinstance(became, Verdict):
            became = became.reason if became.reason is Reason.OVERSIZE_EVENT else became.field
        assert became == by_the_authority(record, most)


def test_the_size_is_that_of_the_whole_record_however_often_its_like_was_seen() -> None:
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"a"),
        ("ce_source", b"s"),
        ("ce_type", b"headrace.ingestion.sample.v1"),
        ("ce_subject", b"d"),
    ]
    records = [Sent(0, headers=headers), Sent(1, b"x" * 100, headers), Sent(2, headers=headers)]
    most = event_size(records_of(records).record(1)) - 1
    opened = open_all(records, most)
    assert [index for index, _ in opened.refused] == [1]
    assert [len(samples) for samples in opened.samples] == [2]

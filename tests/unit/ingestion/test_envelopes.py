"""The law of opening envelopes: what stands beside a record does not change what is read of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from headrace.ingestion.use_cases.envelopes import Opened, event_size, open_envelopes

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True)
class FakeRecord:
    offset: int
    headers: Headers
    value: bytes | None = b"{}"
    key: bytes | None = b"k"
    topic: str = "t"
    partition: int = 0
    timestamp: int = 1_000


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
    one_of("content-type", None, b"application/json", b"application/protobuf", b"text/csv"),
    one_of("CE_SUBJECT", None, None, None, b"d3"),
    one_of("ce_id", None, None, None, b"twice"),
).flatmap(lambda parts: st.permutations([header for part in parts for header in part]))


def what_became(opened: Opened) -> dict[int, object]:
    found: dict[int, object] = {record.offset: verdict for record, verdict in opened.refused}
    for samples in opened.samples:
        columns = (samples.records, samples.ids, samples.times, samples.traceparents)
        for record, *values in zip(*columns, strict=True):
            found[record.offset] = (samples.dataset, samples.media_type, *values)
    return found


def opened_alone(records: Sequence[FakeRecord], most: int) -> dict[int, object]:
    found: dict[int, object] = {}
    for record in records:
        found |= what_became(open_envelopes([record], (), most))
    return found


@given(st.lists(HEADERS, min_size=1, max_size=12), st.sampled_from([1_000, 190, 160]))
def test_a_record_is_read_as_if_it_were_alone(headers: list[Headers], most: int) -> None:
    # Twice, so that every shape is met again.
    records = [FakeRecord(offset, values) for offset, values in enumerate([*headers, *headers])]
    found = what_became(open_envelopes(records, (), most))
    assert found == opened_alone(records, most)
    assert found.keys() == {record.offset for record in records}


def test_the_size_is_that_of_the_whole_record_however_often_its_like_was_seen() -> None:
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"a"),
        ("ce_source", b"s"),
        ("ce_type", b"headrace.ingestion.sample.v1"),
        ("ce_subject", b"d"),
    ]
    small = FakeRecord(0, headers)
    large = FakeRecord(1, headers, value=b"x" * 100)
    opened = open_envelopes([small, large, small], (), event_size(large) - 1)
    assert [record.offset for record, _ in opened.refused] == [1]
    assert [len(samples) for samples in opened.samples] == [2]

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import Sent, batch_of, records_of

from headrace.messaging.attributes import read_attributes
from headrace.messaging.events import InvalidCloudEvent, parse_time
from headrace.messaging.fetching import WHOLE_BATCHES
from headrace.messaging.record_batch import MalformedBatch, RecordBatch, read_records
from headrace.messaging.record_columns import decode

CODECS = range(5)
SENT = st.builds(
    Sent,
    value=st.one_of(st.none(), st.binary(max_size=300)),
    key=st.one_of(st.none(), st.binary(max_size=5)),
    headers=st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=4)), max_size=4),
    timestamp=st.integers(0, 2**40),
)


def fetched(data: bytes, position: int, *, whole: bool) -> list[object]:
    """What aiokafka makes of a partition's fetched bytes."""
    return list(
        fetcher.PartitionRecords(
            TopicPartition("t", 3),
            fetcher.MemoryRecords(data),
            None,
            position,
            None,
            WHOLE_BATCHES if whole else None,
            True,
            0,
        )
    )


@given(st.lists(SENT, min_size=1, max_size=8), st.sampled_from(CODECS), st.integers(0, 12))
def test_records_are_what_aiokafka_makes_of_them(sent: list[Sent], codec: int, position: int) -> None:
    for offset, record in enumerate(sent):
        record.offset = offset
    # A broker answers with the batch that the position is in, and those behind it.
    position %= len(sent[:3])
    data = b"".join(bytes(batch_of(*part, codec=codec).data) for part in (sent[:3], sent[3:]) if part)
    expected = fetched(data, position, whole=False)
    batches: list[RecordBatch] = fetched(data, position, whole=True)  # type: ignore[assignment]
    records = decode("t", batches)
    assert len(records) == len(expected)
    for index, other in enumerate(expected):
        record = records.record(index)
        assert (record.offset, record.timestamp, record.key, record.value, tuple(record.headers)) == (
            other.offset,  # type: ignore[attr-defined]
            other.timestamp,  # type: ignore[attr-defined]
            other.key,  # type: ignore[attr-defined]
            other.value,  # type: ignore[attr-defined]
            other.headers,  # type: ignore[attr-defined]
        )
        assert record.partition == 3
    read = [record for batch in batches for record in read_records(batch)]
    assert [record for record in read if record.offset >= position] == [
        records.record(index) for index in range(len(records))
    ]


def test_a_batch_is_read_from_the_position_on() -> None:
    batch = batch_of(*(Sent(offset) for offset in range(10, 20)), first_offset=17)
    assert decode("t", [batch]).offsets.tolist() == [17, 18, 19]
    assert (batch.count, batch.next_offset) == (10, 20)


@given(st.lists(SENT, min_size=1, max_size=4), st.sampled_from(CODECS), st.randoms(use_true_random=False))
def test_no_bytes_are_read_as_what_they_are_not(sent: list[Sent], codec: int, source: random.Random) -> None:
    """Compiled code checks no index: a wrong length must never lead it out of its buffer."""
    data = bytearray(batch_of(*sent, codec=codec).data)
    for _ in range(source.randint(1, 4)):
        data[source.randrange(57, len(data))] = source.randrange(256)
    batch = RecordBatch("t", 0, 0, memoryview(data))
    with suppress(MalformedBatch):
        list(read_records(batch))
    try:
        records = decode("t", [batch])
    except MalformedBatch:
        return
    for index in range(len(records)):
        records.record(index)
    read_attributes(records)


def spoiled() -> bytes:
    """Two batches; the second record of the first one has a header whose name is no UTF-8."""
    sent = [Sent(0), Sent(1, headers=[("name", b"value")]), Sent(2)]
    data = bytearray(batch_of(*sent).data)
    data[data.index(b"name")] = 0xFF
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data) + bytes(batch_of(Sent(3)).data)


def test_a_header_name_that_is_no_text_spoils_nothing_by_column() -> None:
    batches: list[RecordBatch] = fetched(spoiled(), 0, whole=True)  # type: ignore[assignment]
    records = decode("t", batches)
    assert records.record(1).headers == [("\ufffdame", b"value")]
    assert read_attributes(records).plain.tolist() == [True, False, True, True]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_header_name_that_is_no_text_spoils_nothing_for_other_consumers(position: int) -> None:
    records = fetched(spoiled(), position, whole=False)
    assert [record.offset for record in records] == list(range(position, 4))  # type: ignore[attr-defined]


TIMES: Sequence[bytes] = [
    b"2026-01-02T03:04:05Z",
    b"2026-01-02T03:04:05.5Z",
    b"2026-01-02T03:04:05.123456Z",
    b"2026-01-02T03:04:05+00:00",
    b"0001-01-01T00:00:00Z",
    b"9999-12-31T23:59:59.999999Z",
    b"2024-02-29T00:00:00Z",
    b"1900-02-28T23:59:59Z",
]
OTHER_TIMES: Sequence[bytes] = [
    b"2023-02-29T00:00:00Z",
    b"2026-13-01T00:00:00Z",
    b"2026-01-02T24:00:00Z",
    b"2026-01-02T03:04:60Z",
    b"2026-01-02T03:04:05",
    b"2026-01-02T03:04:05.Z",
    b"2026-01-02T03:04:05.1234567Z",
    b"2026-01-02T03:04:05+01:00",
    b"2026-01-02 03:04:05Z",
    b"20260102T030405Z",
    b"0000-01-01T00:00:00Z",
    b"2026-01-02T03:04:05ZZ",
    b"2026-01-02T03:04:05+00:0",
    b"noon",
    b"Z",
]


@pytest.mark.parametrize("text", [*TIMES, *OTHER_TIMES])
def test_a_time_is_what_the_authority_reads_or_is_left_to_it(text: bytes) -> None:
    attributes = read_attributes(records_of([Sent(headers=[("ce_time", text)])]))
    assert attributes.plain[0] == (text in TIMES)
    if text in TIMES:
        assert attributes.times[0] == micros(parse_time(text.decode()))


def micros(time: datetime) -> int:
    return (time - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


@given(st.datetimes(timezones=st.just(UTC)), st.binary(max_size=2), st.integers(0, 30))
def test_times_near_right_ones_are_never_read_wrongly(time: datetime, noise: bytes, at: int) -> None:
    text = time.isoformat().encode()
    text = text[:at] + noise + text[at + len(noise) :]
    attributes = read_attributes(records_of([Sent(headers=[("ce_time", text)])]))
    if attributes.plain[0] and text:
        try:
            expected = parse_time(text.decode())
        except InvalidCloudEvent:
            pytest.fail(f"{text!r} is no time")
        assert attributes.times[0] == micros(expected)

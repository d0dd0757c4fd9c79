from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import Sent, batch_of, decode, parts_of, records_of

from headrace.messaging.attributes import read_attributes
from headrace.messaging.events import InvalidCloudEvent, parse_time
from headrace.messaging.fetching import WHOLE_BATCHES
from headrace.messaging.record_batch import MalformedBatch, OversizeBatch, RecordBatch, read_records
from headrace.messaging.record_columns import Bounds, PartReader, Reach

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


def changed(batch: RecordBatch, position: int, *octets: int) -> RecordBatch:
    """The same, with other bytes from a position on."""
    data = bytearray(batch.data)
    data[position : position + len(octets)] = bytes(octets)
    return RecordBatch(batch.topic, batch.partition, batch.first_offset, memoryview(data))


@pytest.mark.parametrize("codec", CODECS)
def test_a_record_batch_has_as_many_bytes_as_it_may_and_no_more(codec: int) -> None:
    batch = batch_of(Sent(value=bytes(1 << 20)), codec=codec)
    whole = len(decode("t", [batch]).buffer)
    room = bytearray(whole)
    assert batch.read_into(memoryview(room)) == whole
    with pytest.raises(OversizeBatch, match=f"t/0, batch at offset 0: it has more than {whole - 1} bytes"):
        batch.read_into(memoryview(room)[1:])


def test_a_small_batch_that_is_a_large_one_inside_takes_no_more_room_than_there_is() -> None:
    bomb = batch_of(Sent(value=bytes(1 << 26)), codec=4)
    assert len(bomb.data) < 10_000
    [part] = parts_of([bomb], Bounds(10, 1000, 1000))
    assert part.unreadable is not None
    assert isinstance(part.unreadable.error, OversizeBatch)
    assert len(part.records.buffer) == 0


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_a_codec_that_nobody_knows_is_malformed(codec: int) -> None:
    with pytest.raises(MalformedBatch, match=f"there is no codec {codec}"):
        decode("t", [changed(batch_of(Sent()), 22, codec)])


def test_java_s_snappy_ends_where_its_batch_does() -> None:
    batch = batch_of(Sent(value=bytes(1000)), codec=2)
    # The first block's length.
    with pytest.raises(MalformedBatch, match="a block ends beyond the batch"):
        decode("t", [changed(batch, 61 + 16, 0xFF, 0xFF, 0xFF, 0xFF)])


@pytest.mark.parametrize(
    ("last", "deltas"),
    [(1, (0, 2)), (2, (1, 1)), (2, (2, 1)), (2, (-1, 0))],
    ids=["beyond the last", "twice", "falling", "before the first"],
)
def test_offsets_rise_within_their_batch_or_it_is_malformed(last: int, deltas: Sequence[int]) -> None:
    batch = batch_of(*(Sent(offset, b"") for offset in range(3)))
    # Of each of the two first records: 61 bytes of header, then records of 9 bytes with their lengths, whose
    # fourth byte is the offset.
    batch = changed(batch, 57, *(2).to_bytes(4, "big"))
    size = batch.data[61] // 2 + 1
    for number, delta in enumerate(deltas):
        batch = changed(batch, 61 + number * size + 3, (delta << 1) ^ (delta >> 63))
    batch = changed(batch, 23, *last.to_bytes(4, "big"))
    batch = RecordBatch("t", 0, 0, batch.data[: 61 + 2 * size])
    with pytest.raises(MalformedBatch, match="its bytes are no records"):
        decode("t", [batch])


def offsets_of(batches: Sequence[RecordBatch], bounds: Bounds) -> list[list[int]]:
    return [part.records.offsets.tolist() for part in parts_of(batches, bounds)]


def several(*counts: int, codec: int = 0) -> list[RecordBatch]:
    """Batches of so many records, one behind the other."""
    begins = [sum(counts[:number]) for number in range(len(counts))]
    return [
        batch_of(*(Sent(begin + offset) for offset in range(count)), codec=codec, first_offset=begin)
        for begin, count in zip(begins, counts, strict=True)
    ]


def test_a_part_ends_before_the_record_batch_that_is_too_many() -> None:
    size = len(decode("t", several(1)).buffer)
    assert offsets_of(several(2, 2, 1), Bounds(4, 1 << 20)) == [[0, 1, 2, 3], [4]]
    assert offsets_of(several(2, 2, 1), Bounds(9, 4 * size, 4 * size)) == [[0, 1, 2, 3], [4]]
    # Its bounds do not cut a record batch by bytes: that has a bound of its own.
    assert offsets_of(several(3, 1), Bounds(9, 1, 3 * size)) == [[0, 1, 2], [3]]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 7), st.integers(0, 8), st.booleans()
)
def test_parts_have_each_record_once_in_order_and_account_for_each_offset(
    counts: list[int], most: int, position: int, broken: bool
) -> None:
    batches = several(*counts, codec=4)
    position %= counts[0]
    batches[0] = RecordBatch("t", 0, position, batches[0].data)
    if broken:
        batches.append(RecordBatch("t", 0, sum(counts), several(*counts, 3)[-1].data[:-1]))
    parts = parts_of(batches, Bounds(most, 1 << 20))
    found = [offset for part in parts for offset in part.records.offsets.tolist()]
    assert found == list(range(position, sum(counts)))
    assert max(len(part.records) for part in parts) <= most
    end = position
    for part in parts:
        [reach] = part.reaches
        assert (reach.start, part.unreadable is None) == (end, reach.start < sum(counts))
        end = reach.end
    assert end == sum(counts) + 3 * broken


def test_nothing_of_a_record_batch_is_taken_whose_end_cannot_be_read() -> None:
    [batch] = several(50)
    spoiled = RecordBatch("t", 0, 0, batch.data[:-1])
    first, second = parts_of([spoiled, *several(50, 1)[1:]], Bounds(7, 1 << 20))
    assert (first.reaches, len(first.records)) == ([Reach(0, 0, 50, 0)], 0)
    assert (second.reaches, second.unreadable) == ([Reach(0, 50, 51, 0)], None)


def empty_headers(offset: int, count: int) -> RecordBatch:
    """A record with so many headers of two bytes."""
    return batch_of(Sent(offset, headers=[("", b"")] * count), codec=4)


def test_headers_that_cost_more_than_they_hold_have_a_bound() -> None:
    few, many = empty_headers(0, 500_100), empty_headers(0, 500_101)
    assert len(many.data) < 2000
    bounds = Bounds(9, 1 << 20)
    [part] = parts_of([few], bounds)
    assert len(part.records) == 1
    [part] = parts_of([many], bounds)
    assert "its records have 500101 headers, and 500100 are the most" in str(part.unreadable)
    # Of several record batches each may have as many, and all of a part no more.
    parts = parts_of(
        [replace(empty_headers(offset, 300_000), first_offset=offset) for offset in range(3)], bounds
    )
    assert [part.records.offsets.tolist() for part in parts] == [[0], [1], [2]]
    # One that is cut is looked through as well.
    whole = batch_of(*(Sent(offset, headers=[("", b"")] * 200_000) for offset in range(4)), codec=4)
    [part] = parts_of([whole], Bounds(3, 1 << 20))
    assert part.unreadable is not None


def test_a_part_that_could_not_be_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = PartReader("t", several(5, 1), Bounds(2, 1 << 20))
    first = reader.read()
    with monkeypatch.context() as patched:
        patched.setattr("headrace.messaging.record_columns.np.ascontiguousarray", _no_memory)
        with pytest.raises(MemoryError):
            reader.read()
    parts = [first, *iter(reader.read, None)]
    assert [part.records.offsets.tolist() for part in parts if part] == [[0, 1], [2, 3], [4], [5]]


def _no_memory(_: object) -> None:
    raise MemoryError


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

"""What is published of a batch's rejections, and when, whatever fails around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pyarrow as pa
import pytest
from tests.support.claims import ROOT, FakePayloads, claim_headers, claims_of
from tests.support.records import Sent, records_of

from headrace.errors import FailedPrecondition, Unavailable
from headrace.ingestion.domain.dataset import Dataset, SourcePartition
from headrace.ingestion.domain.rejection import Reason, Rejection
from headrace.ingestion.domain.retention import Retention
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.use_cases.judge_batch import Batch
from headrace.ingestion.use_cases.ports import (
    Append,
    Catalogue,
    Place,
    RejectedRow,
    SampleTables,
    SchemaName,
    Span,
)
from headrace.ingestion.use_cases.store_batch import StoreBatch
from headrace.messaging.attributes import read_attributes
from headrace.messaging.producer import Encoded

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8, nullable=True))
DATASET = Dataset("known", SCHEMA, Cut(), 1, NOW, NOW)
HEADERS = [
    ("ce_specversion", b"1.0"),
    ("ce_source", b"tests"),
    ("ce_type", b"headrace.ingestion.sample.v1"),
    ("ce_subject", b"known"),
    ("content-type", b"application/json"),
]


@dataclass
class World:
    """PostgreSQL, tables and topics, all of which may fail."""

    kept: dict[Place, RejectedRow] = field(default_factory=dict)
    claims: dict[int, str] = field(default_factory=dict)
    spans: list[Sequence[Span]] = field(default_factory=list)
    """Those of each append."""
    published: list[int] = field(default_factory=list)
    rows: int = 0
    declared: Dataset = DATASET
    apply_next: Dataset | None = None
    """Is applied as soon as the datasets were read."""
    reject_next: Sequence[Rejection] = ()
    """Are rejected by somebody else as soon as the datasets were read."""
    refuse_rows: int = 0
    refuse_events: int = 0
    clock: datetime = NOW
    """The database's."""
    rejects: bool = False
    """Whether rows must not come before a rejection."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[World]:
        yield self

    async def hold_schema_versions(self, names: Collection[str]) -> Mapping[str, int]:
        return dict.fromkeys(names, self.declared.schema_version)

    async def insert_rejected(
        self, rejections: Sequence[Rejection], reject_time: datetime
    ) -> Sequence[Rejection]:
        new = [replace(r, id=r.offset + 1) for r in rejections]
        self.kept |= {(r.topic, r.partition, r.offset): RejectedRow(0, reject_time, r) for r in new}
        return new

    async def keep_claims(self, paths: Mapping[int, str]) -> None:
        self.claims |= paths

    async def rejected_places(self, spans: Sequence[Span]) -> Mapping[Place, int]:
        return {place: row.rejection.next_offset or place[2] + 1 for place, row in self.kept.items()}

    async def rejected_at(self, cluster: str, places: Collection[Place]) -> Sequence[RejectedRow]:
        return [self.kept[place] for place in sorted(places)]

    async def datasets(self, names: Collection[str]) -> Mapping[str, Dataset]:
        declared = self.declared
        if self.apply_next:
            self.declared, self.apply_next = self.apply_next, None
        await self.insert_rejected(self.reject_next, NOW)
        self.reject_next = ()
        return {declared.name: declared}

    async def schemas(self, names: Collection[SchemaName]) -> Mapping[SchemaName, Schema]:
        return {("known", 1): SCHEMA, ("known", self.declared.schema_version): self.declared.schema}

    def accounted(self, dataset: Dataset, spans: Sequence[Span]) -> Mapping[SourcePartition, int]:
        ends: dict[SourcePartition, int] = {}
        for stored in self.spans:
            ends |= {span.source: span.end for span in stored}
        return ends

    async def holds_personal_data(self) -> bool:
        return False

    async def now(self) -> datetime:
        return self.clock

    def encode(self, rejections: Sequence[Rejection], reject_time: datetime) -> Sequence[Encoded]:
        return [("rejected", str(rejection.id), [], b"") for rejection in rejections]

    async def publish(self, events: Sequence[Encoded]) -> None:
        if self.refuse_events:
            self.refuse_events -= 1
            # As long as a broker takes to refuse something.
            while not self.spans:
                await asyncio.sleep(0)
            raise ConnectionError("no broker")
        self.published += [int(str(entry)) for _, entry, _, _ in events]

    def append(self, append: Append) -> int:
        assert self.kept or not self.rejects, "rows before what was rejected beside them"
        if self.refuse_rows:
            self.refuse_rows -= 1
            raise OSError("no store")
        stored = 0 if append.spans in self.spans else append.rows.num_rows
        self.rows += stored
        self.spans.append(append.spans)
        return stored

    def stored_events(self, dataset: Dataset, spans: Sequence[Span]) -> pa.Table:
        return pa.table({name: [] for name in ("_event_source", "_event_id", "_partition", "_offset")})


def store_batch(world: World, payloads: FakePayloads | None = None) -> StoreBatch:
    return StoreBatch(
        cast("Catalogue", world),
        cast("SampleTables", world),
        world,
        clock=lambda: NOW,
        max_event_bytes=1000,
        deduplicate_events=0,
        registry=None,
        claims=claims_of(payloads or FakePayloads(), max_bytes=40),
    )


def a_batch() -> Batch:
    """Three events, of which the second is rejected."""
    values = (b'{"id":"p","a":1}', b'{"id":"p","a":"no"}', b'{"id":"p","a":2}')
    records = records_of(
        Sent(offset, value, [*HEADERS, ("ce_id", b"%d" % offset)]) for offset, value in enumerate(values)
    )
    spans = [Span(SourcePartition("cluster", "t", 0), 0, 3)]
    return Batch("cluster", records, read_attributes(records), spans)


async def test_a_batch_that_failed_and_is_tried_again_publishes_its_rejections_once() -> None:
    world = World(refuse_rows=2)
    store = store_batch(world)
    for _ in range(2):
        with pytest.raises(OSError, match="no store"):
            await store(a_batch())
    await store(a_batch())
    assert (world.rows, world.published) == (2, [2])


async def test_how_new_a_batch_is_is_that_of_its_newest_row() -> None:
    times = ["2026-01-01T00:00:00Z", "2026-01-03T00:00:00.5Z", "2026-01-02T00:00:00Z", "9999-01-01T00:00:00Z"]
    values = [b'{"id":"p","a":1}'] * 3 + [b'{"id":"p","a":"no"}']
    records = records_of(
        Sent(offset, value, [*HEADERS, ("ce_id", b"%d" % offset), ("ce_time", times[offset].encode())])
        for offset, value in enumerate(values)
    )
    span = Span(SourcePartition("cluster", "t", 0), 0, len(values))
    stored = await store_batch(World())(Batch("cluster", records, read_attributes(records), [span]))
    assert stored.newest == {"known": datetime(2026, 1, 3, microsecond=500_000, tzinfo=UTC).timestamp()}


async def test_a_batch_is_not_done_while_nobody_can_hear_of_its_rejections() -> None:
    world = World(refuse_events=2, rejects=True)
    store = store_batch(world)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="no broker"):
            await store(a_batch())
    stored = await store(a_batch())
    assert (world.rows, world.published) == (2, [2])
    # What the first attempt stored counts.
    assert (dict(stored.rows), [rejection.offset for rejection in stored.rejections]) == ({"known": 2}, [1])


async def test_events_about_many_rejections_keep_their_order() -> None:
    records = records_of(Sent(offset, b"?", [*HEADERS, ("ce_id", b"%d" % offset)]) for offset in range(2500))
    world = World()
    batch = Batch("cluster", records, read_attributes(records), [Span(LEFT, 0, 2500)])
    stored = await store_batch(world)(batch)
    assert [rejection.offset for rejection in stored.rejections] == list(range(2500))
    assert world.published == list(range(1, 2501))


async def test_what_somebody_else_rejected_and_may_not_have_published_is_published() -> None:
    world = World(refuse_events=1)
    with pytest.raises(ConnectionError, match="no broker"):
        await store_batch(world)(a_batch())
    assert (await store_batch(world)(a_batch())).rejections == ()
    assert (world.rows, world.published) == (2, [2])


async def test_a_batch_that_is_read_again_later_is_published_again() -> None:
    # Its offsets may not have been taken: whoever reads it cannot know.
    world = World()
    store = store_batch(world)
    await store(a_batch())
    await store(a_batch())
    assert world.published == [2, 2]


async def test_an_event_is_judged_anew_where_its_schema_changed_before_the_rejection_stood() -> None:
    relaxed = replace(SCHEMA, features=(Field("a", FieldType.STRING),))
    world = World(apply_next=replace(DATASET, schema=relaxed, schema_version=2))
    stored = await store_batch(world)(a_batch())
    # By the new schema, it is the two others that are no rows.
    assert [rejection.offset for rejection in stored.rejections] == [0, 2]
    assert list(world.kept) == [("t", 0, 0), ("t", 0, 2)]
    assert (world.rows, world.published) == (1, [1, 3])


async def test_what_became_a_row_is_no_rejection_by_a_version_that_is_declared_since() -> None:
    world = World()
    await store_batch(world)(a_batch())
    second = replace(SCHEMA, features=(Field("b", FieldType.STRING),))
    world.declared = replace(DATASET, schema=second, schema_version=2, declared_version=2)
    # The process died before it committed the offsets, and two events came meanwhile.
    values = (b'{"id":"p","a":1}', b'{"id":"p","a":"no"}', b'{"id":"p","a":2}', b'{"id":"p","a":3}')
    records = records_of(
        Sent(offset, value, [*HEADERS, ("ce_id", b"%d" % offset)]) for offset, value in enumerate(values)
    )
    spans = [Span(SourcePartition("cluster", "t", 0), 0, 4)]
    stored = await store_batch(world)(Batch("cluster", records, read_attributes(records), spans))
    assert [rejection.offset for rejection in stored.rejections] == [3]
    assert sorted(world.kept) == [("t", 0, 1), ("t", 0, 3)]
    assert world.rows == 2


async def test_an_event_by_a_version_that_is_declared_meanwhile_is_read_by_it() -> None:
    second = replace(SCHEMA, features=(Field("b", FieldType.STRING, default="-"),))
    world = World(apply_next=replace(DATASET, schema=second, schema_version=2))
    values = (b'{"id":"p","b":"x"}', b'{"id":"p","a":1}', b'{"id":"p","a":"no"}')
    records = records_of(
        Sent(offset, value, [*HEADERS, ("ce_id", b"%d" % offset), ("ce_dataschema", version)])
        for offset, (value, version) in enumerate(zip(values, (b"2", b"1", b"1"), strict=True))
    )
    stored = await store_batch(world)(Batch("cluster", records, read_attributes(records), a_batch().spans))
    assert [rejection.offset for rejection in stored.rejections] == [2]
    assert (world.rows, world.published) == (2, [3])


async def test_what_another_instance_rejects_meanwhile_is_no_row_here() -> None:
    # It was paused, judged by a schema that has changed since, and woke up in between.
    [rejection] = (await store_batch(World())(a_batch())).rejections
    relaxed = replace(SCHEMA, features=(Field("a", FieldType.STRING),))
    world = World(declared=replace(DATASET, schema=relaxed, schema_version=2), reject_next=[rejection])
    stored = await store_batch(world)(a_batch())
    assert [rejection.offset for rejection in stored.rejections] == [0, 2]
    assert world.rows == 0
    assert sorted(world.published) == [1, 2, 3]


async def test_an_event_that_is_older_than_rows_are_kept_becomes_none() -> None:
    declared = replace(DATASET, retention=Retention(rows=timedelta(hours=2)))
    values = (b'{"id":"p","a":1}', b'{"id":"p","a":"no"}', b'{"id":"p","a":2}')
    times = (b"2026-01-01T21:59:59Z", b"2026-01-01T00:00:00Z", b"2026-01-01T22:00:00Z")
    records = records_of(
        Sent(offset, value, [*HEADERS, ("ce_id", b"%d" % offset), ("ce_time", time)])
        for offset, (value, time) in enumerate(zip(values, times, strict=True))
    )
    batch = Batch("cluster", records, read_attributes(records), a_batch().spans)
    world = World(declared=declared)
    stored = await store_batch(world)(batch)
    assert (stored.rows, stored.expired) == ({"known": 1}, {"known": 1})
    # One that is rejected is, however old.
    assert world.published == [2]


def batch_from(*times: bytes) -> Batch:
    """An event of each of these times."""
    records = records_of(
        Sent(offset, b'{"id":"p","a":1}', [*HEADERS, ("ce_id", b"%d" % offset), ("ce_time", time)])
        for offset, time in enumerate(times)
    )
    return Batch("cluster", records, read_attributes(records), a_batch().spans)


async def test_no_event_is_taken_for_old_by_a_clock_that_has_jumped() -> None:
    # That of the service is a year ahead: all that comes in seems to be old.
    world = World(clock=NOW - timedelta(days=365))
    world.declared = replace(DATASET, retention=Retention(rows=timedelta(days=30)))
    store, batch = store_batch(world), batch_from(b"2025-01-02T00:00:00Z", b"2024-01-02T00:00:00Z")
    with pytest.raises(FailedPrecondition, match="nothing goes for its age before") as waiting:
        await store(batch)
    assert (waiting.value.reason, world.rows) == ("CLOCKS_DISAGREE", 0)
    # An event that is new by the service's clock needs no other one.
    assert (await store(batch_from(b"2026-01-02T00:00:00Z"))).rows == {"known": 1}
    world.clock = NOW
    assert (await store(batch)).expired == {"known": 2}


LEFT, RIGHT = (SourcePartition("cluster", "t", partition) for partition in range(2))


def claim_checks(payloads: FakePayloads, *, missing: int = 0) -> Batch:
    """Two partitions with three claims of 18 bytes each, and an event with its payload between each two."""
    sent = []
    for partition in range(2):
        for offset in range(5):
            headers = [*HEADERS, ("ce_id", b"%d" % offset)]
            value = b'{"id":"pp","a":1}\n'
            if offset % 2 == 0:
                gone = partition == 0 and offset < missing
                reference = f"{ROOT}/claims/gone" if gone else payloads.put(f"{partition}-{offset}", value)
                headers += claim_headers(value, reference)
                value = b""
            sent.append(Sent(offset, value, headers, partition=partition))
    records = records_of(sent)
    return Batch("cluster", records, read_attributes(records), [Span(LEFT, 0, 9), Span(RIGHT, 0, 5)])


async def test_claims_that_do_not_fit_together_cut_a_batch_into_parts_that_lose_nothing() -> None:
    world, payloads = World(), FakePayloads()
    store, batch = store_batch(world, payloads), claim_checks(payloads)
    parts = [await store(batch) for _ in range(3)]
    assert [part.complete for part in parts] == [False, False, True]
    assert [dict(part.rows) for part in parts] == [{"known": 4}, {"known": 7}, {"known": 10}]
    assert world.spans == [
        [Span(LEFT, 0, 4)],
        [Span(LEFT, 4, 9), Span(RIGHT, 0, 2)],
        [Span(RIGHT, 2, 5)],
    ]
    # All of it is done: the next batch begins at its own first event.
    assert not (await store(batch)).complete


async def test_a_part_that_was_stored_is_not_fetched_again_when_a_later_one_fails() -> None:
    world, payloads = World(), FakePayloads()
    store = store_batch(world, payloads)
    await store(claim_checks(payloads))
    batch = claim_checks(payloads)
    payloads.away = True
    with pytest.raises(Unavailable, match="the object store is away"):
        await store(batch)
    payloads.away = False
    del payloads.objects["claims/0-0"]
    parts = [await store(batch) for _ in range(2)]
    assert [part.complete for part in parts] == [False, True]
    assert (world.rows, world.kept) == (10, {})


async def test_other_owners_of_partitions_begin_at_the_first_part() -> None:
    world, payloads = World(), FakePayloads()
    store = store_batch(world, payloads)
    await store(claim_checks(payloads))
    store.forget()
    await store(claim_checks(payloads))
    assert [spans[0].start for spans in world.spans] == [0, 0]


async def test_a_rejected_claim_check_keeps_its_claim_and_says_where_its_payload_lies() -> None:
    world, payloads = World(), FakePayloads()
    stored = await store_batch(world, payloads)(claim_checks(payloads, missing=1))
    [rejection] = stored.rejections
    assert (rejection.offset, rejection.verdict.reason, rejection.payload) == (0, Reason.CLAIM_MISSING, b"")
    assert dict(rejection.headers)["ce_dataref"] == f"{ROOT}/claims/gone".encode()
    assert world.claims == {1: "claims/gone"}

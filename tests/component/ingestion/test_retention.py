"""What is kept for a time only goes; what somebody wants stays, and counts stay right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
import pytest
from tests.component.ingestion.test_catalogue import DATASET, VERSION, waiting
from tests.component.ingestion.test_erasure import erased, request
from tests.support.ingestion import Headers, Ingestion, Process
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2 as versions
from headrace.errors import FailedPrecondition, InvalidArgument, NotFound
from headrace.ingestion.domain.dataset import Dataset, DatasetVersion, SourcePartition
from headrace.ingestion.domain.profile import FieldProfile, Profile
from headrace.ingestion.domain.rejection import Reason, Rejection, State, Verdict
from headrace.ingestion.domain.rejects import Rejects
from headrace.ingestion.domain.retention import Retention
from headrace.ingestion.domain.schema import FieldType
from headrace.ingestion.storage.repository import PostgresCatalogue
from headrace.ingestion.use_cases.expire import Expire
from headrace.ingestion.use_cases.ports import ExpiredRows, Place, RejectedFilter, Span
from headrace.ingestion.use_cases.versions import Versions
from headrace.postgres import Pool, connect
from headrace.postgres.migrations import migrate
from headrace.rpc.convert import to_duration
from headrace.runtime.clock import utc_now

NOW = datetime(2027, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KEEPING = replace(DATASET, retention=Retention(rows=DAY, versions=365 * DAY, rejected=30 * DAY))


class NoTables:
    """Rows are not what is looked at here."""

    def expire_rows(self, dataset: Dataset, before: datetime) -> ExpiredRows:
        raise AssertionError


class CatalogueThen(PostgresCatalogue):
    """PostgreSQL's clock goes with the tests'."""

    async def now(self) -> datetime:
        return NOW


def expire_in(catalogue: PostgresCatalogue) -> Expire:
    return Expire(catalogue, NoTables(), clock=lambda: NOW)


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    async with connect(postgres_dsn, schema="ingestion", application_name="tests") as pool:
        await migrate(pool, "headrace.ingestion.storage")
        async with PostgresCatalogue(pool).transaction() as repository:
            await repository.insert_dataset(KEEPING)
        yield pool


@pytest.fixture
def catalogue(pool: Pool) -> PostgresCatalogue:
    return CatalogueThen(pool)


async def cut(catalogue: PostgresCatalogue, *ages: int) -> None:
    """Versions of these ages in days, oldest first, each on the table version of ten times its number."""
    profile = Profile(3, (FieldProfile("a", FieldType.FLOAT32, 3, 0),))
    for number, age in enumerate(ages, 1):
        version = replace(VERSION, version=number, table_version=10 * number, create_time=NOW - age * DAY)
        async with catalogue.transaction() as repository:
            assert await repository.insert_version(version)
            await repository.insert_profile(DATASET.name, number, profile)


async def kept(catalogue: PostgresCatalogue) -> list[int]:
    listed = await catalogue.list_versions(DATASET.name, None, 100)
    return sorted(version.version for version in listed if version.expire_time is None)


async def test_a_declaration_is_read_as_it_was_stored(catalogue: PostgresCatalogue) -> None:
    assert list(await catalogue.retaining_datasets()) == [KEEPING]
    async with catalogue.transaction() as repository:
        forever = replace(KEEPING, retention=Retention(), update_time=NOW)
        assert await repository.update_dataset(forever, KEEPING)
    assert list(await catalogue.retaining_datasets()) == []
    assert (await catalogue.datasets([DATASET.name]))[DATASET.name].retention == Retention()


def from_now(time: timedelta) -> datetime:
    return utc_now() + time


async def test_no_version_is_forgotten_by_a_clock_that_has_jumped(pool: Pool) -> None:
    catalogue = PostgresCatalogue(pool)
    await cut(catalogue, 900, 800, 700)
    for jump in (-2, 2):
        jumped = Expire(catalogue, NoTables(), clock=partial(from_now, jump * DAY))
        with pytest.raises(FailedPrecondition, match="set the wrong one right") as refused:
            await jumped.versions(KEEPING)
        assert refused.value.reason == "CLOCKS_DISAGREE"
    assert await kept(catalogue) == [1, 2, 3]


async def test_old_versions_are_forgotten_unless_they_are_named_pinned_or_the_newest(
    catalogue: PostgresCatalogue,
) -> None:
    await cut(catalogue, 900, 800, 700, 600, 500, 365)
    async with catalogue.transaction() as repository:
        assert await repository.put_tag(DATASET.name, "golden", 2, force=False) == 2
        await repository.set_pinned(DATASET.name, 3, pinned=True)
    assert await expire_in(catalogue).versions(KEEPING) == 3
    assert await kept(catalogue) == [2, 3, 6]
    assert await expire_in(catalogue).versions(KEEPING) == 0
    named = Versions(catalogue)
    with pytest.raises(NotFound, match="version 4 of known was forgotten on 2027-01-01") as gone:
        await named.find(DATASET.name, 4)
    assert gone.value.reason == "VERSION_EXPIRED"
    with pytest.raises(NotFound) as never:
        await named.find(DATASET.name, 7)
    assert never.value.reason == "DATASET_VERSION_NOT_FOUND"
    # What stays says which one it was; what its rows looked like goes.
    forgotten = await catalogue.version(DATASET.name, 4)
    assert forgotten is not None
    assert (forgotten.row_count, forgotten.table_version) == (VERSION.row_count, 40)
    assert forgotten.expire_time == NOW
    assert await catalogue.profile(DATASET.name, 4) is None
    assert await catalogue.profile(DATASET.name, 2) is not None
    # Nobody wants it any more.
    await named.pin(DATASET.name, 3, pinned=False)
    assert await expire_in(catalogue).versions(KEEPING) == 1


async def test_files_of_a_forgotten_version_stay_for_who_reads_them_then(
    catalogue: PostgresCatalogue,
) -> None:
    await cut(catalogue, 500, 400, 10)
    await expire_in(catalogue).versions(KEEPING)
    assert list(await catalogue.table_versions(DATASET.name, NOW - timedelta(hours=1))) == [10, 20, 30]
    assert list(await catalogue.table_versions(DATASET.name, NOW)) == [30]


async def test_a_version_is_tagged_or_forgotten_and_never_both(
    pool: Pool, catalogue: PostgresCatalogue
) -> None:
    await cut(catalogue, 500, 400, 10)

    async def tag(version: int) -> int | None:
        async with catalogue.transaction() as repository:
            return await repository.put_tag(DATASET.name, f"t{version}", version, force=False)

    async def pin(version: int) -> DatasetVersion:
        return await Versions(catalogue).pin(DATASET.name, version, pinned=True)

    async def expire() -> Sequence[int]:
        async with catalogue.transaction() as repository:
            return await repository.expire_versions(DATASET.name, NOW - 365 * DAY, NOW, 10)

    async with catalogue.transaction() as repository:
        assert await repository.put_tag(DATASET.name, "t1", 1, force=False) == 1
        expiring = asyncio.create_task(expire())
        await eventually(partial(waiting, pool), lambda count: count == 1)
    assert list(await expiring) == [2]
    async with catalogue.transaction() as repository:
        await repository.delete_tag(DATASET.name, "t1")
        assert list(await repository.expire_versions(DATASET.name, NOW - 365 * DAY, NOW, 10)) == [1]
        tagging, pinning = asyncio.create_task(tag(1)), asyncio.create_task(pin(1))
        await eventually(partial(waiting, pool), lambda count: count == 2)
    assert await tagging is None
    with pytest.raises(NotFound) as gone:
        await pinning
    assert gone.value.reason == "VERSION_EXPIRED"


def rejection(offset: int, dataset: str = DATASET.name, partition: int = 0) -> Rejection:
    verdict = Verdict(Reason.SCHEMA_VIOLATION, "no", "a", "min")
    return Rejection("c1", "t", partition, offset, verdict, dataset, f"e{offset}", "", b"k", b"{}", [])


async def reject(
    catalogue: PostgresCatalogue, *ages: int, first: int = 0, dataset: str = DATASET.name
) -> list[int]:
    """Entries of these ages in days, at rising offsets; their ids."""
    ids = []
    for offset, age in enumerate(ages, first):
        async with catalogue.transaction() as repository:
            new = await repository.insert_rejected([rejection(offset, dataset)], NOW - age * DAY)
        ids += [entry.id for entry in new]
    return ids


async def test_old_rejected_events_go_and_stay_counted(catalogue: PostgresCatalogue) -> None:
    ids = await reject(catalogue, 90, 60, 50, 30, 10)
    await reject(catalogue, 90, first=50, dataset="another")
    async with catalogue.transaction() as repository:
        # It was done with not long ago, so that copies of what was sent may still be on their way.
        await repository.resolve_rejected(ids[1:2], State.REPLAYED, NOW - DAY)
        await repository.resolve_rejected(ids[2:3], State.DISCARDED, NOW - 40 * DAY)
    assert await expire_in(catalogue).rejected(KEEPING) == 2
    found = await catalogue.rejected_sizes(range(100))
    assert [entry for entry in ids if entry in found] == [ids[1], ids[3], ids[4]]
    assert len(found) == 4
    assert await catalogue.rejected_count(DATASET.name) == 5
    assert await expire_in(catalogue).rejected(KEEPING) == 0


async def test_an_event_whose_entry_was_removed_is_not_rejected_again(catalogue: PostgresCatalogue) -> None:
    """Somebody reads the topic from its beginning once more."""
    await reject(catalogue, 90, 40, first=5)
    assert await expire_in(catalogue).rejected(KEEPING) == 2
    async with catalogue.transaction() as repository:
        again = [rejection(offset) for offset in (5, 6, 7)] + [rejection(5, partition=1)]
        new = await repository.insert_rejected(again, NOW)
    # What is behind it, and what stands in another partition, is new.
    assert [(entry.offset, entry.partition) for entry in new] == [(7, 0), (5, 1)]
    assert await catalogue.rejected_count(DATASET.name) == 4


async def test_a_record_batch_is_known_by_all_its_offsets_and_is_so_when_its_entry_is_gone(
    catalogue: PostgresCatalogue,
) -> None:
    batch = replace(rejection(5), next_offset=9)
    async with catalogue.transaction() as repository:
        await repository.insert_rejected([batch, rejection(12)], NOW - 90 * DAY)

    async def known(start: int, end: int, partition: int = 0) -> Mapping[Place, int]:
        return await catalogue.rejected_places([Span(SourcePartition("c1", "t", partition), start, end)])

    entry = {("t", 0, 5): 9}
    assert await known(0, 20) == {**entry, ("t", 0, 12): 13}
    assert [await known(*span) for span in ((5, 6), (7, 8), (8, 12))] == [entry] * 3
    assert [await known(*span) for span in ((0, 5), (9, 12), (13, 20), (5, 9, 1))] == [{}] * 4
    [kept] = await catalogue.rejected_at("c1", entry)
    assert kept.rejection.next_offset == 9
    # Who replays what waits passes over it; who discards it does not.
    for batches, count in ((False, 1), (True, 2)):
        found = await catalogue.pending_sizes(RejectedFilter(), 0, 1 << 40, 10, batches=batches)
        assert len(found) == count

    async with catalogue.transaction() as repository:
        await repository.expire_rejected(DATASET.name, 0, kept.rejection.id, NOW)
    async with catalogue.transaction() as repository:
        new = await repository.insert_rejected([rejection(8), rejection(9)], NOW)
    assert [one.offset for one in new] == [9]


async def test_nobody_stores_rejections_while_entries_are_removed(
    pool: Pool, catalogue: PostgresCatalogue
) -> None:
    """Whoever was paused with a batch in hand, and wakes then, knows of what was removed."""
    [entry] = await reject(catalogue, 90)

    async def late() -> Sequence[Rejection]:
        async with catalogue.transaction() as repository:
            await repository.hold_schema_versions([DATASET.name])
            return await repository.insert_rejected([rejection(0)], NOW)

    async with catalogue.transaction() as repository:
        removed = await repository.expire_rejected(DATASET.name, 0, entry, NOW)
        storing = asyncio.create_task(late())
        await eventually(partial(waiting, pool), lambda count: count == 1)
    assert removed == {State.PENDING: 1}
    assert list(await storing) == []


async def test_what_may_hold_back_a_cut_stays(catalogue: PostgresCatalogue) -> None:
    holding = replace(KEEPING, rejects=Rejects(hold_cut=True), update_time=NOW)
    async with catalogue.transaction() as repository:
        assert await repository.update_dataset(holding, KEEPING)
    await cut(catalogue, 50)
    ids = await reject(catalogue, 60, 45, 40)
    async with catalogue.transaction() as repository:
        await repository.resolve_rejected(ids[2:], State.DISCARDED, NOW - 35 * DAY)
    assert await expire_in(catalogue).rejected(holding) == 2
    assert list(await catalogue.rejected_sizes(ids)) == [ids[1]]


async def test_an_entry_outlives_the_one_whose_replay_it_is(catalogue: PostgresCatalogue) -> None:
    [origin] = await reject(catalogue, 90)
    async with catalogue.transaction() as repository:
        await repository.resolve_rejected([origin], State.REPLAYED, NOW - 80 * DAY)
        copy = replace(rejection(1), event_id="e0", headers=[("ce_replayof", str(origin).encode())])
        [stored] = await repository.insert_rejected([copy], NOW - 10 * DAY)
    assert stored.replay_of == origin
    assert await expire_in(catalogue).rejected(KEEPING) == 1
    found = await catalogue.rejected(stored.id)
    assert found is not None
    assert found.rejection.replay_of == origin


QUICK = {"HEADRACE_INGESTION_EXPIRY_SECONDS": "0.2"}


def event(ingestion: Ingestion, number: int, time: str, radius: float) -> tuple[bytes, bytes, Headers]:
    fields = {"id": f"p{number}", "radius": radius, "grade": 1, "malignant": 0}
    headers = ingestion.headers(f"{ingestion.dataset}-{number:03}", ce_time=time)
    return f"p{number}".encode(), json.dumps(fields).encode(), headers


async def declare(ingestion: Ingestion, process: Process, retention: api.Retention | None) -> api.Dataset:
    declared = api.ApplyDatasetRequest(name=ingestion.dataset, schema=ingestion.schema(), retention=retention)
    async with ingestion.stub(process) as stub:
        return await stub.ApplyDataset(declared)


async def commit(ingestion: Ingestion, process: Process) -> api.DatasetVersion:
    async with ingestion.stub(process) as stub:
        return await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))


async def grow_old(ingestion: Ingestion) -> None:
    """A year goes by for all that PostgreSQL has."""
    connection = await asyncpg.connect(ingestion.dsn, server_settings={"search_path": "ingestion"})
    try:
        for table, column in (("dataset_versions", "create_time"), ("rejected_samples", "reject_time")):
            await connection.execute(f"update {table} set {column} = {column} - interval '1 year'")
    finally:
        await connection.close()


KEPT = api.Retention(
    rows=to_duration(90 * DAY), versions=to_duration(180 * DAY), rejected=to_duration(30 * DAY)
)


async def filled(ingestion: Ingestion, process: Process) -> tuple[api.DatasetVersion, str]:
    """Two rows of old, one of now and a rejected event, and a version of them."""
    recent = datetime.now(UTC).isoformat()
    await declare(ingestion, process, None)
    await ingestion.publish(
        [
            event(ingestion, 1, "2001-01-01T00:00:00Z", 1),
            event(ingestion, 2, "2001-01-02T00:00:00Z", 2),
            event(ingestion, 3, recent, 3),
            event(ingestion, 4, recent, -1),
        ]
    )
    await eventually(ingestion.rows, lambda rows: len(rows) == 3)
    await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 1)
    return await commit(ingestion, process), recent


@pytest.mark.broker
async def test_what_is_old_goes_as_it_is_declared(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(**QUICK)
    first, recent = await filled(ingestion, process)
    assert (await declare(ingestion, process, KEPT)).retention == KEPT
    await eventually(ingestion.rows, lambda rows: len(rows) == 1)
    # What is too old when it arrives becomes no row, and no rejected event either.
    await ingestion.publish([event(ingestion, 5, "2001-01-03T00:00:00Z", 5), event(ingestion, 6, recent, 6)])
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert [row["radius"] for row in rows] == [3, 6]
    expired = partial(process.metric, "headrace_ingestion_expired_events_total", dataset=ingestion.dataset)
    await eventually(expired, lambda count: count == 1)
    second = await commit(ingestion, process)
    assert (first.row_count, second.row_count) == (3, 2)
    async with ingestion.version_stub(process) as stub:
        for version in (first, second):
            replaying = versions.ReplayVersionRequest(
                dataset=ingestion.dataset, version=versions.VersionName(number=version.version)
            )
            answers = [answer async for answer in stub.ReplayVersion(replaying)]
            assert answers[-1].result.same
    await grow_old(ingestion)
    await eventually(lambda: ingestion.rejected(process), lambda found: not found)
    listed = await eventually(
        lambda: ingestion.versions(process), lambda found: found[0].HasField("expire_time")
    )
    assert not listed[1].HasField("expire_time")
    assert listed[0].content_hash == first.content_hash
    async with ingestion.stub(process) as stub:
        with pytest.raises(NotFound) as gone:
            await stub.GetVersion(api.GetVersionRequest(dataset=ingestion.dataset, version=1))
        assert gone.value.reason == "VERSION_EXPIRED"
        dataset = await stub.GetDataset(api.GetDatasetRequest(name=ingestion.dataset))
    assert (dataset.row_count, dataset.rejected_count, dataset.latest_version) == (2, 1, 2)
    # An erasure takes a subject out of all files, and looks anew at those versions only that there are.
    await request(ingestion, process, "p3")
    assert list((await erased(ingestion, process)).versions) == [2]


@pytest.mark.broker
async def test_rejected_events_are_kept_as_long_as_their_alert_counts_them(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready()
    declared = api.ApplyDatasetRequest(
        name=ingestion.dataset,
        schema=ingestion.schema(),
        rejects=api.Rejects(window=to_duration(2 * DAY)),
        retention=api.Retention(rejected=to_duration(DAY)),
    )
    async with ingestion.stub(process) as stub:
        with pytest.raises(InvalidArgument) as refused:
            await stub.ApplyDataset(declared)
    assert refused.value.reason == "INVALID_RETENTION"
    assert [field.field for field in refused.value.fields] == ["retention.rejected"]


@pytest.mark.broker
@pytest.mark.kill
async def test_whoever_dies_in_between_leaves_the_rest_to_the_next(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(HEADRACE_INGESTION_EXPIRY_SECONDS="3600")
    await filled(ingestion, process)
    await declare(ingestion, process, KEPT)
    # The newest version stays, so that there must be a later one.
    await ingestion.publish([event(ingestion, 7, datetime.now(UTC).isoformat(), 7)])
    await eventually(ingestion.rows, lambda rows: len(rows) == 4)
    await commit(ingestion, process)
    await process.stop()
    await grow_old(ingestion)
    for step in ("rejected", "versions", "write", "commit"):
        process = await ingestion.start(**QUICK, HEADRACE_FAULT=f"ingestion.after-expire-{step}")
        await process.killed()
    process = await ingestion.start_ready(**QUICK)
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert [row["radius"] for row in rows] == [3, 7]
    assert await ingestion.rejected(process) == []
    listed = await ingestion.versions(process)
    assert [version.HasField("expire_time") for version in listed] == [True, False]
    third = await commit(ingestion, process)
    assert (third.version, third.row_count) == (3, 2)
    async with ingestion.version_stub(process) as stub:
        replaying = versions.ReplayVersionRequest(
            dataset=ingestion.dataset, version=versions.VersionName(number=3)
        )
        answers = [answer async for answer in stub.ReplayVersion(replaying)]
    assert answers[-1].result.same
    async with ingestion.stub(process) as stub:
        dataset = await stub.GetDataset(api.GetDatasetRequest(name=ingestion.dataset))
    assert (dataset.row_count, dataset.rejected_count) == (2, 1)

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pyarrow as pa
import pytest
from prometheus_client import REGISTRY

from headrace.errors import FailedPrecondition, NotFound
from headrace.ingestion.cutter import Cutter
from headrace.ingestion.domain.dataset import (
    Dataset,
    DatasetVersion,
    SourceOffset,
    SourcePartition,
    TableCommit,
)
from headrace.ingestion.domain.evolution import SchemaVersion
from headrace.ingestion.domain.profile import Profile
from headrace.ingestion.domain.quality import (
    Drift,
    DriftMethod,
    NullShare,
    QualityRule,
    Range,
    VersionVerdict,
)
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Role, Schema
from headrace.ingestion.use_cases.cut_versions import CutVersions
from headrace.ingestion.use_cases.ports import Catalogue, SampleTables, TableState, VersionRows
from headrace.ingestion.use_cases.profile_versions import ProfileVersions
from headrace.splits import TIME_COLUMN, By, Shares, assign
from headrace.telemetry import names

START = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))
SOURCE = SourcePartition("c", "t", 0)


def batch_of(commit: TableCommit) -> pa.RecordBatch:
    """Its rows: feature and time are the commit's number, and every second one is labelled 1."""
    number = commit.table_version
    return pa.record_batch(
        {
            "id": pa.array([f"{number}-{row}" for row in range(commit.rows)]),
            "a": pa.array([float(number)] * commit.rows, pa.float32()),
            "y": pa.array([row % 2 for row in range(commit.rows)], pa.int8()),
            TIME_COLUMN: pa.array([number] * commit.rows, pa.timestamp("us", "UTC")),
        }
    )


@dataclass
class FakeWorld:
    """Catalogue, repository and tables in memory, and the clock."""

    dataset: Dataset
    now: datetime = START
    versions: list[DatasetVersion] = field(default_factory=list)
    announced: list[DatasetVersion] = field(default_factory=list)
    commits: list[TableCommit] = field(default_factory=list)
    read_since: list[int] = field(default_factory=list)
    rival: DatasetVersion | None = None
    profiles: dict[int, Profile] = field(default_factory=dict)
    schemas: Sequence[SchemaVersion] = ()
    rows_read: int = 0
    compacted: bool = False
    reading: threading.Event = field(default_factory=threading.Event)
    readable: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.readable.set()

    def clock(self) -> datetime:
        return self.now

    def add_rows(self, rows: int) -> None:
        number = len(self.commits)
        self.commits.append(
            TableCommit(number, rows, rows, (SourceOffset(SOURCE, number),), f"trace-{number}", self.now)
        )

    async def datasets(self, names: Collection[str]) -> Mapping[str, Dataset]:
        return {self.dataset.name: self.dataset} if self.dataset.name in names else {}

    async def self_cutting_datasets(self) -> Sequence[Dataset]:
        return [self.dataset]

    async def last_version(self, dataset: str) -> DatasetVersion | None:
        return self.versions[-1] if self.versions else None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[FakeWorld]:
        yield self

    async def insert_version(self, version: DatasetVersion) -> bool:
        if self.rival is not None:
            self.versions.append(self.rival)
            self.rival = None
        if version.version in [other.version for other in self.versions]:
            return False
        self.versions.append(version)
        return True

    async def insert_profile(self, dataset: str, version: int, profile: Profile) -> None:
        self.profiles[version] = profile

    async def profile(self, dataset: str, version: int) -> Profile | None:
        return self.profiles.get(version)

    async def tagged_version(self, dataset: str, tag: str) -> DatasetVersion | None:
        return next((version for version in self.versions if tag in version.tags), None)

    async def schema_versions(self, dataset: str) -> Sequence[SchemaVersion]:
        return self.schemas

    def added(self, dataset: Dataset, after: int, table_version: int) -> Iterator[pa.RecordBatch]:
        if self.compacted:
            raise FileNotFoundError("part-0.parquet")
        for commit in self.commits[after + 1 : table_version + 1]:
            self.rows_read += commit.rows
            yield batch_of(commit)

    def at(self, dataset: str, table_version: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        self.reading.set()
        assert self.readable.wait(10)
        for commit in self.commits[: table_version + 1]:
            self.rows_read += commit.rows
            yield batch_of(commit)

    async def publish_version(self, dataset: Dataset, version: DatasetVersion, table_uri: str) -> None:
        self.announced.append(version)

    def uri(self, dataset: str) -> str:
        return f"memory:///{dataset}"

    def state_since(self, dataset: Dataset, table_version: int) -> TableState:
        self.read_since.append(table_version)
        later = [commit for commit in self.commits if commit.table_version > table_version]
        return TableState(len(self.commits) - 1, later)

    def use_case(self) -> CutVersions:
        profile = ProfileVersions(cast("Catalogue", self), cast("VersionRows", self))
        return CutVersions(cast("Catalogue", self), cast("SampleTables", self), profile, clock=self.clock)


def world(**cut: float) -> FakeWorld:
    declared = Cut(int(cut.get("rows", 0)), cut.get("seconds", 0))
    made = FakeWorld(Dataset("d", SCHEMA, declared, 1, START, START))
    made.add_rows(0)
    return made


async def test_a_cut_that_a_crash_prevented_still_comes() -> None:
    state = world(rows=10)
    state.add_rows(12)
    # A process that never saw the commit.
    version, _ = await state.use_case().cut_if_due(state.dataset)
    assert version is not None
    assert (version.version, version.table_version, version.row_count) == (1, 1, 12)
    assert state.announced == [version]


async def test_nothing_is_cut_before_its_time_and_the_time_is_known() -> None:
    state = world(rows=10, seconds=30)
    state.now = START + timedelta(seconds=5)
    state.add_rows(3)
    cut = state.use_case()
    assert await cut.cut_if_due(state.dataset) == (None, timedelta(seconds=30))
    state.now = START + timedelta(seconds=35)
    version, due = await cut.cut_if_due(state.dataset)
    assert version is not None
    assert due is None
    assert await cut.cut_if_due(state.dataset) == (None, None)


async def test_only_new_commits_are_read_again() -> None:
    state = world(rows=100)
    state.add_rows(3)
    cut = state.use_case()
    await cut.cut_if_due(state.dataset)
    state.add_rows(4)
    await cut.cut_if_due(state.dataset)
    assert state.read_since == [-1, 1]
    assert (await cut.uncut(state.dataset))[1].rows == 7


async def test_a_version_that_another_instance_cut_is_where_the_next_begins() -> None:
    state = world()
    state.add_rows(5)
    cut = state.use_case()
    first = await cut.commit("d")
    state.versions[-1] = first
    state.add_rows(2)
    rival = DatasetVersion("d", 2, 2, 1, 7, 7, (), START, "")
    state.rival = rival
    # Its number is taken when it tries: it looks again, and finds nothing that the other one left.
    assert await cut.commit("d") == rival
    state.add_rows(1)
    third = await cut.commit("d")
    assert (third.version, third.row_count, third.content_hash) == (3, 8, 8)


async def test_a_version_continues_the_trace_of_its_first_sample() -> None:
    state = world()
    state.add_rows(1)
    state.add_rows(1)
    assert (await state.use_case().commit("d")).traceparent == "trace-1"


async def test_a_version_of_nothing_is_refused() -> None:
    state = world()
    with pytest.raises(FailedPrecondition) as empty:
        await state.use_case().commit("d")
    assert empty.value.reason == "DATASET_EMPTY"
    with pytest.raises(NotFound):
        await state.use_case().commit("other")


async def test_the_cutter_looks_when_it_is_told_to_and_when_it_starts() -> None:
    state = world(rows=10)
    state.add_rows(10)
    cutter = Cutter(cast("Catalogue", state), state.use_case(), sweep_seconds=1000)
    running = asyncio.create_task(cutter.run())
    async with asyncio.timeout(5):
        while len(state.announced) < 1:
            await asyncio.sleep(0)
        state.add_rows(10)
        cutter.touched(["d", "gone"])
        while len(state.announced) < 2:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_every_cut_is_counted_whoever_asked_for_it() -> None:
    state = world(rows=1)
    cut = state.use_case()

    def counted() -> float:
        return REGISTRY.get_sample_value(names.METRIC_INGESTION_VERSIONS, {"dataset": "d"}) or 0

    before = counted()
    state.add_rows(1)
    await cut.commit("d")
    state.add_rows(1)
    await cut.cut_if_due(state.dataset)
    assert counted() - before == 2


async def test_a_version_is_profiled_from_its_new_rows_alone() -> None:
    state = world()
    state.add_rows(4)
    state.add_rows(2)
    await state.use_case().commit("d")
    state.add_rows(3)
    state.rows_read = 0
    # A process that cut none of them: what it goes on from is stored.
    await state.use_case().commit("d")
    assert state.rows_read == 3
    feature = state.profiles[2].field("a")
    assert feature is not None
    assert feature.moments is not None
    assert (feature.count, feature.moments.min, feature.moments.max) == (9, 1.0, 3.0)
    assert feature.moments.mean == pytest.approx((4 * 1 + 2 * 2 + 3 * 3) / 9)


async def test_all_rows_are_profiled_where_an_attribute_became_a_feature() -> None:
    state = world()
    feature = SCHEMA.features[0]
    before = replace(
        SCHEMA, features=(Field("b", FieldType.BOOL),), attributes=(replace(feature, role=Role.IGNORED),)
    )
    state.dataset = replace(state.dataset, schema=before)
    state.add_rows(4)
    await state.use_case().commit("d")
    moved = replace(before, features=(*before.features, feature), attributes=())
    rule = QualityRule(Range("a", min=2), VersionVerdict.BLOCK)
    state.dataset = replace(state.dataset, schema=moved, quality=(rule,))
    state.add_rows(3)
    version = await state.use_case().commit("d")
    # The rows of before break the rule, and the new ones do not.
    assert (version.verdict, version.findings[0].value) == (VersionVerdict.BLOCK, 1.0)
    profile = state.profiles[2].field("a")
    assert profile is not None
    assert profile.moments is not None
    assert profile.count == profile.moments.count == 7
    state.rows_read = 0
    state.add_rows(2)
    await state.use_case().commit("d")
    assert state.rows_read == 2


@pytest.mark.parametrize("why", ["compacted", "cut before profiles were made"])
async def test_where_new_rows_cannot_be_told_all_are_profiled(why: str) -> None:
    state = world()
    state.add_rows(4)
    await state.use_case().commit("d")
    state.add_rows(3)
    if why == "compacted":
        state.compacted = True
    else:
        state.profiles.clear()
    version = await state.use_case().commit("d")
    assert state.profiles[2].row_count == version.row_count == 7


@pytest.mark.parametrize(("returns", "read"), [(False, 3), (True, 9)])
async def test_where_a_field_is_back_all_rows_are_profiled(returns: bool, read: int) -> None:
    """Rows had it before the last version was cut without it, which its profile does not know."""
    state = world()
    without = replace(SCHEMA, features=(Field("b", FieldType.FLOAT32, nullable=True),))
    state.schemas = [
        SchemaVersion(number, schema, START)
        for number, schema in ((3, SCHEMA), (2, without), (1, SCHEMA if returns else without))
    ]
    state.dataset = replace(state.dataset, schema=without, schema_version=2)
    state.add_rows(6)
    await state.use_case().commit("d")
    state.dataset = replace(state.dataset, schema=SCHEMA, schema_version=3)
    state.add_rows(3)
    state.rows_read = 0
    await state.use_case().commit("d")
    assert state.rows_read == read
    field = state.profiles[2].field("a")
    assert field is not None
    assert field.count == read


async def test_splits_by_key_are_counted_from_new_rows_alone_until_the_rule_changes() -> None:
    state = world()
    shares = Shares(0.5, 0.25, 0.25)
    state.dataset = replace(state.dataset, split=shares)
    state.add_rows(40)
    await state.use_case().commit("d")
    state.add_rows(20)
    state.rows_read = 0
    version = await state.use_case().commit("d")
    assert state.rows_read == 20
    keys = pa.array([f"{number}-{row}" for number, rows in ((1, 40), (2, 20)) for row in range(rows)])
    expected = [assign(keys, shares).tolist().count(number) for number in range(3)]
    assert version.split_counts is not None
    assert [count.rows for count in version.split_counts.splits] == expected
    state.dataset = replace(state.dataset, split=Shares(1, 0, 0))
    state.add_rows(1)
    changed = (await state.use_case().commit("d")).split_counts
    assert changed is not None
    assert [count.rows for count in changed.splits] == [61, 0, 0]
    assert state.profiles[3].row_count == 61


async def test_splits_by_time_move_on_with_each_version() -> None:
    state = world()
    state.dataset = replace(state.dataset, split=Shares(0.5, 0.25, 0.25, "time"))
    for _ in range(4):
        state.add_rows(10)
    counts = (await state.use_case().commit("d")).split_counts
    assert counts is not None
    assert [count.rows for count in counts.splits] == [20, 10, 10]
    for _ in range(4):
        state.add_rows(10)
    counts = (await state.use_case().commit("d")).split_counts
    assert counts is not None
    assert [count.rows for count in counts.splits] == [40, 20, 20]
    epoch = datetime.fromtimestamp(0, UTC)
    assert counts.validation_begins == epoch + timedelta(microseconds=5)
    assert counts.test_begins == epoch + timedelta(microseconds=7)


@pytest.mark.parametrize("by", ["key", "time"])
async def test_what_is_left_of_a_version_is_split_as_it_was_cut(by: By) -> None:
    state = world()
    state.add_rows(10)
    unsplit = await state.use_case().commit("d")
    shares = Shares(0.5, 0.25, 0.25, by)
    state.dataset = replace(state.dataset, split=shares)
    for _ in range(3):
        state.add_rows(10)
    version = await state.use_case().commit("d")
    state.dataset = replace(state.dataset, split=Shares(1, 0, 0))
    state.commits = [replace(commit, rows=min(commit.rows, 8)) for commit in state.commits]
    profiles = ProfileVersions(cast("Catalogue", state), cast("VersionRows", state))
    profile, counts = profiles.again(state.dataset, version)
    assert counts is not None
    assert profile.row_count == sum(count.rows for count in counts.splits) == 32
    assert counts.shares == shares
    if by == "time":
        assert [count.rows for count in counts.splits] == [16, 8, 8]
    assert profiles.again(state.dataset, unsplit)[1] is None


async def test_a_version_is_judged_before_it_is_told_of() -> None:
    rules = (
        QualityRule(NullShare("a", 0.5), VersionVerdict.BLOCK),
        QualityRule(Range("a", max=1), VersionVerdict.WARN),
        QualityRule(Drift("a", "", DriftMethod.PSI, 0.2), VersionVerdict.BLOCK),
    )
    state = world()
    state.dataset = replace(state.dataset, quality=rules)
    state.add_rows(4)
    first = await state.use_case().commit("d")
    assert first.verdict is VersionVerdict.PASS
    state.add_rows(40)
    second = await state.use_case().commit("d")
    assert [finding.verdict.name for finding in second.findings] == ["PASS", "WARN", "BLOCK"]
    assert second.verdict is VersionVerdict.BLOCK
    assert state.announced == [first, second]


async def test_drift_is_measured_from_the_tagged_version_where_the_rule_says_so() -> None:
    state = world()
    rule = QualityRule(Drift("a", "golden", DriftMethod.KS, 0.5), VersionVerdict.BLOCK)
    state.dataset = replace(state.dataset, quality=(rule,))
    state.add_rows(4)
    first = await state.use_case().commit("d")
    # Nothing bears the tag yet.
    assert first.findings[0].value is None
    state.versions[0] = replace(first, tags=("golden",))
    for _ in range(3):
        state.add_rows(10)
        last = await state.use_case().commit("d")
    assert last.findings[0].value == pytest.approx(30 / 34)
    assert last.verdict is VersionVerdict.BLOCK


async def test_who_gives_up_while_rows_are_read_meets_the_version_later() -> None:
    state = world()
    state.add_rows(4)
    state.readable.clear()
    cut = state.use_case()
    impatient = asyncio.create_task(cut.commit("d"))
    assert await asyncio.to_thread(state.reading.wait, 10)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    # Nobody who only looks waits meanwhile.
    assert (await cut.uncut(state.dataset))[1].rows == 4
    state.readable.set()
    assert (await cut.commit("d")).version == 1
    assert len(state.announced) == 1
    assert state.rows_read == 4

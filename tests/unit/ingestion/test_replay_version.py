from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
from tests.support.claims import FakePayloads, claims_of

from headrace.errors import FailedPrecondition
from headrace.ingestion.domain.dataset import Dataset, DatasetVersion, SourceOffset, SourcePartition
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.domain.source_topic import SourceTopic
from headrace.ingestion.use_cases.ports import Catalogue, TopicReader, VersionRows
from headrace.ingestion.use_cases.replay_version import Replayed, ReplayVersion
from headrace.messaging.record_columns import Records
from headrace.messaging.topics import SAMPLES

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))
DATASET = Dataset("d", SCHEMA, Cut(), 1, NOW, NOW)
HERE, ELSEWHERE = SourcePartition("here", SAMPLES, 0), SourcePartition("elsewhere", SAMPLES, 1)
THEIRS = SourcePartition("here", "clinic.scans", 0)


@dataclass
class FakeWorld:
    """A version's offsets by its sources, and a broker that has none of their events."""

    held: dict[SourcePartition, Sequence[int]]
    values_changed: bool = False
    source: SourceTopic | None = None
    gone: bool = False
    asked: list[tuple[SourcePartition, int, int]] = field(default_factory=list)

    async def datasets(self, names: Sequence[str]) -> dict[str, Dataset]:
        return {"d": replace(DATASET, values_changed=self.values_changed, source=self.source)}

    def at(
        self, dataset: str, table_version: int, columns: Sequence[str], where: object
    ) -> Iterator[pa.RecordBatch]:
        if self.gone:
            raise FileNotFoundError("part-0.parquet")
        for source, offsets in self.held.items():
            if f'_cluster == "{source.cluster}"' in str(where):
                yield pa.record_batch({"_offset": pa.array(offsets, pa.int64())})

    async def cluster(self) -> str:
        return "here"

    async def read(self, source: SourcePartition, start: int, end: int) -> AsyncIterator[Records]:
        self.asked.append((source, start, end))
        empty = np.empty((8, 0), np.int64)
        yield Records(np.empty(0, np.uint8), empty, np.empty(0, np.int32), source.topic)

    async def replay(self) -> list[Replayed]:
        version = DatasetVersion(
            "d", 3, 7, 1, 9, 0, tuple(SourceOffset(source, 100) for source in self.held), NOW, ""
        )
        replay = ReplayVersion(
            cast("Catalogue", self),
            cast("VersionRows", self),
            cast("TopicReader", self),
            max_event_bytes=1000,
            registry=None,
            claims=claims_of(FakePayloads()),
        )
        return [replayed async for replayed in replay(version)]


async def test_only_the_part_of_a_topic_that_a_version_holds_is_read() -> None:
    state = FakeWorld({HERE: [41, 17, 30], ELSEWHERE: []})
    # Rows whose events are not there are not counted.
    assert await state.replay() == [Replayed(0, 0)]
    assert state.asked == [(HERE, 17, 42)]


async def test_other_rows_prove_nothing_once_the_schema_makes_other_values() -> None:
    state = FakeWorld({HERE: [41, 17, 30]}, values_changed=True)
    with pytest.raises(FailedPrecondition) as caught:
        await state.replay()
    assert caught.value.reason == "SCHEMA_CHANGED"
    assert "0 of 9 events of version 3 of d" in caught.value.message


async def test_events_of_another_cluster_cannot_be_replayed() -> None:
    state = FakeWorld({HERE: [1], ELSEWHERE: [1, 2]})
    with pytest.raises(FailedPrecondition) as caught:
        await state.replay()
    assert caught.value.reason == "SOURCE_UNREACHABLE"
    assert "holds 2 events from elsewhere, and the broker is here" in caught.value.message


@pytest.mark.parametrize("source", [None, SourceTopic("clinic.other")])
async def test_events_of_a_topic_that_is_the_datasets_no_more_cannot_be_replayed(
    source: SourceTopic | None,
) -> None:
    state = FakeWorld({THEIRS: [1]}, source=source)
    with pytest.raises(FailedPrecondition) as caught:
        await state.replay()
    assert caught.value.reason == "SOURCE_CHANGED"
    assert "clinic.scans" in caught.value.message


async def test_events_of_the_datasets_own_topic_are_read_as_such() -> None:
    state = FakeWorld({THEIRS: [1]}, source=SourceTopic("clinic.scans"))
    assert await state.replay() == [Replayed(0, 0)]
    assert state.asked == [(THEIRS, 1, 2)]


async def test_a_version_whose_files_are_gone_cannot_be_replayed() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await FakeWorld({HERE: [1]}, gone=True).replay()
    assert caught.value.reason == "ROWS_GONE"

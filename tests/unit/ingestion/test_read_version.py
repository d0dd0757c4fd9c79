from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

import pyarrow as pa

from headrace.ingestion.domain.dataset import Dataset, DatasetVersion
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Role, Schema
from headrace.ingestion.use_cases.ports import Catalogue, SchemaName, VersionRows
from headrace.ingestion.use_cases.read_version import ReadVersion

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SITE = Field("site", FieldType.STRING, nullable=True, role=Role.PROTECTED)
LABEL = Field("y", FieldType.INT8)
FIRST = Schema("id", (Field("a", FieldType.FLOAT32),), LABEL, (SITE,))
# The site became personal, and is dropped.
SECOND = Schema(
    "id", (Field("b", FieldType.FLOAT32, default=1),), LABEL, (replace(SITE, role=Role.PERSONAL),)
)
DATASET = Dataset("d", SECOND, Cut(), 2, NOW, NOW)


@dataclass
class World:
    """A dataset, the versions of its schema that are kept, and the columns that are asked for."""

    kept: Mapping[SchemaName, Schema]
    asked: list[Sequence[str]] = field(default_factory=list)

    async def datasets(self, names: Collection[str]) -> Mapping[str, Dataset]:
        return {"d": DATASET}

    async def schemas(self, names: Collection[SchemaName]) -> Mapping[SchemaName, Schema]:
        return {name: self.kept[name] for name in names if name in self.kept}

    def at(self, dataset: str, table_version: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        self.asked.append(columns)
        return iter(())

    async def columns(self, schema_version: int) -> Sequence[str]:
        read = ReadVersion(cast("Catalogue", self), cast("VersionRows", self))
        version = DatasetVersion("d", 1, 7, schema_version, 3, 0, (), NOW, "")
        assert [batch async for batch in read(version)] == []
        return self.asked.pop()


async def test_a_version_is_read_by_its_own_schema_without_what_is_dropped_since() -> None:
    world = World({("d", 1): FIRST})
    assert await world.columns(1) == ["id", "a", "y"]
    assert await world.columns(2) == ["id", "b", "y"]


async def test_a_version_whose_schema_was_not_kept_is_read_by_the_newest() -> None:
    assert await World({}).columns(1) == ["id", "b", "y"]

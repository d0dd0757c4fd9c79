"""What a version's rows look like, made when it is cut, and what the dataset's quality rules say to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.ingestion.domain.dataset import Dataset, DatasetVersion
from headrace.ingestion.domain.profile import Profile, extended, is_extensible
from headrace.ingestion.domain.quality import Finding, judge, references
from headrace.ingestion.domain.split_counts import SplitCounter, SplitCounts, is_countable_on, moment_of
from headrace.ingestion.use_cases.ports import Catalogue, VersionRows
from headrace.splits import TIME_COLUMN, ByKey, ByTime, Shares, begins_of, microseconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Profiled:
    """A version's profile, what the rules found in it, and how many rows each split has."""

    profile: Profile
    findings: tuple[Finding, ...]
    split_counts: SplitCounts | None


class ProfileVersions:
    """The use case. It stores nothing: after a crash the next cut begins anew."""

    def __init__(self, catalogue: Catalogue, rows: VersionRows) -> None:
        self._catalogue = catalogue
        self._rows = rows

    async def __call__(
        self,
        dataset: Dataset,
        last: DatasetVersion | None,
        table_version: int,
        *,
        extends_last: bool = True,
    ) -> Profiled:
        """Profile the rows of a version to be, which comes after `last` and ends with `table_version`.

        Only rows beyond `last` are read, unless its profile is missing, or lacks what is a feature since, or
        the dataset is split by another rule since, or has a field again that it was cut without, or the
        version does not extend it, since rows of it were erased. By time, all rows' times and labels are read
        besides.
        """
        base = await self._catalogue.profile(dataset.name, last.version) if last else None
        if last and base and await self._has_returned(dataset, last, base):
            extends_last = False
        profile, counts = await asyncio.to_thread(
            self._profile, dataset, last, base if extends_last else None, table_version
        )
        compared = await self._compared(dataset, base)
        return Profiled(profile, judge(dataset.quality, dataset.schema, profile, compared), counts)

    def again(self, dataset: Dataset, version: DatasetVersion) -> tuple[Profile, SplitCounts | None]:
        """Profile and counts of the rows that a version has now, split as it was cut. Blocks."""
        split = version.split_counts.shares if version.split_counts else None
        return self._profile(replace(dataset, split=split), None, None, version.table_version)

    def _profile(
        self, dataset: Dataset, last: DatasetVersion | None, base: Profile | None, table_version: int
    ) -> tuple[Profile, SplitCounts | None]:
        if base is not None and not is_extensible(base, dataset.schema):
            logger.info("profiling all rows of %s: an attribute of before is a feature now", dataset.name)
        elif last is not None and not is_countable_on(last.split_counts, dataset.split):
            logger.info("profiling all rows of %s: they are split by another rule now", dataset.name)
        elif last is not None and base is not None:
            try:
                added = self._rows.added(dataset, last.table_version, table_version)
                return self._extended(dataset, base, last.split_counts, added, table_version)
            except FileNotFoundError as error:
                # Compaction wrote its rows elsewhere before they were cut.
                logger.info("profiling all rows of %s, not just the new ones: %s", dataset.name, error)
        names = [field.name for field in dataset.schema.stored_fields]
        rows = self._rows.at(dataset.name, table_version, names)
        return self._extended(dataset, None, None, rows, table_version)

    def _extended(
        self,
        dataset: Dataset,
        base: Profile | None,
        counted: SplitCounts | None,
        batches: Iterator[pa.RecordBatch],
        table_version: int,
    ) -> tuple[Profile, SplitCounts | None]:
        """Profile and counts of the rows before and those of the batches together, in one pass by key."""
        schema, split = dataset.schema, dataset.split
        if split is None:
            return extended(base, schema, batches), None
        if split.by == "time":
            return extended(base, schema, batches), self._counts_by_time(dataset, split, table_version)
        counter = SplitCounter(schema.label, ByKey(schema.key, split, few=0), counted)
        profile = extended(base, schema, counter.through(batches))
        return profile, counter.counts(split)

    def _counts_by_time(self, dataset: Dataset, split: Shares, table_version: int) -> SplitCounts:
        label = dataset.schema.label

        def batches() -> Iterator[pa.RecordBatch]:
            return self._rows.at(dataset.name, table_version, [TIME_COLUMN, label.name])

        def times() -> Iterator[npt.NDArray[np.int64]]:
            for batch in batches():
                yield microseconds(batch.column(TIME_COLUMN).filter(batch.column(label.name).is_valid()))

        begins = begins_of(times, split)
        counter = SplitCounter(label, ByTime(begins))
        for batch in batches():
            counter.add(batch)
        return counter.counts(split, *map(moment_of, begins))

    async def _has_returned(self, dataset: Dataset, last: DatasetVersion, base: Profile) -> bool:
        """Whether the schema has a field again that rows had, and that the last version was cut without."""
        added = {field.name for field in dataset.schema.stored_fields} - {field.name for field in base.fields}
        if not added:
            return False
        earlier = await self._catalogue.schema_versions(dataset.name)
        return any(
            field.name in added
            for each in earlier
            if each.version < last.schema_version
            for field in each.schema.stored_fields
        )

    async def _compared(self, dataset: Dataset, base: Profile | None) -> Mapping[str, Profile]:
        compared = {"": base}
        for tag in references(dataset.quality) - {""}:
            tagged = await self._catalogue.tagged_version(dataset.name, tag)
            compared[tag] = await self._catalogue.profile(dataset.name, tagged.version) if tagged else None
        return {tag: profile for tag, profile in compared.items() if profile is not None}

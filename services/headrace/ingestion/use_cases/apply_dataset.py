"""Creating a dataset, or changing it in ways that every stored row survives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from headrace.errors import Aborted, FailedPrecondition, FieldViolation
from headrace.ingestion.domain.cut import check_cut
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.key_ring import NO_KEYS, KeyRing
from headrace.ingestion.domain.quality import QualityRule, check_quality
from headrace.ingestion.domain.rejects import Rejects
from headrace.ingestion.domain.retention import Retention, check_retention
from headrace.ingestion.domain.schema import Cut, Schema, changes_values, check_evolution, check_schema
from headrace.ingestion.domain.source_topic import SourceTopic, changes_format, check_source
from headrace.ingestion.domain.split_counts import check_split
from headrace.ingestion.use_cases.ports import Catalogue, SampleTables
from headrace.runtime.clock import Clock
from headrace.splits import Shares

_ATTEMPTS: Final = 5
NO_RETENTION: Final = Retention()


class ApplyDataset:
    """The use case. Applying the same again changes nothing."""

    def __init__(
        self,
        catalogue: Catalogue,
        tables: SampleTables,
        topic_exists: Callable[[str], Awaitable[bool]],
        *,
        clock: Clock,
        keys: KeyRing = NO_KEYS,
    ) -> None:
        """`topic_exists` tells whether the broker has a topic of that name."""
        self._catalogue = catalogue
        self._tables = tables
        self._topic_exists = topic_exists
        self._clock = clock
        self._keys = keys

    async def __call__(
        self,
        name: str,
        schema: Schema,
        cut: Cut,
        rejects: Rejects,
        quality: Sequence[QualityRule] = (),
        split: Shares | None = None,
        retention: Retention = NO_RETENTION,
        source: SourceTopic | None = None,
    ) -> Dataset:
        """Make the dataset be so.

        Raises InvalidArgument INVALID_SCHEMA, INVALID_QUALITY, INVALID_SPLIT, INVALID_CUT,
        INVALID_RETENTION or INVALID_SOURCE, FailedPrecondition INCOMPATIBLE_SCHEMA, TABLE_MISMATCH,
        PRIVACY_KEY_MISSING, SOURCE_MISSING or SOURCE_TAKEN.
        """
        check_schema(schema)
        check_quality(quality, schema)
        check_split(split)
        check_cut(cut)
        check_retention(retention, rejects)
        check_source(source)
        if schema.personal:
            # Also where all of it is dropped: what is rejected is kept, encrypted.
            self._keys.newest(f"{name}, which has personal fields,")
        rules = tuple(quality)
        for _ in range(_ATTEMPTS):
            existing = (await self._catalogue.datasets([name])).get(name)
            if source is not None and (existing is None or existing.source != source):
                await self._require_available(name, source)
            dataset = (
                await self._create(name, schema, cut, rejects, rules, split, retention, source)
                if existing is None
                else await self._change(existing, schema, cut, rejects, rules, split, retention, source)
            )
            if dataset is not None:
                # Writers bring a table up to their schema themselves; done here, a mistake in the store's
                # settings is told to whoever applies.
                await asyncio.to_thread(self._tables.ensure, dataset)
                return dataset
        raise Aborted("DATASET_CONFLICT", f"{name} is being changed by others; try again")

    async def _require_available(self, name: str, source: SourceTopic) -> None:
        """Raises where the topic is another dataset's, or not there."""
        for feed in await self._catalogue.feeds():
            if feed.source.topic == source.topic and feed.dataset != name:
                raise FailedPrecondition(
                    "SOURCE_TAKEN",
                    f"the events of {source.topic} are samples of {feed.dataset}, and can be no other "
                    f"dataset's; apply {feed.dataset} without it first",
                    fields=[FieldViolation("source.topic", f"is the topic of {feed.dataset}")],
                )
        if not await self._topic_exists(source.topic):
            raise FailedPrecondition(
                "SOURCE_MISSING",
                f"there is no topic {source.topic}; create it, or correct its name, and apply again",
                fields=[FieldViolation("source.topic", "is no topic of the broker's")],
            )

    async def _create(
        self,
        name: str,
        schema: Schema,
        cut: Cut,
        rejects: Rejects,
        quality: tuple[QualityRule, ...],
        split: Shares | None,
        retention: Retention,
        source: SourceTopic | None,
    ) -> Dataset | None:
        now = self._clock()
        dataset = Dataset(
            name,
            schema,
            cut,
            1,
            now,
            now,
            rejects,
            quality,
            split=split,
            retention=retention,
            source=source,
        )
        # The table first: a dataset whose table cannot be made would take in events and store none.
        await asyncio.to_thread(self._tables.ensure, dataset)
        async with self._catalogue.transaction() as repository:
            return dataset if await repository.insert_dataset(dataset) else None

    async def _change(
        self,
        existing: Dataset,
        schema: Schema,
        cut: Cut,
        rejects: Rejects,
        quality: tuple[QualityRule, ...],
        split: Shares | None,
        retention: Retention,
        source: SourceTopic | None,
    ) -> Dataset | None:
        changed = replace(
            existing,
            schema=schema,
            cut=cut,
            rejects=rejects,
            quality=quality,
            split=split,
            retention=retention,
            source=source,
        )
        if changed == existing:
            return existing
        check_evolution(existing.schema, schema)
        changed = replace(
            changed,
            schema_version=existing.schema_version + (existing.schema != schema),
            update_time=self._clock(),
            values_changed=existing.values_changed
            or changes_values(existing.schema, schema)
            or changes_format(existing.source, source),
        )
        async with self._catalogue.transaction() as repository:
            return changed if await repository.update_dataset(changed, existing) else None

"""Creating a dataset, or changing it in ways that every stored row survives.

A change of the schema that rows, or events of before, would not satisfy takes a declaration: the number of
the version that the schema is to have. Whoever applies an older file by mistake declares a number that is
taken, and of two who declare the same one, the second is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from headrace.errors import Aborted, FailedPrecondition, FieldViolation
from headrace.ingestion.domain.cut import check_cut
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.evolution import (
    changes_values,
    check_convertible,
    check_evolution,
    incompatibilities,
)
from headrace.ingestion.domain.key_ring import NO_KEYS, KeyRing
from headrace.ingestion.domain.quality import QualityRule, check_quality
from headrace.ingestion.domain.rejects import Rejects
from headrace.ingestion.domain.retention import Retention, check_retention
from headrace.ingestion.domain.schema import Cut, Schema, check_schema
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
        schema_version: int = 0,
    ) -> Dataset:
        """Make the dataset be so.

        `schema_version`: what the owner declares the schema to be; 0: nothing. It matters where the schema is
        no safe change of the one before, and where the dataset is new: it begins with that number.
        Raises InvalidArgument INVALID_SCHEMA, INVALID_QUALITY, INVALID_SPLIT, INVALID_CUT,
        INVALID_RETENTION or INVALID_SOURCE, FailedPrecondition INCOMPATIBLE_SCHEMA, SCHEMA_NOT_CONVERTIBLE,
        SCHEMA_VERSION_AHEAD, TABLE_MISMATCH, PRIVACY_KEY_MISSING, SOURCE_MISSING or SOURCE_TAKEN.
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
                await self._create(
                    name, schema, cut, rejects, rules, split, retention, source, schema_version
                )
                if existing is None
                else await self._change(
                    existing, schema, cut, rejects, rules, split, retention, source, schema_version
                )
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
        schema_version: int,
    ) -> Dataset | None:
        now = self._clock()
        dataset = Dataset(
            name,
            schema,
            cut,
            max(schema_version, 1),
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
        schema_version: int,
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
        _check_ahead(existing, schema_version)
        if changed == existing:
            return existing
        await self._check_schema_change(existing, schema, schema_version)
        version = existing.schema_version + (existing.schema != schema)
        takes_declaration = bool(incompatibilities(existing.schema, schema))
        changed = replace(
            changed,
            schema_version=version,
            update_time=self._clock(),
            values_changed=existing.values_changed
            or takes_declaration
            or changes_values(existing.schema, schema)
            or changes_format(existing.source, source),
            declared_version=version if takes_declaration else existing.declared_version,
        )
        async with self._catalogue.transaction() as repository:
            return changed if await repository.update_dataset(changed, existing) else None

    async def _check_schema_change(self, existing: Dataset, schema: Schema, declared: int) -> None:
        """Raises where stored rows, or events of an earlier version, do not go together with the schema."""
        if schema == existing.schema:
            return
        version = existing.schema_version + 1
        if declared != version:
            check_evolution(existing.schema, schema, version)
        # Also of a safe change: a name that is free now may have been another field's.
        check_convertible(schema, await self._catalogue.schema_versions(existing.name))


def _check_ahead(existing: Dataset, declared: int) -> None:
    if declared > existing.schema_version + 1:
        raise FailedPrecondition(
            "SCHEMA_VERSION_AHEAD",
            f"the schema of {existing.name} is version {existing.schema_version}, so that a new one is "
            f"schema_version: {existing.schema_version + 1}",
            fields=[FieldViolation("schema_version", f"is {declared}, and versions come one by one")],
        )

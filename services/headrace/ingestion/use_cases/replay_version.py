"""A version's events read from their topic again, to see whether they still make the same rows.

What makes the answer exact: which events a version holds is taken from its rows (cluster, topic, partition
and offset of each), not judged a second time. Rejected events, duplicates that were dropped, events of other
datasets and those behind the version are passed over for that reason alone, whatever they would be today.
The events that are left are judged by the code that stored them, and the content hash depends neither on the
order of rows nor on columns that came later.

They are judged by the schema by which the version was cut, or by the earlier one that they name. Of a
version that has rows from before a change of the schema, that is not always the one by which these were
judged: float64 keeps digits that float32 rounded away, a default may be another, and an event of before a
version that its owner declared may not be valid at all. Equal hashes prove as much as ever then, and
different ones nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FailedPrecondition
from headrace.ingestion.domain.content_hash import combine, hash_rows
from headrace.ingestion.domain.dataset import Dataset, DatasetVersion, SourcePartition
from headrace.ingestion.domain.key_ring import NO_KEYS, KeyRing
from headrace.ingestion.domain.rejection import Verdict
from headrace.ingestion.domain.schema import Schema
from headrace.ingestion.domain.source_topic import Feed
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.envelopes import Opened, open_envelopes
from headrace.ingestion.use_cases.fetch_claims import FetchClaims
from headrace.ingestion.use_cases.judge_apart import judge_apart
from headrace.ingestion.use_cases.judge_batch import Judge
from headrace.ingestion.use_cases.plain_events import PlainEvents
from headrace.ingestion.use_cases.ports import (
    Catalogue,
    RegisteredSchema,
    SchemaName,
    SchemaRegistry,
    TopicReader,
    VersionRows,
)
from headrace.ingestion.use_cases.read_version import rows_of
from headrace.ingestion.use_cases.schemas import as_cut, schema_versions_of, schemas_of
from headrace.messaging.attributes import read_attributes
from headrace.messaging.record_columns import Records
from headrace.messaging.topics import SAMPLES
from headrace.native import Int64s


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far a replay has come: rows whose events were read and judged valid, and their hash."""

    rows: int
    content_hash: int

    def matches(self, version: DatasetVersion) -> bool:
        """Whether the rows are the version's."""
        return (self.rows, self.content_hash) == (version.row_count, version.content_hash)


class ReplayVersion:
    """The use case. It writes nothing. Of one partition at a time it holds the offsets, 8 bytes a row."""

    def __init__(
        self,
        catalogue: Catalogue,
        rows: VersionRows,
        topic: TopicReader,
        *,
        max_event_bytes: int,
        registry: SchemaRegistry | None,
        claims: FetchClaims,
        keys: KeyRing = NO_KEYS,
    ) -> None:
        self._catalogue = catalogue
        self._rows = rows
        self._topic = topic
        self._max_event_bytes = max_event_bytes
        self._registry = registry
        self._claims = claims
        self._keys = keys
        self._judge = Judge(keys)

    async def __call__(self, version: DatasetVersion) -> AsyncGenerator[Replayed, None]:
        """Replay the version, and tell of each part; the last one is the result.

        Raises FailedPrecondition SOURCE_UNREACHABLE, SOURCE_CHANGED, TOPIC_EXPIRED, CLAIM_GONE, ROWS_GONE,
        ROWS_ERASED or
        PRIVACY_KEY_MISSING; and where the rows are not the version's, after the last part SCHEMA_CHANGED or
        PRIVACY_KEY_CHANGED where that may be why; Unavailable SCHEMA_REGISTRY_UNAVAILABLE or
        STORE_UNAVAILABLE.
        """
        dataset = await require_dataset(self._catalogue, version.dataset)
        dataset = await as_cut(self._catalogue, dataset, version)
        if version.erased_rows:
            raise FailedPrecondition(
                "ROWS_ERASED",
                f"{version.erased_rows} rows of version {version.version} of {version.dataset} were erased, "
                "so that its hash cannot come out again; replay a version that was cut since",
            )
        cluster = await self._topic.cluster()
        replayed = Replayed(0, 0)
        for offset in version.sources:
            with rows_of(version):
                held = await asyncio.to_thread(self._held, version, offset.source)
            if not len(held):
                continue
            if offset.source.cluster != cluster:
                raise FailedPrecondition(
                    "SOURCE_UNREACHABLE",
                    f"version {version.version} of {version.dataset} holds {len(held)} events from "
                    f"{offset.source.cluster}, and the broker is {cluster}; connect to that cluster, or "
                    "export the version instead",
                )
            feed = _feed(dataset, offset.source)
            async for records in self._topic.read(offset.source, int(held[0]), int(held[-1]) + 1):
                found = await asyncio.to_thread(self._open, dataset, cluster, records, feed, held)
                for part in self._claims.parts(found):
                    opened = await self._claims(part, {dataset.name})
                    if opened.refused:
                        _, verdict = opened.refused[0]
                        raise _claim_gone(version, verdict)
                    schemas = await schemas_of(opened, self._registry)
                    earlier = await schema_versions_of(opened, self._catalogue)
                    rows = await asyncio.to_thread(
                        self._rows_of, dataset, offset.source, opened, schemas, earlier, held
                    )
                    names = [field.name for field in dataset.schema.stored_fields]
                    if rows is not None:
                        digest = await asyncio.to_thread(hash_rows, rows, names)
                        replayed = Replayed(
                            replayed.rows + rows.num_rows, combine(replayed.content_hash, digest)
                        )
                yield replayed
        self._require_comparable(dataset, version, replayed)

    def _require_comparable(self, dataset: Dataset, version: DatasetVersion, replayed: Replayed) -> None:
        """Say why the rows may differ, where they do and there is a reason beside the data."""
        if replayed.matches(version):
            return
        # Some of its rows may be older than the schema by which it was cut.
        if dataset.values_changed:
            raise _schema_changed(dataset, version, replayed)
        if len(self._keys.keys) > 1 and dataset.schema.personal:
            raise FailedPrecondition(
                "PRIVACY_KEY_CHANGED",
                f"the events of version {version.version} of {dataset.name} make other rows now; but personal"
                " fields are covered with the newest key, and earlier rows may have been with another one",
            )

    def _held(self, version: DatasetVersion, source: SourcePartition) -> Int64s:
        """The offsets of the version's rows from this partition, rising."""
        here = (
            (pc.field("_cluster") == source.cluster)
            & (pc.field("_topic") == source.topic)
            & (pc.field("_partition") == source.partition)
        )
        batches = self._rows.at(version.dataset, version.table_version, ["_offset"], here)
        parts = [batch.column("_offset").to_numpy() for batch in batches]
        held: Int64s = np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
        return held

    def _open(
        self, dataset: Dataset, cluster: str, records: Records, feed: Feed | None, held: Int64s
    ) -> Opened:
        """The records that are samples of the dataset; of claim checks, those that the version holds."""
        open_events = PlainEvents(cluster, feed).open if feed else open_envelopes
        opened = open_events(records, read_attributes(records), {}, self._max_event_bytes)
        own = [samples for samples in opened.samples if samples.dataset == dataset.name]
        is_held = np.isin(records.offsets, held)
        claimed = [one for one in opened.claimed if one.event.subject == dataset.name and is_held[one.index]]
        return replace(opened, samples=own, refused=(), claimed=claimed)

    def _rows_of(
        self,
        dataset: Dataset,
        source: SourcePartition,
        opened: Opened,
        schemas: Mapping[int, RegisteredSchema] | None,
        earlier: Mapping[SchemaName, Schema],
        held: Int64s,
    ) -> pa.Table | None:
        """The rows that the samples make, of those that the version holds."""
        datasets = {dataset.name: dataset}
        judged = judge_apart(
            source.cluster,
            opened,
            lambda some: self._judge.judge(source.cluster, some, datasets, schemas, earlier),
        )
        rows = judged.rows.get(dataset.name)
        if rows is None:
            return None
        offsets = rows.column("_offset").to_numpy()
        places = np.minimum(np.searchsorted(held, offsets), len(held) - 1)
        return rows.filter(pa.array(held[places] == offsets))


def _feed(dataset: Dataset, source: SourcePartition) -> Feed | None:
    """How a topic's events are read; None: as those of the samples topic."""
    if source.topic == SAMPLES:
        return None
    if dataset.source is None or dataset.source.topic != source.topic:
        raise FailedPrecondition(
            "SOURCE_CHANGED",
            f"the version holds events of {source.topic}, which {dataset.name} does not take any more, and "
            "nothing else says what their values are; apply it with that topic again, or export the version",
        )
    return Feed(dataset.name, dataset.source)


def _claim_gone(version: DatasetVersion, verdict: Verdict) -> FailedPrecondition:
    return FailedPrecondition(
        "CLAIM_GONE",
        f"a payload that an event of version {version.version} of {version.dataset} claims is not there as "
        f"it was: {verdict.message}; export the version instead",
    )


def _schema_changed(dataset: Dataset, version: DatasetVersion, replayed: Replayed) -> FailedPrecondition:
    return FailedPrecondition(
        "SCHEMA_CHANGED",
        f"{replayed.rows} of {version.row_count} events of version {version.version} of {dataset.name} make "
        "rows by the schema by which it was cut, and these differ; but the schema has changed since the "
        "first ones were stored: float64 in place of float32, another default or a newly declared version "
        "makes other rows of the same events. Export the version to have its rows as they were stored",
    )

"""Datasets, their commits and their versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from headrace.ingestion.domain.content_hash import combine
from headrace.ingestion.domain.quality import Finding, QualityRule, VersionVerdict
from headrace.ingestion.domain.rejects import Rejects
from headrace.ingestion.domain.retention import Retention
from headrace.ingestion.domain.schema import Cut, Schema
from headrace.ingestion.domain.source_topic import SourceTopic
from headrace.ingestion.domain.split_counts import SplitCounts
from headrace.splits import Shares


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as its owner declared it. `schema_version` grows by one with each schema change.

    `values_changed` says whether one of them lets events of stored rows make other values. `split` is how
    versions' rows are counted; None: they are not. `source`: a topic whose events are its samples, beside
    those of the samples topic that name it.
    """

    name: str
    schema: Schema
    cut: Cut
    schema_version: int
    create_time: datetime
    update_time: datetime
    rejects: Rejects = field(default_factory=Rejects)
    quality: tuple[QualityRule, ...] = ()
    values_changed: bool = False
    split: Shares | None = None
    retention: Retention = field(default_factory=Retention)
    source: SourceTopic | None = None
    declared_version: int = 0
    """The last version of the schema that took a declaration: what became a row by an earlier one may be none
    by it. 0: there is none."""


@dataclass(frozen=True, slots=True, order=True)
class SourcePartition:
    """A partition of a topic in a cluster: offsets mean nothing without all three."""

    cluster: str
    topic: str
    partition: int

    def app_id(self, dataset: str) -> str:
        """The application id under which the dataset's table remembers how far it holds this source."""
        return f"{self.cluster}/{self.topic}/{self.partition}/{dataset}"


@dataclass(frozen=True, slots=True)
class SourceOffset:
    """Every event of `source` before `next_offset` is accounted for."""

    source: SourcePartition
    next_offset: int


def furthest(*groups: Iterable[SourceOffset]) -> tuple[SourceOffset, ...]:
    """For each source the largest offset, sorted by source."""
    best: dict[SourcePartition, int] = {}
    for group in groups:
        for offset in group:
            best[offset.source] = max(offset.next_offset, best.get(offset.source, 0))
    return tuple(SourceOffset(source, best[source]) for source in sorted(best))


@dataclass(frozen=True, slots=True)
class TableCommit:
    """What one commit added to a dataset's table, as the commit itself says, or how many rows it took out."""

    table_version: int
    rows: int
    content_hash: int
    sources: tuple[SourceOffset, ...]
    traceparent: str
    commit_time: datetime
    erased: int = 0


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A replayable state of a dataset: `table_version` of its table, exactly.

    Only tags and pin ever change, unless rows are erased: `row_count` and `content_hash` are as it was cut,
    and `erased_rows` of them are not there any more. `verdict` is None where it was cut before versions were
    judged. Since `expire_time` nobody can have its rows any more.
    """

    dataset: str
    version: int
    table_version: int
    schema_version: int
    row_count: int
    content_hash: int
    sources: tuple[SourceOffset, ...]
    create_time: datetime
    traceparent: str
    verdict: VersionVerdict | None = None
    findings: tuple[Finding, ...] = ()
    tags: tuple[str, ...] = ()
    pinned: bool = False
    split_counts: SplitCounts | None = None
    erased_rows: int = 0
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Uncut:
    """What a table holds beyond a dataset's last version, up to `table_version`."""

    table_version: int
    rows: int = 0
    content_hash: int = 0
    sources: tuple[SourceOffset, ...] = ()
    traceparent: str = ""
    first_commit_time: datetime | None = None
    erased: int = 0
    """Rows that are not there any more, of the last version's or of `rows`."""

    def advance(self, commits: Sequence[TableCommit], table_version: int) -> Uncut:
        """The same with later commits, given oldest first."""
        filled = [commit for commit in commits if commit.rows]
        first = self.first_commit_time or (filled[0].commit_time if filled else None)
        traceparents = [self.traceparent, *(commit.traceparent for commit in filled)]
        return Uncut(
            table_version=table_version,
            rows=self.rows + sum(commit.rows for commit in filled),
            content_hash=combine(self.content_hash, *(commit.content_hash for commit in commits)),
            sources=furthest(self.sources, *(commit.sources for commit in commits)),
            traceparent=next((text for text in traceparents if text), ""),
            first_commit_time=first,
            erased=self.erased + sum(commit.erased for commit in commits),
        )


def next_version(
    dataset: Dataset, last: DatasetVersion | None, uncut: Uncut, now: datetime
) -> DatasetVersion:
    """The version that holds everything up to `uncut.table_version`."""
    return DatasetVersion(
        dataset=dataset.name,
        version=last.version + 1 if last else 1,
        table_version=uncut.table_version,
        schema_version=dataset.schema_version,
        row_count=(last.row_count if last else 0) + uncut.rows - uncut.erased,
        content_hash=combine(last.content_hash if last else 0, uncut.content_hash),
        sources=furthest(last.sources if last else (), uncut.sources),
        create_time=now,
        traceparent=uncut.traceparent,
    )

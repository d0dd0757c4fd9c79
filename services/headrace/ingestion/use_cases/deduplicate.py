"""Events that their producers send again, left out of what is stored.

What was stored of late is known from the table itself: it is read when a partition's first rows for a dataset
come, and kept up from there on. An event of which it is not known whether it was stored is never taken for a
repetition: events are remembered after their commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.ingestion.domain.dataset import Dataset, SourcePartition
from headrace.ingestion.domain.recent_events import RecentEvents, name_hashes
from headrace.ingestion.use_cases.ports import SampleTables, Span
from headrace.native import Int64s, UInt64s


@dataclass(frozen=True, slots=True, eq=False)
class Fresh:
    """Rows without repetitions; how many those were; and what there is to remember once rows are stored."""

    rows: pa.Table
    repeated: int
    names: Sequence[tuple[RecentEvents, UInt64s, Int64s]] = ()

    def remember(self) -> None:
        """The rows are stored."""
        for recent, hashes, offsets in self.names:
            recent.add(hashes, offsets)


class Deduplicator:
    """Knows the recent events of the partitions that are read here. One batch at a time."""

    def __init__(self, tables: SampleTables, *, reach: int) -> None:
        """`reach`: how many offsets of a partition lie at most between an event and its repetition."""
        self._tables = tables
        self._reach = reach
        self._recent: dict[tuple[str, SourcePartition], RecentEvents] = {}

    def forget(self) -> None:
        """Others may read the partitions from here on."""
        self._recent.clear()

    def fresh(self, dataset: Dataset, rows: pa.Table, spans: Sequence[Span]) -> Fresh:
        """The rows without repetitions. Blocks; raises whatever the store raises."""
        if not self._reach:
            return Fresh(rows, 0)
        self._learn(dataset, spans)
        hashes = name_hashes(rows.column("_event_source"), rows.column("_event_id"))
        repeated = np.zeros(len(hashes), np.bool_)
        names = []
        for span, indexes, offsets in _by_span(rows, spans):
            recent = self._recent[dataset.name, span.source]
            some = recent.repeated(hashes[indexes], offsets)
            repeated[indexes] = some
            names.append((recent, hashes[indexes[~some]], offsets[~some]))
        self._forget_idle(spans)
        count = int(repeated.sum())
        return Fresh(rows.filter(pa.array(~repeated)) if count else rows, count, names)

    def _learn(self, dataset: Dataset, spans: Sequence[Span]) -> None:
        """Read the table where it is not known what came from a partition of late."""
        unknown = [
            Span(span.source, max(0, span.start - self._reach), span.start)
            for span in spans
            if (dataset.name, span.source) not in self._recent
        ]
        behind = [span for span in unknown if span.start < span.end]
        learned = {span.source: RecentEvents(self._reach) for span in unknown}
        if behind:
            stored = self._tables.stored_events(dataset, behind)
            hashes = name_hashes(stored.column("_event_source"), stored.column("_event_id"))
            for span, indexes, offsets in _by_span(stored, behind):
                learned[span.source].add(hashes[indexes], offsets)
        for source, recent in learned.items():
            self._recent[dataset.name, source] = recent

    def _forget_idle(self, spans: Sequence[Span]) -> None:
        """Of datasets that got no row for so long, no repetition would be found any more."""
        oldest = {span.source: span.start - self._reach for span in spans}
        for (_, source), recent in self._recent.items():
            if source in oldest:
                recent.forget_before(oldest[source])


def _by_span(rows: pa.Table, spans: Sequence[Span]) -> Iterator[tuple[Span, Int64s, Int64s]]:
    """Indexes and offsets of the rows from each span, in the order of the offsets."""
    partitions, offsets = rows.column("_partition").to_numpy(), rows.column("_offset").to_numpy()
    for span in spans:
        indexes = np.flatnonzero(partitions == span.source.partition)
        if (np.diff(offsets[indexes]) < 0).any():
            indexes = indexes[np.argsort(offsets[indexes], kind="stable")]
        yield span, indexes, offsets[indexes]

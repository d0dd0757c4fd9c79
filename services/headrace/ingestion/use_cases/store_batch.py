"""A batch of events into tables and the list of rejected events, each event exactly once.

Order matters. Rejections first, then rows, then (by the caller) the offsets in Kafka. A crash anywhere
leads to the same records being read again, and then:

- an event that was rejected is known to be, and is not judged again (a schema that was widened since would
  make a row of it);
- a row that was stored stands below its table's transaction version, and is left out;
- everything else is judged as if for the first time.

Were rows stored first, a crash before the rejections would leave events that are below the table's
transaction version and yet in neither place; valid by a schema that was widened meanwhile, they would be
lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.use_cases.envelopes import open_envelopes
from headrace.ingestion.use_cases.judge_batch import Batch, Judge, Judged
from headrace.ingestion.use_cases.ports import Append, Catalogue, SampleTables, Span
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.telemetry import names, tracing


@dataclass(frozen=True, slots=True)
class Stored:
    """What a batch added: rows by dataset name, and the rejections that are new."""

    rows: Mapping[str, int]
    rejections: Sequence[Rejection]


class StoreBatch:
    """The use case. Calling it again with the same records adds nothing."""

    def __init__(
        self, catalogue: Catalogue, tables: SampleTables, *, clock: Clock, max_event_bytes: int
    ) -> None:
        self._catalogue = catalogue
        self._tables = tables
        self._clock = clock
        self._max_event_bytes = max_event_bytes
        self._judge = Judge()

    async def __call__(self, batch: Batch) -> Stored:
        """Store the batch. Raises whatever the database or the store raises: call again."""
        judged, datasets = await self._judged(batch)
        rejections = await self._reject(judged.rejections)
        rows = await self._append(batch.spans, judged, datasets)
        fault_point("ingestion.after-delta-commit")
        return Stored(rows, rejections)

    async def _judged(self, batch: Batch) -> tuple[Judged, Mapping[str, Dataset]]:
        rejected = await self._catalogue.rejected_places(batch.spans)
        opened = await asyncio.to_thread(
            open_envelopes, batch.records, batch.attributes, rejected, self._max_event_bytes
        )
        # Read for each batch: a sample that is sent after ApplyDataset answered meets what was applied,
        # whichever instance answered and whichever reads the sample.
        datasets = await self._catalogue.datasets(opened.datasets())
        return await asyncio.to_thread(self._judge.judge, batch.cluster, opened, datasets), datasets

    async def _reject(self, rejections: Sequence[Rejection]) -> Sequence[Rejection]:
        if not rejections:
            return ()
        now = self._clock()
        async with self._catalogue.transaction() as repository:
            new = await repository.insert_rejected(rejections, now)
            if new:
                await repository.publish_rejected(new, now)
        fault_point("ingestion.after-reject-commit")
        return new

    async def _append(
        self, spans: Sequence[Span], judged: Judged, datasets: Mapping[str, Dataset]
    ) -> Mapping[str, int]:
        stored = {}
        for name, rows in judged.rows.items():
            append = Append(datasets[name], rows, spans)
            with tracing.span(
                names.SPAN_COMMIT_TABLE,
                attributes={names.DATASET: name, names.ROWS: rows.num_rows},
            ) as span:
                stored[name] = await asyncio.to_thread(self._tables.append, append)
                span.set_attribute(names.ROWS_STORED, stored[name])
        return stored

"""Files onto the samples topic, each row once.

A row's event id is made of the file's content and the row's number, so that an import that is run again sends
the same events, which ingestion knows from those that it stored lately. How far a file got is noted, too: an
import that was cut off, however long ago, goes on where it was. Of the rows that were in flight then some are
sent again, with the same ids. A broker that is another one now may have lost what it had taken and nobody had
stored. Whether it did is for people to find out: rows that are stored and sent to another broker are stored
twice, since repetitions are known within one cluster only. So such an import goes on too, and says it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import dropwhile, islice
from pathlib import Path
from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.client.client import BATCH_BYTES, SAMPLE_TYPE, HeadraceClient
from headrace.client.data_files import DataFile, FileContent, Row, inspect, read_rows
from headrace.messaging.events import JSON, Event

SOURCE: Final = "headrace/import"
BATCH: Final = 5000
# Of SHA-256, enough that no two files share it.
_ID_DIGITS: Final = 32


@dataclass(frozen=True, slots=True)
class Imported:
    """How many of a file's rows were published, and how many had been before."""

    published: int
    before: int


@dataclass(frozen=True, slots=True)
class Noted:
    """The number of the last row that was published, and to which broker, by its cluster id."""

    last_row: int
    cluster: str


class ImportLog:
    """How far files got, one small file for each in a folder.

    Each is replaced as a whole, after the broker has the rows: a row that is noted is published.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def noted(self, dataset: ingestion.Dataset, content: FileContent) -> Noted:
        """How far a file got; row 0 if nothing of it was published, or if it cannot be told."""
        try:
            noted = json.loads(self._file(dataset, content).read_text())
            return Noted(int(noted["last_row"]), str(noted.get("cluster", "")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Noted(0, "")

    def note(self, dataset: ingestion.Dataset, content: FileContent, name: str, noted: Noted) -> None:
        """Remember that rows up to this one are published."""
        file = self._file(dataset, content)
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({"file": name, "last_row": noted.last_row, "cluster": noted.cluster}))
        os.replace(fresh, file)  # noqa: PTH105 - atomic

    def _file(self, dataset: ingestion.Dataset, content: FileContent) -> Path:
        # A dataset that was made anew has nothing of what the one before it had.
        created = dataset.create_time.ToMilliseconds()
        return self._folder / f"{dataset.name}-{created}-{content.digest[:_ID_DIGITS]}.json"


async def import_file(
    client: HeadraceClient,
    dataset: ingestion.Dataset,
    file: DataFile,
    log: ImportLog,
    *,
    again: bool,
    traceparent: str,
    opened: Callable[[int], None],
    published: Callable[[int], None],
    other_broker: Callable[[int], None],
) -> Imported:
    """Publish a file's rows, from behind the last one that a broker has, or `again` from the first.

    `opened` is told how many rows there are, about, and `published` how many more are. `other_broker` is
    told how many rows another broker than this one had been sent. Rows that are too large for Kafka are claim
    checks. Raises Unavailable BROKER_UNAVAILABLE or STORE_UNAVAILABLE, InvalidArgument UNREADABLE_FILE or
    OVERSIZE_EVENT; rows before the fault are published.
    """
    async with file.on_disk() as path:
        content = await asyncio.to_thread(inspect, path)
        opened(content.rows)
        cluster = await client.cluster_id()
        noted = Noted(0, "") if again else log.noted(dataset, content)
        if noted.last_row and noted.cluster != cluster:
            other_broker(noted.last_row)
        rows = read_rows(path, dataset.schema)
        count = before = 0
        async for batch in _batches(rows):
            fresh = list(dropwhile(lambda row: row.number <= noted.last_row, batch))
            before += len(batch) - len(fresh)
            if fresh:
                events = [(row.key, _event(dataset.name, content, row, traceparent)) for row in fresh]
                await client.publish_samples(events)
                reached = Noted(fresh[-1].number, cluster)
                await asyncio.to_thread(log.note, dataset, content, file.name, reached)
                count += len(fresh)
            published(len(batch))
        return Imported(count, before)


async def _batches(rows: Iterator[Row]) -> AsyncIterator[list[Row]]:
    while batch := await asyncio.to_thread(_batch, rows):
        yield batch


def _batch(rows: Iterator[Row]) -> list[Row]:
    """The next rows, as many as are held at once."""
    batch, size = [], 0
    for row in islice(rows, BATCH):
        batch.append(row)
        size += len(row.json)
        if size >= BATCH_BYTES:
            break
    return batch


def _event(dataset: str, content: FileContent, row: Row, traceparent: str) -> Event:
    return Event(
        id=f"{content.digest[:_ID_DIGITS]}-{row.number}",
        source=SOURCE,
        type=SAMPLE_TYPE,
        subject=dataset,
        time=datetime.now(UTC),
        data=row.json,
        content_type=JSON,
        traceparent=traceparent,
    )

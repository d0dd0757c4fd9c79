"""A version's rows, streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa

from headrace.errors import FailedPrecondition
from headrace.ingestion.domain.dataset import DatasetVersion
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.ports import Catalogue, VersionRows

_END: Final = object()


class ReadVersion:
    """The use case."""

    def __init__(self, catalogue: Catalogue, rows: VersionRows) -> None:
        self._catalogue = catalogue
        self._rows = rows

    async def __call__(self, version: DatasetVersion) -> AsyncIterator[pa.RecordBatch]:
        """The version's rows by the dataset's own columns. Raises FailedPrecondition ROWS_GONE."""
        dataset = await require_dataset(self._catalogue, version.dataset)
        names = [field.name for field in dataset.schema.fields]
        with rows_of(version):
            async for batch in in_thread(self._rows.at(version.dataset, version.table_version, names)):
                yield batch


@contextmanager
def rows_of(version: DatasetVersion) -> Iterator[None]:
    """Say ROWS_GONE where one of the version's files is not there."""
    try:
        yield
    except FileNotFoundError as error:
        raise FailedPrecondition(
            "ROWS_GONE",
            f"the files of version {version.version} of {version.dataset} were removed; "
            "pin a version (headrace dataset pin) to keep it",
        ) from error


async def in_thread(batches: Iterator[pa.RecordBatch]) -> AsyncIterator[pa.RecordBatch]:
    """The batches, each fetched in a thread."""
    while (batch := await asyncio.to_thread(next, batches, _END)) is not _END:
        yield batch

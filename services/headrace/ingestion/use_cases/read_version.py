"""A version's rows, streamed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

import pyarrow as pa

from headrace.errors import FailedPrecondition
from headrace.ingestion.domain.dataset import Dataset, DatasetVersion
from headrace.ingestion.domain.key_ring import NO_KEYS, KeyRing
from headrace.ingestion.domain.schema import Treatment
from headrace.ingestion.domain.treatment import revealed
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.ports import Catalogue, VersionRows
from headrace.ingestion.use_cases.schemas import as_cut

logger = logging.getLogger(__name__)

_END: Final = object()


class ReadVersion:
    """The use case."""

    def __init__(self, catalogue: Catalogue, rows: VersionRows, keys: KeyRing = NO_KEYS) -> None:
        self._catalogue = catalogue
        self._rows = rows
        self._keys = keys

    async def revealed(self, version: DatasetVersion) -> AsyncGenerator[pa.RecordBatch, None]:
        """The same as `__call__`, with what is encrypted as it came.

        Raises FailedPrecondition ROWS_GONE or PRIVACY_KEY_MISSING, DataLoss SEAL_BROKEN.
        """
        dataset = await require_dataset(self._catalogue, version.dataset)
        logger.info("revealing version %d of %s", version.version, dataset.name)
        async with aclosing(self(version)) as batches:
            async for batch in batches:
                yield await asyncio.to_thread(self._revealed, dataset, batch)

    def _revealed(self, dataset: Dataset, batch: pa.RecordBatch) -> pa.RecordBatch:
        for field in dataset.schema.personal:
            if field.treated is Treatment.ENCRYPT and field.name in batch.schema.names:
                column = revealed(dataset.name, field, batch.column(field.name), self._keys)
                batch = batch.set_column(batch.schema.get_field_index(field.name), field.name, column)
        return batch

    async def __call__(self, version: DatasetVersion) -> AsyncGenerator[pa.RecordBatch, None]:
        """The version's rows by the columns of its own schema. Raises FailedPrecondition ROWS_GONE.

        Without those that are dropped since: what became personal was stored in clear before.
        """
        dataset = await require_dataset(self._catalogue, version.dataset)
        cut = await as_cut(self._catalogue, dataset, version)
        dropped = {field.name for field in dataset.schema.personal if field.is_dropped}
        names = [field.name for field in cut.schema.stored_fields if field.name not in dropped]
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


async def in_thread(batches: Iterator[pa.RecordBatch]) -> AsyncGenerator[pa.RecordBatch, None]:
    """The batches, each fetched in a thread."""
    while (batch := await asyncio.to_thread(next, batches, _END)) is not _END:
        yield batch

"""A dataset version's rows into a file."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from headrace.api.ingestion.v1 import versions_pb2 as versions
from headrace.errors import AlreadyExists, InvalidArgument

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.csv

    from headrace.client.client import HeadraceClient

Progress = Callable[[int, int], None]
"""Hears how many rows are written, and of how many."""


class _Writer(Protocol):
    """Takes batches of one schema."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def write_batch(self, batch: pa.RecordBatch) -> None: ...


async def read_version(
    client: HeadraceClient, dataset: str, version: versions.VersionName, *, reveal: bool = False
) -> AsyncIterator[tuple[pa.RecordBatch, int]]:
    """The version's rows in batches, in any order, each with the number of rows in all.

    `reveal`: what is stored encrypted as it came.
    """
    import pyarrow as pa

    request = versions.ReadVersionRequest(dataset=dataset, version=version, reveal=reveal)
    async for answer in client.dataset_versions.ReadVersion(request):
        for batch in pa.ipc.open_stream(answer.arrow_stream):
            yield batch, answer.row_count


async def export_version(
    client: HeadraceClient,
    dataset: str,
    version: versions.VersionName,
    path: Path,
    *,
    overwrite: bool = False,
    reveal: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the version's rows to a .parquet, .csv or .jsonl file, and return their number.

    The file is there whole or not at all: rows go to NAME.part beside it, which is renamed at the end.
    Raises InvalidArgument UNKNOWN_FORMAT or FILE_NOT_WRITABLE, AlreadyExists FILE_EXISTS, and what
    `ReadVersion` raises.
    """
    open_writer = _WRITERS.get(path.suffix)
    if open_writer is None:
        raise InvalidArgument(
            "UNKNOWN_FORMAT", f"{path} ends in none of {', '.join(_WRITERS)}, which say what is written"
        )
    if not overwrite and await asyncio.to_thread(path.exists):
        raise AlreadyExists("FILE_EXISTS", f"{path} is there already; use force (--force) to replace it")
    part = path.with_name(f"{path.name}.part")
    try:
        written = await _write(
            read_version(client, dataset, version, reveal=reveal), open_writer, part, progress
        )
        await asyncio.to_thread(part.replace, path)
    except OSError as error:
        raise InvalidArgument("FILE_NOT_WRITABLE", f"{path} cannot be written: {error}") from error
    finally:
        # It has its name by now, or it is not whole, or it never was.
        with suppress(OSError):
            await asyncio.to_thread(part.unlink)
    return written


async def _write(
    batches: AsyncIterator[tuple[pa.RecordBatch, int]],
    open_writer: Callable[[Path, pa.Schema], _Writer],
    part: Path,
    progress: Progress | None,
) -> int:
    written = 0
    writer: _Writer | None = None
    with ExitStack() as stack:
        async for batch, total in batches:
            if writer is None:
                writer = stack.enter_context(open_writer(part, batch.schema))
            await asyncio.to_thread(writer.write_batch, batch)
            written += batch.num_rows
            if progress:
                progress(written, total)
    return written


def _parquet(path: Path, schema: pa.Schema) -> _Writer:
    import pyarrow.parquet as pq

    writer: _Writer = pq.ParquetWriter(path, schema)
    return writer


def _csv(path: Path, schema: pa.Schema) -> _Writer:
    from pyarrow import csv

    return _CsvWriter(csv.CSVWriter(path, _in_text(schema)))


def _in_text(schema: pa.Schema) -> pa.Schema:
    """The schema with texts in the place of bytes, which CSV cannot have."""
    import pyarrow as pa

    return pa.schema(
        [field.with_type(pa.string()) if pa.types.is_binary(field.type) else field for field in schema]
    )


class _CsvWriter:
    """CSV with tensors in base64."""

    def __init__(self, writer: pyarrow.csv.CSVWriter) -> None:
        self._writer = writer

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        columns = [
            pa.array([None if value is None else _base64(value) for value in column.to_pylist()], pa.string())
            if pa.types.is_binary(column.type)
            else column
            for column in batch.columns
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_in_text(batch.schema)))


def _base64(value: object) -> str:
    """A tensor's bytes as text."""
    assert isinstance(value, bytes)
    return base64.b64encode(value).decode()


class _JsonLines:
    """One JSON object a line; a field without a value is null."""

    def __init__(self, path: Path, _schema: pa.Schema) -> None:
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        import orjson

        self._file.writelines(
            orjson.dumps(row, default=_base64, option=orjson.OPT_APPEND_NEWLINE) for row in batch.to_pylist()
        )


_WRITERS: Final[dict[str, Callable[[Path, pa.Schema], _Writer]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _JsonLines,
}

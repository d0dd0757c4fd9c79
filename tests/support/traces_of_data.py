"""Where a value is still to be found: files, decoded where they are compressed, and SQL tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg
import pyarrow.parquet as pq


def files_with(folder: Path, values: Sequence[str]) -> list[Path]:
    """The files below a folder that hold one of the values; Parquet is decoded. Blocks."""
    return [path for path in folder.rglob("*") if path.is_file() and any(_texts_have(path, values))]


def _texts_have(path: Path, values: Sequence[str]) -> Iterator[bool]:
    content = path.read_bytes()
    yield any(value.encode() in content for value in values)
    if path.suffix == ".parquet":
        rows = str(pq.read_table(path, partitioning=None).to_pylist())
        yield any(value in rows for value in values)


async def sql_tables_with(dsn: str, schema: str, values: Sequence[str]) -> list[str]:
    """The tables of a schema that hold one of the values, as text or as bytes."""
    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetch("select tablename from pg_tables where schemaname = $1", schema)
        tables = []
        for (table,) in found:
            rows = await connection.fetch(f'select t::text from "{schema}"."{table}" t')
            text = "\n".join(row[0] for row in rows)
            if any(value in text or value.encode().hex() in text for value in values):
                tables.append(table)
        return tables
    finally:
        await connection.close()

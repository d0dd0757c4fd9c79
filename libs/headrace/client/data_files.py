"""Rows of CSV, Parquet and JSON lines as samples, from local files and from S3.

Files with columns have no way to leave a value out: an empty cell, a null and a NaN are missing values there,
whose place a default takes. Cells of a CSV file are read as the schema's types where they can be, and sent as
they are where not, for the validation to say. A JSON line is sent as it is.
"""

from __future__ import annotations

import base64
import csv
import glob
import gzip
import hashlib
import io
import math
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import orjson

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from headrace.objects import ObjectStore

CSV: Final = (".csv",)
PARQUET: Final = (".parquet",)
JSON_LINES: Final = (".jsonl", ".ndjson", ".json")
_GZIP: Final = ".gz"
_S3: Final = "s3"
_WILDCARDS: Final = "*?["
_READ_BYTES: Final = 1 << 20
_BATCH_ROWS: Final = 4096
# Of Parquet's rows, fewer where they are large.
_BATCH_BYTES: Final = 32 << 20
# csv's own limit is 128 KiB a cell, less than an event may have.
_CELL_CHARACTERS: Final = 16 << 20

_INTEGERS: Final = frozenset(
    (
        ingestion.FIELD_TYPE_INT8,
        ingestion.FIELD_TYPE_INT16,
        ingestion.FIELD_TYPE_INT32,
        ingestion.FIELD_TYPE_INT64,
    )
)
_FLOATS: Final = frozenset((ingestion.FIELD_TYPE_FLOAT32, ingestion.FIELD_TYPE_FLOAT64))


@dataclass(frozen=True, slots=True)
class Row:
    """A sample from a file: its number, from 1, its JSON, and the text of its key ("" where it has none)."""

    number: int
    json: bytes
    key: str


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file is, whatever its name and place: SHA-256 of its bytes, and how many rows it has, about."""

    digest: str
    rows: int


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file by the name that its user knows; `store` and `path` where it is an object."""

    name: str
    store: ObjectStore | None = None
    path: str = ""

    @asynccontextmanager
    async def on_disk(self) -> AsyncIterator[Path]:
        """The file on this machine; an object is fetched, and gone at the end."""
        if self.store is None:
            yield Path(self.name)
            return
        with tempfile.NamedTemporaryFile(suffix="".join(Path(self.path).suffixes[-2:])) as copy:
            async for chunk in self.store.stream(self.path):
                copy.write(chunk)
            copy.flush()
            yield Path(copy.name)


async def find_files(patterns: Sequence[str]) -> list[DataFile]:
    """The files that the patterns name (paths and s3://BUCKET/KEY, with *, ? and [...]), each once, sorted.

    Raises NotFound FILE_NOT_FOUND for a pattern that names none, InvalidArgument UNKNOWN_FILE_FORMAT.
    """
    found: dict[str, DataFile] = {}
    for pattern in patterns:
        remote = urlsplit(pattern).scheme == _S3
        files = await _objects(pattern) if remote else _local_files(pattern)
        if not files:
            raise NotFound("FILE_NOT_FOUND", f"there is no file {pattern}")
        found |= {file.name: file for file in files}
    for name in found:
        form_of(Path(name))
    return [found[name] for name in sorted(found)]


def _local_files(pattern: str) -> list[DataFile]:
    # A file may have brackets in its name.
    names = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207
    return [DataFile(name) for name in names if Path(name).is_file()]


async def _objects(pattern: str) -> list[DataFile]:
    from headrace.objects import ObjectStore

    parts = urlsplit(pattern)
    wanted = pattern.removeprefix(f"{_S3}://{parts.netloc}/")
    store = ObjectStore.from_uri(f"{_S3}://{parts.netloc}")
    first = min((wanted.find(mark) for mark in _WILDCARDS if mark in wanted), default=-1)
    if first < 0:
        paths = [wanted] if await store.exists(wanted) else []
    else:
        folder = wanted[: wanted.rfind("/", 0, first) + 1]
        paths = [path for path in await store.list(folder) if _matches(path, wanted)]
    return [DataFile(store.uri(path), store, path) for path in paths]


def _matches(path: str, pattern: str) -> bool:
    # As with files, only ** goes into folders.
    deep = "**" in pattern or path.count("/") == pattern.count("/")
    return deep and fnmatchcase(path, pattern)


def inspect(path: Path) -> FileContent:
    """Read the file once. A JSON or CSV file's rows are its lines, of which some may be empty."""
    with explained(path):
        with path.open("rb") as raw:
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
        return FileContent(digest, _row_count(path))


def _row_count(path: Path) -> int:
    form = form_of(path)
    if form in PARQUET:
        import pyarrow.parquet as pq

        rows: int = pq.read_metadata(path).num_rows
        return rows
    lines, last = 0, b""
    with opened(path) as content:
        while chunk := content.read(_READ_BYTES):
            lines += chunk.count(b"\n")
            last = chunk
    return max(0, lines + (last[-1:] not in (b"", b"\n")) - (form in CSV))


def read_rows(path: Path, schema: ingestion.Schema) -> Iterator[Row]:
    """The file's rows as samples of that schema, lazily.

    Raises InvalidArgument UNREADABLE_FILE where the file is not what its name says.
    """
    form = form_of(path)
    with explained(path):
        if form in JSON_LINES:
            yield from _json_rows(path, schema.key)
        elif form in CSV:
            yield from _csv_rows(path, schema)
        else:
            yield from _parquet_rows(path, schema)


def form_of(path: Path) -> str:
    """The ending that says what a file is. Raises InvalidArgument UNKNOWN_FILE_FORMAT."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    form = next((suffix for suffix in reversed(suffixes) if suffix != _GZIP), "")
    packed = suffixes[-1:] == [_GZIP]
    if form in (*CSV, *JSON_LINES) or (form in PARQUET and not packed):
        return form
    raise InvalidArgument(
        "UNKNOWN_FILE_FORMAT",
        f"{path}: a name must end in {', '.join((*CSV, *PARQUET, *JSON_LINES))}; text may be in {_GZIP}",
    )


def opened(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """The file's bytes, unpacked."""
    return gzip.open(path) if path.suffix.lower() == _GZIP else path.open("rb")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what is wrong with a file's content as InvalidArgument UNREADABLE_FILE."""
    try:
        yield
    except (ValueError, EOFError, OSError, csv.Error) as error:
        # Arrow's errors are ValueErrors; gzip's are OSErrors, and zlib's EOFErrors.
        raise InvalidArgument("UNREADABLE_FILE", f"{path} cannot be read: {error}") from error


def _json_rows(path: Path, key: str) -> Iterator[Row]:
    with opened(path) as content:
        for number, line in enumerate(content, 1):
            text = line.strip()
            if text:
                yield Row(number, text, _key_of(text, key))


def _key_of(text: bytes, key: str) -> str:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        # Sent all the same: it is for the validation to say.
        return ""
    value = fields.get(key) if isinstance(fields, dict) else None
    return value if isinstance(value, str) else ""


def _csv_rows(path: Path, schema: ingestion.Schema) -> Iterator[Row]:
    csv.field_size_limit(_CELL_CHARACTERS)
    readers = {
        field.name: _cell_reader(field.type) for field in (*schema.features, schema.label, *schema.attributes)
    }
    with opened(path) as content:
        cells = csv.reader(io.TextIOWrapper(content, encoding="utf-8-sig", newline=""), strict=True)
        names = next(cells, None)
        if names is None:
            raise ValueError("it is empty; the first line must name the columns")
        if len(set(names)) != len(names):
            raise ValueError("the first line names a column twice")
        # Blank lines have no cells.
        for number, row in enumerate(filter(None, cells), 1):
            # A cell beyond the last column has no name, so that it is a field of no dataset.
            extra = [f"column {index + 1}" for index in range(len(names), len(row))]
            sample = {
                name: readers.get(name, _as_it_is)(text)
                for name, text in zip([*names, *extra], row, strict=False)
                if text
            }
            yield Row(number, orjson.dumps(sample), str(sample.get(schema.key, "")))


def _as_it_is(text: str) -> object:
    return text


def _cell_reader(field_type: ingestion.FieldType.ValueType) -> Callable[[str], object]:
    """What a cell is in JSON: the field's type if it can be, and else the text."""
    if field_type == ingestion.FIELD_TYPE_BOOL:
        return lambda text: {"true": True, "false": False}.get(text.lower(), text)
    if field_type in _INTEGERS:
        return lambda text: _number(text, integer=True)
    if field_type in _FLOATS:
        return lambda text: _number(text, integer=False)
    return _as_it_is


def _number(text: str, *, integer: bool) -> object:
    # Python reads 1_000, too.
    if "_" in text:
        return text
    try:
        if integer and text.lstrip("+-").isdigit():
            number: float = int(text)
            # Beyond 64 bits there is no JSON integer for it.
            return number if -(1 << 63) <= number < 1 << 64 else text
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _parquet_rows(path: Path, schema: ingestion.Schema) -> Iterator[Row]:
    import pyarrow.parquet as pq

    key = schema.key
    tensors = {
        field.name
        for field in (*schema.features, *schema.attributes)
        if field.type == ingestion.FIELD_TYPE_TENSOR
    }

    number = 0
    with pq.ParquetFile(path) as file:
        row_bytes = sum(
            file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)
        ) // max(1, file.metadata.num_rows)
        for batch in file.iter_batches(max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))):
            for values in batch.to_pylist():
                number += 1
                sample = {
                    name: _base64(value) if name in tensors else _plain(value)
                    for name, value in values.items()
                    if not _is_missing(value)
                }
                # Keys are text; files often have them as numbers.
                if isinstance(sample.get(key), int):
                    sample[key] = str(sample[key])
                yield Row(number, orjson.dumps(sample), str(sample.get(key, "")))


def _base64(value: object) -> object:
    """A tensor's bytes as JSON has them."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else _plain(value)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value: object) -> object:
    """A value as JSON has it. What has no place in a sample becomes something that no field takes."""
    match value:
        case float() if math.isinf(value):
            return str(value)
        case datetime() if value.tzinfo is None:
            # Parquet's times without a zone are UTC, as pandas writes them.
            return f"{value.isoformat()}Z"
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal():
            return float(value)
        case bytes():
            return value.decode(errors="replace")
        case Mapping() | list() | tuple():
            return []
        case str() | bool() | int() | float():
            return value
        case _:
            return str(value)

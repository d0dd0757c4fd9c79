"""Datasets as Delta tables, with Kafka's offsets in the table's own transactions.

A commit carries, beside the rows, one application transaction for each source partition in it: app id
`<cluster>/<topic>/<partition>/<dataset>`, version the next offset. Rows and offsets stand or fall together,
so that the table itself says which events it holds. Delta takes an older transaction version without a
word, so it is read before each commit; and where another writer committed the same app id in between, the
commit conflicts and everything is looked at again.

What a commit added (rows, content hash, sources, first trace) is written into its commit information: a
version is cut from those sums without reading a row.
"""

from __future__ import annotations

import functools
import json
import logging
import operator
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import Final, TypeAlias, TypeVar

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import (
    CommitFailedError,
    SchemaMismatchError,
    TableNotFoundError,
)

from headrace.errors import Aborted, FailedPrecondition
from headrace.ingestion.domain.columnar import STORED_TYPES, stored_schema
from headrace.ingestion.domain.content_hash import combine, from_hex, hash_rows, to_hex
from headrace.ingestion.domain.dataset import (
    Dataset,
    SourceOffset,
    SourcePartition,
    TableCommit,
)
from headrace.ingestion.domain.schema import WIDER, FieldType, Schema, Treatment
from headrace.ingestion.domain.source import SOURCE_COLUMNS
from headrace.ingestion.storage.commit_log import read_commits
from headrace.ingestion.use_cases.ports import Append, Span, TableState

logger = logging.getLogger(__name__)

ROWS_ADDED: Final = "headrace.rows"
_HASH: Final = "headrace.contentHash"
# What an erasure, or retention, took out of rows that commits before it added.
ERASED_ROWS: Final = "headrace.erasedRows"
ERASED_HASH: Final = "headrace.erasedHash"
_SOURCES: Final = "headrace.sources"
_TRACEPARENT: Final = "headrace.traceparent"
# Whoever writes stored rows again commits under this application id: of two that read the same version, one
# conflicts. Delta-rs itself would let both succeed, and each row would be there twice.
REWRITE_APP_ID: Final = "headrace.rewrite"
# The table's property that keeps out whoever has not heard of a declared version of the schema.
_DECLARED: Final = "headrace.declaredSchema"
_ATTEMPTS: Final = 12
_FIRST_PAUSE_SECONDS: Final = 0.02
_COMMITS_AT_ONCE: Final = 64

T = TypeVar("T")
_DeltaType: TypeAlias = (
    deltalake.schema.PrimitiveType
    | deltalake.schema.ArrayType
    | deltalake.schema.MapType
    | deltalake.schema.StructType
    | deltalake.schema.VariantType
)

_EVENT_COLUMNS: Final = ["_event_source", "_event_id", "_partition", "_offset"]

_CONFIGURATION: Final = {
    # The log is what versions are cut from, so that no clean-up may take it away before.
    "delta.enableExpiredLogCleanup": "false",
    # What files are looked up by. By default those are a table's first 32 columns, which may not be these.
    "delta.dataSkippingStatsColumns": "_event_time,_partition,_offset",
    # Checkpoints list removed files for so long. What is still needed of them, maintenance finds in the log;
    # and a week of them, the default, would make each checkpoint of a busy table large.
    "delta.deletedFileRetentionDuration": "interval 1 hours",
}


@dataclass
class _OpenTable:
    """A table and the lock that lets one thread at a time use its state."""

    table: deltalake.DeltaTable
    lock: threading.Lock = field(default_factory=threading.Lock)


class DeltaTables:
    """The tables under one root. Every method blocks, and is safe to call from several threads."""

    def __init__(self, uri_of: Callable[[str], str], storage_options: Mapping[str, str]) -> None:
        """`uri_of` gives the address of the table of a dataset's name."""
        self._uri_of = uri_of
        self._options = dict(storage_options)
        self._open: dict[str, _OpenTable] = {}
        self._opening = threading.Lock()

    def uri(self, dataset: str) -> str:
        """Address of the dataset's table."""
        return self._uri_of(dataset)

    def ensure(self, dataset: Dataset) -> None:
        """Create the table, or add the columns that it lacks and widen those that are too narrow.

        Raises FailedPrecondition TABLE_MISMATCH where a table of other columns stands at the address, and
        Aborted where other writers won every attempt.
        """
        self._committed(dataset, lambda table: self._align(table, dataset))

    def append(self, append: Append) -> int:
        """Store the rows that the table does not hold yet; return how many they were.

        Raises Aborted where other writers won every attempt, or the schema was replaced by a declared version
        since, and deltalake's or the system's errors where the store fails. Calling again is always safe.
        """
        return self._committed(append.dataset, lambda table: self._append_once(table, append))

    def accounted(self, dataset: Dataset, spans: Sequence[Span]) -> Mapping[SourcePartition, int]:
        """Up to which offsets of these sources the table says what became rows.

        It stays so, unless by the dataset's schema: from here on no rows are added by one that was there
        before the version that was declared last.
        """

        def ends(table: deltalake.DeltaTable) -> Mapping[SourcePartition, int]:
            self._align(table, dataset)
            held = {
                span.source: table.transaction_version(span.source.app_id(dataset.name)) for span in spans
            }
            return {source: end for source, end in held.items() if end is not None}

        return self._committed(dataset, ends)

    def stored_events(self, dataset: Dataset, spans: Sequence[Span]) -> pa.Table:
        """Source, id, partition and offset of the rows from these offsets, named as in the table."""
        with self._fresh(dataset) as table:
            self._align(table, dataset)
            # Of the files, only those that can hold such rows, by the log's statistics.
            rows = table.to_pyarrow_dataset(file_pruning_predicate=" OR ".join(map(_sql, spans)))
        wanted = functools.reduce(operator.or_, map(_expression, spans))
        return rows.to_table(_EVENT_COLUMNS, filter=wanted)

    def state_since(self, dataset: Dataset, table_version: int) -> TableState:
        """What was committed after `table_version`."""
        with self._fresh(dataset) as table:
            newest = table.version()
        entries = read_commits(self.uri(dataset.name), table_version, newest)
        return TableState(newest, [_commit_of(version, entry) for version, entry in entries])

    def state_after(self, dataset: Dataset, moment: datetime) -> TableState:
        """What was committed after a moment."""
        with self._fresh(dataset) as table:
            newest = table.version()
        commits: list[TableCommit] = []
        first = newest
        # Backwards, since a table may have many more commits than those.
        while first >= 0 and (not commits or commits[0].commit_time > moment):
            after = max(first - _COMMITS_AT_ONCE, -1)
            earlier = read_commits(self.uri(dataset.name), after, first)
            commits = [*(_commit_of(version, entry) for version, entry in earlier), *commits]
            first = after
        return TableState(newest, [commit for commit in commits if commit.commit_time > moment])

    def _committed(self, dataset: Dataset, commit: Callable[[deltalake.DeltaTable], T]) -> T:
        """Do it on the table's newest state, again where another writer was faster."""
        pause = _FIRST_PAUSE_SECONDS
        for _ in range(_ATTEMPTS):
            try:
                with self._fresh(dataset) as table:
                    return commit(table)
            except (CommitFailedError, SchemaMismatchError) as error:
                logger.info("commit to %s conflicted, looking again: %s", dataset.name, error)
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
        raise Aborted("COMMIT_CONFLICT", f"other writers won each of {_ATTEMPTS} commits to {dataset.name}")

    @contextmanager
    def _fresh(self, dataset: Dataset) -> Iterator[deltalake.DeltaTable]:
        """The dataset's table in its newest state, locked; created where it does not exist."""
        opened = self._opened(dataset)
        with opened.lock:
            opened.table.update_incremental()
            yield opened.table

    def _opened(self, dataset: Dataset) -> _OpenTable:
        with self._opening:
            opened = self._open.get(dataset.name)
            if opened is None:
                opened = self._open[dataset.name] = _OpenTable(self._open_or_create(dataset))
            return opened

    def _open_or_create(self, dataset: Dataset) -> deltalake.DeltaTable:
        uri = self._uri_of(dataset.name)
        try:
            return deltalake.DeltaTable(uri, storage_options=self._options)
        except TableNotFoundError:
            schema = deltalake.Schema.from_arrow(_table_schema(dataset))
            try:
                return deltalake.DeltaTable.create(
                    uri,
                    schema,
                    mode="error",
                    name=dataset.name,
                    configuration=_CONFIGURATION,
                    storage_options=self._options,
                )
            except deltalake.exceptions.DeltaError:
                # Another instance created it at the same moment; if not, this says what is wrong.
                return deltalake.DeltaTable(uri, storage_options=self._options)

    def _align(self, table: deltalake.DeltaTable, dataset: Dataset) -> None:
        expected = deltalake.Schema.from_arrow(_table_schema(dataset))
        present = {column.name: column.type for column in table.schema().fields}
        narrow = []
        for column in expected.fields:
            held = present.get(column.name, column.type)
            # A wider one was declared since this dataset's schema was read.
            if held == column.type or _widens(column.type, held):
                continue
            if not _widens(held, column.type):
                raise FailedPrecondition(
                    "TABLE_MISMATCH",
                    f"the table at {self._uri_of(dataset.name)} holds {column.name} as "
                    f"{held}, not as {column.type}; move the table away",
                )
            narrow.append(column.name)
        missing = [column for column in expected.fields if column.name not in present]
        if missing:
            table.alter.add_columns(missing)
            table.update_incremental()
        if narrow:
            _widen(table, _table_schema(dataset), narrow, _writer_properties(dataset.schema))
        if dataset.declared_version > _declared_version(table):
            # Appends that are under way conflict with a change of the table's metadata, and look again.
            table.alter.set_table_properties(
                {_DECLARED: str(dataset.declared_version)}, raise_if_not_exists=False
            )
            table.update_incremental()

    def _append_once(self, table: deltalake.DeltaTable, append: Append) -> int:
        rows, spans = _not_yet_stored(table, append)
        if not rows.num_rows:
            return 0
        if append.dataset.schema_version < _declared_version(table):
            # What is no row by the declared version may have been rejected by it already.
            raise Aborted(
                "SCHEMA_REPLACED",
                f"another schema of {append.dataset.name} was declared since these events were judged",
            )
        self._align(table, append.dataset)
        names = [field.name for field in append.dataset.schema.stored_fields]
        properties = deltalake.CommitProperties(
            custom_metadata={
                ROWS_ADDED: str(rows.num_rows),
                _HASH: to_hex(hash_rows(rows, names)),
                _SOURCES: json.dumps(
                    [[s.source.cluster, s.source.topic, s.source.partition, s.end] for s in spans]
                ),
                _TRACEPARENT: _first_traceparent(rows),
            },
            app_transactions=[
                deltalake.Transaction(span.source.app_id(append.dataset.name), span.end) for span in spans
            ],
        )
        deltalake.write_deltalake(
            table,
            _in_table_order(rows, table),
            mode="append",
            commit_properties=properties,
            writer_properties=_writer_properties(append.dataset.schema),
        )
        stored: int = rows.num_rows
        return stored


def _declared_version(table: deltalake.DeltaTable) -> int:
    return int(table.metadata().configuration.get(_DECLARED, "0"))


def _widens(narrow: _DeltaType, wide: _DeltaType) -> bool:
    return any(
        narrow == _delta_type(before) and wide == _delta_type(after)
        for before, wider in WIDER.items()
        for after in wider
    )


def _delta_type(field_type: FieldType) -> _DeltaType:
    return deltalake.Field.from_arrow(pa.field("", STORED_TYPES[field_type])).type


def _widen(
    table: deltalake.DeltaTable,
    declared: pa.Schema,
    columns: Collection[str],
    properties: deltalake.WriterProperties,
) -> None:
    """Rewrite the table with these columns as wide as they are declared, in a commit that adds nothing.

    delta-rs cannot change a column's type in place. Earlier versions stay readable with the types that they
    had. Rows pass through in pieces.

    Rows that other writers commit meanwhile are in the table, but in files of the old type: they are
    rewritten by another pass. While others go on committing that would never end, so that the last files stay
    as they are. Arrow and delta-rs read both, and maintenance merges them.
    """
    for last in (*[False] * (_REWRITES - 1), True):
        before = table.version()
        wide = pa.schema(
            [
                declared.field(field.name) if field.name in columns else field
                for field in pa.schema(table.schema().to_arrow())
            ]
        )
        scanned = table.to_pyarrow_dataset().to_batches(
            batch_size=_REWRITE_ROWS, batch_readahead=1, fragment_readahead=1
        )
        # Of an empty table nothing comes, and the new types would not be looked at.
        empty = pa.RecordBatch.from_pylist([], schema=wide)
        batches = chain([empty], (batch.cast(wide) for batch in scanned))
        try:
            deltalake.write_deltalake(
                table,
                pa.RecordBatchReader.from_batches(wide, batches),
                mode="overwrite",
                schema_mode="overwrite",
                writer_properties=properties,
                commit_properties=deltalake.CommitProperties(
                    app_transactions=[deltalake.Transaction(REWRITE_APP_ID, before)]
                ),
            )
        except CommitFailedError:
            # Small files were merged meanwhile, or somebody else widened.
            table.update_incremental()
            if _holds(table, declared, columns):
                return
            if last:
                raise
            continue
        if table.version() == before + 1:
            return


def _holds(table: deltalake.DeltaTable, declared: pa.Schema, columns: Collection[str]) -> bool:
    """Whether the table has these columns as they are declared."""
    present = pa.schema(table.schema().to_arrow())
    return all(present.field(name).type == declared.field(name).type for name in columns)


_REWRITES: Final = 3
_REWRITE_ROWS: Final = 50_000


def _writer_properties(schema: Schema) -> deltalake.WriterProperties:
    dictionary = deltalake.ColumnProperties(dictionary_enabled=True)
    # Nobody looks for tensors by their bytes, nor for what is encrypted: the log would hold two of each file.
    opaque = deltalake.ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
    tensors = [field.name for field in schema.stored_fields if field.type is FieldType.TENSOR]
    return deltalake.WriterProperties(
        compression="SNAPPY",
        default_column_properties=deltalake.ColumnProperties(dictionary_enabled=False),
        column_properties={
            **dict.fromkeys(repeating_columns(schema), dictionary),
            **dict.fromkeys([*tensors, *_encrypted(schema)], opaque),
        },
    )


def repeating_columns(schema: Schema) -> list[str]:
    """The columns that are worth a dictionary: those whose values are likely to repeat.

    Parquet's writer tries one for every column, and of keys, ids and measurements builds it in vain: that
    costs seven times as much as writing the values, and the files are larger.
    """
    different = {schema.key, *_encrypted(schema)}
    repeating = [
        field.name
        for field in schema.stored_fields
        if field.allowed_values or (field.type in _FEW_VALUES and field.name not in different)
    ]
    return [*repeating, *_CONSTANT]


def _encrypted(schema: Schema) -> Sequence[str]:
    return [field.name for field in schema.personal if field.treated is Treatment.ENCRYPT]


_CONSTANT: Final = ("_event_source", "_cluster", "_topic", "_partition")
_FEW_VALUES: Final = (FieldType.STRING, FieldType.BOOL)


def _table_schema(dataset: Dataset) -> pa.Schema:
    # Every column can be null in the table: a rule that is relaxed later needs no new table.
    return pa.unify_schemas([stored_schema(dataset.schema), SOURCE_COLUMNS])


def _not_yet_stored(table: deltalake.DeltaTable, append: Append) -> tuple[pa.Table, Sequence[Span]]:
    """The rows at offsets that the table does not hold, and the spans that they come from."""
    rows = append.rows
    spans = []
    for span in append.spans:
        held = table.transaction_version(span.source.app_id(append.dataset.name))
        if held is None or held <= span.start:
            spans.append(span)
            continue
        stored = pc.and_(
            pc.and_(
                pc.equal(rows.column("_topic"), span.source.topic),
                pc.equal(rows.column("_partition"), pa.scalar(span.source.partition, pa.int32())),
            ),
            pc.less(rows.column("_offset"), held),
        )
        rows = rows.filter(pc.invert(stored))
        if held < span.end:
            spans.append(span)
    return rows, spans


def _sql(span: Span) -> str:
    return f"(_partition = {span.source.partition} AND _offset >= {span.start} AND _offset < {span.end})"


def _expression(span: Span) -> pa.compute.Expression:
    offset = pc.field("_offset")
    return (
        (pc.field("_cluster") == span.source.cluster)
        & (pc.field("_topic") == span.source.topic)
        & (pc.field("_partition") == span.source.partition)
        & (offset >= span.start)
        & (offset < span.end)
    )


def _in_table_order(rows: pa.Table, table: deltalake.DeltaTable) -> pa.Table:
    """The rows with the table's columns and types: a column that this writer does not know yet is null."""
    known = set(rows.column_names)
    schema = pa.schema(table.schema().to_arrow())
    columns = [
        rows.column(column.name).cast(column.type)
        if column.name in known
        else pa.nulls(rows.num_rows, column.type)
        for column in schema
    ]
    return pa.table(columns, names=schema.names)


def _first_traceparent(rows: pa.Table) -> str:
    column = rows.column("_traceparent").drop_null()
    return column[0].as_py() if len(column) else ""


def _commit_of(version: int, entry: Mapping[str, object]) -> TableCommit:
    """A commit by what it says of itself; one that is not ours (maintenance) adds nothing."""
    sources = json.loads(str(entry.get(_SOURCES, "[]")))
    timestamp = entry.get("timestamp", 0)
    assert isinstance(timestamp, int)
    return TableCommit(
        table_version=version,
        rows=int(str(entry.get(ROWS_ADDED, "0"))),
        content_hash=combine(
            from_hex(str(entry.get(_HASH, "0"))), -from_hex(str(entry.get(ERASED_HASH, "0")))
        ),
        sources=tuple(
            SourceOffset(SourcePartition(cluster, topic, partition), next_offset)
            for cluster, topic, partition, next_offset in sources
        ),
        traceparent=str(entry.get(_TRACEPARENT, "")),
        commit_time=datetime.fromtimestamp(timestamp / 1000, UTC),
        erased=int(str(entry.get(ERASED_ROWS, "0"))),
    )

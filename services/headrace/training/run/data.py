"""A dataset version as tensors, split: held in memory where it is small, else read anew for each pass."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.datasets import (
    Classes,
    Encoding,
    Flat,
    Numbers,
    Reader,
    Shuffle,
    Table,
    rows_at_a_time,
)
from headrace.splits import (
    SPLITS,
    TIME_COLUMN,
    ByKey,
    ByTime,
    Shares,
    Splitter,
    begins_of,
    microseconds,
)
from headrace.training.run.categories import find_categories
from headrace.training.run.errors import UnusableDataset, explained
from headrace.training.run.order import HeldOrder, Order, StreamedOrder
from headrace.training.run.specification import Dataset

# Of two samples with one key, their place in the topic decides the order; tables without are fine.
ORDER_COLUMNS = ("_topic", "_partition", "_offset")
# Values of a row that the model receives: 4 MiB of FP32, and a request has at most 64.
MAX_INPUTS = 1 << 20
FLOAT32_BYTES = 4
# Rows of a batch where the batches' size makes no difference to the result, and of a window that is shuffled;
# fewer where they are wide: 16 MiB and 128 MiB of FP32 bound what a streamed run holds.
SWEPT_ROWS = 1 << 14
SWEPT_VALUES = 1 << 22
WINDOW_ROWS = 1 << 17
WINDOW_VALUES = 1 << 25


class Rows(NamedTuple):
    """Features [rows, columns] FP32; labels [rows, 1] FP32 or [rows] INT64 indices."""

    features: Tensor
    labels: Tensor


class InSplit:
    """Rows of one split that have a label: what a reader of the table selects."""

    def __init__(self, number: int, splitter: Splitter, label: str) -> None:
        self.columns = (splitter.column, label)
        self._number = number
        self._splitter = splitter

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Whether each row is one of them."""
        values, label = (batch.column(name) for name in self.columns)
        chosen: NDArray[np.bool_] = self._splitter.assign(values) == self._number
        if label.null_count:
            chosen &= label.is_valid().to_numpy(zero_copy_only=False)
        return chosen


class Split(Protocol):
    """Rows of one split, in an order that does not change."""

    @property
    def name(self) -> str:
        """Which split it is."""

    def __len__(self) -> int:
        """Number of rows."""

    def to(self, device: torch.device) -> Split:
        """Return the same rows, on a device already where they are held in memory."""

    def batches(self) -> Iterator[Rows]:
        """Give all rows once. Raises RunError."""

    def order(self, batch_rows: int, seed: int) -> Order:
        """Return an order of the rows for each epoch, in batches of `batch_rows`.

        Where that is all of them, the batches are what suits the memory, and their order makes no difference.
        """


@dataclass(frozen=True)
class HeldSplit:
    """Rows in memory."""

    name: str
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows.features)

    def to(self, device: torch.device) -> HeldSplit:
        """Return the same rows on a device."""
        return HeldSplit(self.name, Rows(*(tensor.to(device) for tensor in self.rows)))

    def batches(self) -> Iterator[Rows]:
        """Give all rows in one batch; none where there are none."""
        if len(self):
            yield self.rows

    def order(self, batch_rows: int, seed: int) -> HeldOrder:
        """Put them in an order of their own for each epoch."""
        return HeldOrder(*self.rows, batch_rows, seed)


@dataclass(frozen=True)
class StreamedSplit:
    """Rows in the table, of which a few at a time are in memory."""

    name: str
    count: int
    table: Table
    encodings: tuple[Encoding, ...]
    selection: InSplit
    width: int

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> StreamedSplit:
        """Nothing is held that could be moved."""
        return self

    def batches(self) -> Iterator[Rows]:
        """Read all rows."""
        with explained():
            for batch in self._reader(self._swept_rows(), None):
                yield Rows(*batch)

    def order(self, batch_rows: int, seed: int) -> StreamedOrder:
        """Read them in an order of their own for each epoch."""
        if batch_rows >= self.count:
            return StreamedOrder(self._reader(self._swept_rows(), None))
        window_rows = min(WINDOW_ROWS, WINDOW_VALUES // self.width)
        return StreamedOrder(self._reader(batch_rows, Shuffle(seed, window_rows)))

    def _swept_rows(self) -> int:
        return min(SWEPT_ROWS, SWEPT_VALUES // self.width)

    def _reader(self, batch_rows: int, shuffle: Shuffle | None) -> Reader:
        return Reader(
            self.table, self.encodings, batch_rows=batch_rows, selection=self.selection, shuffle=shuffle
        )


@dataclass(frozen=True)
class Data:
    """A dataset version, split; of features that are text the rows have places among their `categories`."""

    train: Split
    validation: Split
    test: Split
    categories: Mapping[str, tuple[str, ...]]

    def splits(self) -> tuple[Split, Split, Split]:
        """All three."""
        return self.train, self.validation, self.test


def load(
    dataset: Dataset,
    shares: Shares,
    *,
    classified: bool,
    in_memory_bytes: int,
    nullable: Collection[str] = (),
    texts: Sequence[str] = (),
) -> Data:
    """Open a dataset version and split it; rows without a label are left out.

    A table of which more than `in_memory_bytes` are read, keys included, is streamed. Of a smaller one the
    rows' order does not depend on its files. `classified`: labels are indices into the dataset's classes. A
    missing value of the `nullable` features is NaN. `texts` are the features whose texts are categories.
    Raises TableNotFound, UnusableDataset.
    """
    features = [column.name for column in dataset.features]
    if dataset.width > MAX_INPUTS:
        raise UnusableDataset(
            f"the features are {dataset.width:,} values with each tensor's, and {MAX_INPUTS:,} are the most; "
            "declare smaller tensors, or leave some out"
        )
    label: Encoding = (
        Classes(dataset.label.name, [json.loads(text) for text in dataset.label.classes])
        if classified
        else Numbers([dataset.label.name])
    )
    columns = [(column.name, column.tensor) for column in dataset.features]
    with explained():
        table = Table.open(dataset.table_uri, dataset.table_version)
        table.require([dataset.key, *features, dataset.label.name])
        held = _held_columns(table, dataset)
        # Of a tensor, what it becomes takes more than what is read.
        tensors = sum(column.tensor.values for column in dataset.features if column.tensor)
        size = table.decoded_bytes(held) + table.rows * tensors * FLOAT32_BYTES
        streamed = size > in_memory_bytes
        splitter = _splitter(table, dataset, shares, streamed=streamed)
        categories = find_categories(
            table, texts, InSplit(SPLITS.index("train"), splitter, dataset.label.name)
        )
        encodings = (Flat(columns, nullable, categories), label)
        splits = (_streamed if streamed else _held)(table, dataset, splitter, encodings)
    train, validation, test = splits
    data = Data(train, validation, test, categories)
    if not len(data.train):
        raise UnusableDataset(
            f"of the {sum(map(len, data.splits()))} rows with a label none is in the training split; "
            "more samples are needed, or a larger training share"
        )
    return data


def _splitter(table: Table, dataset: Dataset, shares: Shares, *, streamed: bool) -> Splitter:
    if shares.by == "key":
        # Of many rows a few come at a time.
        return ByKey(dataset.key, shares, few=0) if streamed else ByKey(dataset.key, shares)
    columns = [TIME_COLUMN, dataset.label.name]
    table.require(columns)

    def times() -> Iterator[NDArray[np.int64]]:
        for part in table.parts:
            for batch in table.scan(part, columns):
                time, label = (batch.column(name) for name in columns)
                yield microseconds(time.filter(label.is_valid()))

    return ByTime(begins_of(times, shares))


def _held(table: Table, dataset: Dataset, splitter: Splitter, encodings: tuple[Encoding, ...]) -> list[Split]:
    columns = dict.fromkeys([*_held_columns(table, dataset), splitter.column])
    rows = _with_wide_offsets(table.read(list(columns)))
    rows = rows.filter(pc.is_valid(rows.column(dataset.label.name)))
    order = [(name, "ascending") for name in (dataset.key, *_order_columns(table))]
    rows = rows.sort_by(order).combine_chunks()
    if not len(rows):
        return [HeldSplit(name, Rows(torch.empty(0), torch.empty(0))) for name in SPLITS]
    [batch] = rows.to_batches()
    encoded = [encoding.encode(batch) for encoding in encodings]
    chosen = torch.from_numpy(splitter.assign(batch.column(splitter.column)))
    return [
        HeldSplit(name, Rows(*(tensor[chosen == number] for tensor in encoded)))
        for number, name in enumerate(SPLITS)
    ]


def _streamed(
    table: Table, dataset: Dataset, splitter: Splitter, encodings: tuple[Encoding, ...]
) -> list[Split]:
    selections = [InSplit(number, splitter, dataset.label.name) for number, _ in enumerate(SPLITS)]
    counts = _counts(table, dataset, splitter, encodings)
    return [
        StreamedSplit(name, count, table, encodings, selection, dataset.width)
        for name, count, selection in zip(SPLITS, counts, selections, strict=True)
    ]


def _counts(table: Table, dataset: Dataset, splitter: Splitter, encodings: tuple[Encoding, ...]) -> list[int]:
    """Rows with a label, by split.

    All of them are encoded, so that one that cannot be ends the run before it is trained, not after.
    """
    counts = np.zeros(len(SPLITS), np.int64)
    encoded = (name for encoding in encodings for name in encoding.columns)
    columns = list(dict.fromkeys([splitter.column, *encoded]))
    for part in table.parts:
        for batch in table.scan(part, columns, batch_rows=rows_at_a_time(encodings)):
            labelled = batch.filter(batch.column(dataset.label.name).is_valid())
            if not len(labelled):
                continue
            for encoding in encodings:
                encoding.encode(labelled)
            chosen = splitter.assign(labelled.column(splitter.column))
            counts += np.bincount(chosen, minlength=len(counts))
    return [int(count) for count in counts]


def _held_columns(table: Table, dataset: Dataset) -> list[str]:
    features = (column.name for column in dataset.features)
    return list(dict.fromkeys([dataset.key, *features, dataset.label.name, *_order_columns(table)]))


def _order_columns(table: Table) -> list[str]:
    return [name for name in ORDER_COLUMNS if name in table.columns]


def _with_wide_offsets(rows: pa.Table) -> pa.Table:
    """Give texts and bytes 64-bit offsets: with 32, more than 2 GiB of it do not fit into one batch."""
    large = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    wide = [field.with_type(large.get(field.type, field.type)) for field in rows.schema]
    return rows.cast(pa.schema(wide))

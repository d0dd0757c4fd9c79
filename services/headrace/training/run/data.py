"""A dataset version as tensors, split: held in memory where it is small, else read anew for each pass."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from headrace.datasets import Classes, Encoding, Numbers, Reader, Shuffle, Table
from headrace.training.run import splits
from headrace.training.run.errors import UnusableDataset, explained
from headrace.training.run.order import HeldOrder, Order, StreamedOrder
from headrace.training.run.specification import Dataset, Shares

# Of two samples with one key, their place in the topic decides the order; tables without are fine.
ORDER_COLUMNS = ("_topic", "_partition", "_offset")
# Rows of a batch where the batches' size makes no difference to the result.
SWEPT_ROWS = 1 << 14


class Rows(NamedTuple):
    """Features [rows, columns] FP32; labels [rows, 1] FP32 or [rows] INT64 indices."""

    features: Tensor
    labels: Tensor


class Split(Protocol):
    """Rows of one split, in an order that does not change."""

    name: str

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
    selection: splits.InSplit

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> StreamedSplit:
        """Nothing is held that could be moved."""
        return self

    def batches(self) -> Iterator[Rows]:
        """Read all rows."""
        with explained():
            for batch in self._reader(SWEPT_ROWS, None):
                yield Rows(*batch)

    def order(self, batch_rows: int, seed: int) -> StreamedOrder:
        """Read them in an order of their own for each epoch."""
        if batch_rows >= self.count:
            return StreamedOrder(self._reader(SWEPT_ROWS, None))
        return StreamedOrder(self._reader(batch_rows, Shuffle(seed)))

    def _reader(self, batch_rows: int, shuffle: Shuffle | None) -> Reader:
        return Reader(
            self.table, self.encodings, batch_rows=batch_rows, selection=self.selection, shuffle=shuffle
        )


@dataclass(frozen=True)
class Data:
    """A dataset version, split."""

    train: Split
    validation: Split
    test: Split

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
) -> Data:
    """Open a dataset version and split it by key; rows without a label are left out.

    A table of which more than `in_memory_bytes` are read, keys included, is streamed. Of a smaller one the
    rows' order does not depend on its files. `classified`: labels are indices into the dataset's classes. A
    missing value of the `nullable` features is NaN. Raises TableNotFound, UnusableDataset.
    """
    features = [column.name for column in dataset.features]
    label: Encoding = (
        Classes(dataset.label.name, [json.loads(text) for text in dataset.label.classes])
        if classified
        else Numbers([dataset.label.name])
    )
    encodings = (Numbers(features, nullable), label)
    with explained():
        table = Table.open(dataset.table_uri, dataset.table_version)
        table.require([dataset.key, *features, dataset.label.name])
        columns = _held_columns(table, dataset, encodings)
        streamed = table.decoded_bytes(columns) > in_memory_bytes
        data = (_streamed if streamed else _held)(table, dataset, shares, encodings)
    if not len(data.train):
        raise UnusableDataset(
            f"of the {sum(map(len, data.splits()))} rows with a label none is in the training split; "
            "more samples are needed, or a larger training share"
        )
    return data


def _held(table: Table, dataset: Dataset, shares: Shares, encodings: tuple[Encoding, ...]) -> Data:
    rows = _with_wide_offsets(table.read(_held_columns(table, dataset, encodings)))
    rows = rows.filter(pc.is_valid(rows.column(dataset.label.name)))
    order = [(name, "ascending") for name in (dataset.key, *_order_columns(table))]
    rows = rows.sort_by(order).combine_chunks()
    if not len(rows):
        return Data(*(HeldSplit(name, Rows(torch.empty(0), torch.empty(0))) for name in splits.SPLITS))
    [batch] = rows.to_batches()
    encoded = [encoding.encode(batch) for encoding in encodings]
    chosen = torch.from_numpy(splits.assign(batch.column(dataset.key), shares))
    return Data(
        *(
            HeldSplit(name, Rows(*(tensor[chosen == number] for tensor in encoded)))
            for number, name in enumerate(splits.SPLITS)
        )
    )


def _streamed(table: Table, dataset: Dataset, shares: Shares, encodings: tuple[Encoding, ...]) -> Data:
    selections = [
        splits.InSplit(number, dataset.key, dataset.label.name, shares)
        for number, _ in enumerate(splits.SPLITS)
    ]
    counts = _counts(table, dataset, shares, encodings)
    return Data(
        *(
            StreamedSplit(name, count, table, encodings, selection)
            for name, count, selection in zip(splits.SPLITS, counts, selections, strict=True)
        )
    )


def _counts(table: Table, dataset: Dataset, shares: Shares, encodings: tuple[Encoding, ...]) -> list[int]:
    """Rows with a label, by split.

    All of them are encoded, so that one that cannot be ends the run before it is trained, not after.
    """
    counts = np.zeros(len(splits.SPLITS), np.int64)
    columns = list(dict.fromkeys([dataset.key, *_encoded_columns(encodings)]))
    for part in table.parts:
        for batch in table.scan(part, columns):
            labelled = batch.filter(batch.column(dataset.label.name).is_valid())
            if not len(labelled):
                continue
            for encoding in encodings:
                encoding.encode(labelled)
            chosen = splits.assign(labelled.column(dataset.key), shares, few=0)
            counts += np.bincount(chosen, minlength=len(counts))
    return [int(count) for count in counts]


def _held_columns(table: Table, dataset: Dataset, encodings: tuple[Encoding, ...]) -> list[str]:
    return list(dict.fromkeys([dataset.key, *_encoded_columns(encodings), *_order_columns(table)]))


def _encoded_columns(encodings: tuple[Encoding, ...]) -> list[str]:
    return [name for encoding in encodings for name in encoding.columns]


def _order_columns(table: Table) -> list[str]:
    return [name for name in ORDER_COLUMNS if name in table.columns]


def _with_wide_offsets(rows: pa.Table) -> pa.Table:
    """Give text 64-bit offsets: with 32, more than 2 GiB of it do not fit into one batch."""
    wide = [
        field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
        for field in rows.schema
    ]
    return rows.cast(pa.schema(wide))

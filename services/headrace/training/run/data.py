"""A dataset version as tensors: read, split, and measured for normalisation."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from numpy.typing import NDArray
from torch import Tensor

from headrace.objects.store import delta_storage_options
from headrace.training.run import splits
from headrace.training.run.errors import TableNotFound, UnusableDataset
from headrace.training.run.specification import Column, Dataset, Shares

# Of two samples with one key, their place in the topic decides the order; tables without are fine.
ORDER_COLUMNS = ("_topic", "_partition", "_offset")


@dataclass(frozen=True)
class Split:
    """Rows of one split: features [rows, columns] FP32; labels [rows, 1] FP32 or [rows] INT64 indices."""

    name: str
    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device) -> Split:
        """Return the same rows on a device."""
        return Split(self.name, self.features.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A dataset version, split."""

    train: Split
    validation: Split
    test: Split

    def splits(self) -> tuple[Split, Split, Split]:
        """All three."""
        return self.train, self.validation, self.test


@dataclass(frozen=True)
class Scale:
    """Per column: normalised = (raw - mean) / deviation."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def identity(cls, columns: int) -> Scale:
        """Leave the columns as they are."""
        return cls(torch.zeros(columns), torch.ones(columns))

    @classmethod
    def fitted(cls, columns: Tensor) -> Scale:
        """Give [rows, columns] mean 0 and variance 1; a constant column only mean 0."""
        exact = columns.double()
        deviation = exact.std(dim=0, correction=0)
        return cls(
            exact.mean(dim=0).float(),
            torch.where(deviation > 0, deviation, torch.ones_like(deviation)).float(),
        )


def load(dataset: Dataset, shares: Shares, *, classified: bool) -> Data:
    """Read a dataset version and split it by key; rows without a label are left out.

    The rows' order does not depend on the table's files. `classified`: labels are indices into the
    dataset's classes. Raises TableNotFound, UnusableDataset.
    """
    table = _read(dataset)
    features = np.column_stack([_numbers(table, column) for column in dataset.features])
    labels = _indices(table, dataset) if classified else _numbers(table, dataset.label)[:, None]
    chosen = splits.assign(table.column(dataset.key).to_pylist(), shares)

    def split(number: int) -> Split:
        rows = chosen == number
        return Split(splits.SPLITS[number], torch.from_numpy(features[rows]), torch.from_numpy(labels[rows]))

    data = Data(split(0), split(1), split(2))
    if not len(data.train):
        raise UnusableDataset(
            f"of the {len(features)} rows with a label none is in the training split; "
            "more samples are needed, or a larger training share"
        )
    return data


def _read(dataset: Dataset) -> pa.Table:
    try:
        table = DeltaTable(
            dataset.table_uri, version=dataset.table_version, storage_options=delta_storage_options()
        )
        stored = {field.name for field in table.schema().fields}
        wanted = [dataset.key, *(column.name for column in dataset.features), dataset.label.name]
        missing = [name for name in wanted if name not in stored]
        if missing:
            raise UnusableDataset(f"the table of {dataset.name} has no column {', '.join(missing)}")
        order = [name for name in ORDER_COLUMNS if name in stored]
        rows = table.to_pyarrow_table(columns=[*wanted, *order])
    except (TableNotFoundError, DeltaError) as error:
        raise TableNotFound(
            f"version {dataset.table_version} of the table {dataset.table_uri} cannot be read: {error}"
        ) from error
    rows = rows.filter(pc.is_valid(rows.column(dataset.label.name)))
    return rows.sort_by([(name, "ascending") for name in (dataset.key, *order)])


def _numbers(table: pa.Table, column: Column) -> NDArray[np.float32]:
    values = table.column(column.name)
    if column.type == "string":
        raise UnusableDataset(
            f"{column.name} is text, and this recipe learns from numbers; "
            "leave it out of the features, or send it as numbers"
        )
    if values.null_count:
        raise UnusableDataset(
            f"{column.name} has no value in {values.null_count} rows, and this recipe needs them all; "
            "make the feature not nullable, or leave it out"
        )
    return np.asarray(values.cast(pa.float32(), safe=False).to_numpy(), dtype=np.float32)


def _indices(table: pa.Table, dataset: Dataset) -> NDArray[np.int64]:
    """Return each label's place among the classes."""
    classes = [json.loads(text) for text in dataset.label.classes]
    values = table.column(dataset.label.name)
    found = pc.index_in(values, value_set=pa.array(classes).cast(values.type))
    if found.null_count:
        raise UnusableDataset(
            f"{found.null_count} labels are none of the classes {', '.join(dataset.label.classes)}"
        )
    return np.asarray(found.to_numpy(), dtype=np.int64)

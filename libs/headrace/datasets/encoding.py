"""Columns of Arrow as tensors, without a Python object for each value."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from headrace.errors import FailedPrecondition

UNUSABLE_VALUES = "UNUSABLE_VALUES"
TEXTS = (pa.string(), pa.large_string())


class Encoding(Protocol):
    """How some columns become one tensor, whose first dimension is the rows.

    Values that it cannot take are UNUSABLE_VALUES: a wrong type, a missing one, one out of range or no class.
    """

    @property
    def columns(self) -> Sequence[str]:
        """The columns that it needs."""

    def encode(self, batch: pa.RecordBatch) -> Tensor:
        """Encode at least one row. Raises FailedPrecondition/UNUSABLE_VALUES."""


class Numbers:
    """Numeric columns, side by side: [rows, columns] FP32. A value beyond its precision is rounded.

    One beyond its range, 3.4e38 either way, is refused. Of `nullable` columns a missing value is NaN; of the
    others it is refused.
    """

    def __init__(self, columns: Sequence[str], nullable: Collection[str] = ()) -> None:
        self.columns = tuple(columns)
        self._nullable = frozenset(nullable)

    def encode(self, batch: pa.RecordBatch) -> Tensor:
        """Cast, and put into rows."""
        numbers = [self._cast(name, batch.column(name)) for name in self.columns]
        rows = pa.RecordBatch.from_arrays(numbers, names=list(self.columns))
        return torch.from_numpy(rows.to_tensor(null_to_nan=True, row_major=True).to_numpy())

    def _cast(self, name: str, values: pa.Array) -> pa.Array:
        kind = values.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise FailedPrecondition(
                UNUSABLE_VALUES,
                f"{name} is {'text' if kind in TEXTS else kind}, and this recipe learns from "
                "numbers; leave it out of the features, or send it as numbers",
            )
        if values.null_count and name not in self._nullable:
            raise FailedPrecondition(
                UNUSABLE_VALUES,
                f"{name} has no value in {values.null_count} of {len(values)} rows; say what stands for "
                "a missing value, make the feature not nullable, or leave it out",
            )
        if kind == pa.float32():
            return values
        rounded = values.cast(pa.float32(), safe=False)
        # Whole numbers of 64 bits are within its range.
        beyond = pc.sum(pc.is_inf(rounded)).as_py() if kind == pa.float64() else 0
        if beyond:
            raise FailedPrecondition(
                UNUSABLE_VALUES,
                f"{name} is beyond float32, which models learn from, in {beyond} of {len(values)} rows; send "
                "it in a larger unit or as its logarithm, or leave it out",
            )
        return rounded


class Classes:
    """One column of labels: [rows] INT64, each value's place among the classes."""

    def __init__(self, column: str, classes: Sequence[str | int | float | bool]) -> None:
        self.columns = (column,)
        self._classes = tuple(classes)

    def encode(self, batch: pa.RecordBatch) -> Tensor:
        """Look the places up."""
        values = batch.column(self.columns[0])
        places = pc.index_in(values, value_set=pa.array(self._classes).cast(values.type))
        if places.null_count:
            raise FailedPrecondition(
                UNUSABLE_VALUES,
                f"{places.null_count} of {len(places)} labels are none of the classes "
                f"{', '.join(map(str, self._classes))}",
            )
        return torch.from_numpy(places.cast(pa.int64()).to_numpy(zero_copy_only=False).copy())

"""Columns of Arrow as tensors, without a Python object for each value."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from headrace.errors import FailedPrecondition
from headrace.tensors import TensorFault, TensorType

UNUSABLE_VALUES = "UNUSABLE_VALUES"
TEXTS = (pa.string(), pa.large_string())
FLOAT32_BYTES = 4
INT64_BYTES = 8
# What is decoded at a time: of rows with images fewer than Arrow would take.
DECODED_BYTES = 16 << 20
# A text that is no category.
UNKNOWN_CATEGORY: Final = -1
_NO_CATEGORIES: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})


class Encoding(Protocol):
    """How some columns become one tensor, whose first dimension is the rows.

    Values that it cannot take are UNUSABLE_VALUES: a wrong type, a missing one, one out of range or no class.
    """

    @property
    def columns(self) -> Sequence[str]:
        """The columns that it needs."""

    @property
    def row_bytes(self) -> int:
        """What a row of the tensor takes in memory."""

    def encode(self, batch: pa.RecordBatch) -> Tensor:
        """Encode at least one row. Raises FailedPrecondition/UNUSABLE_VALUES."""


def rows_at_a_time(encodings: Sequence[Encoding]) -> int:
    """Return how many rows' tensors take no more than `DECODED_BYTES`; at least one."""
    return max(1, DECODED_BYTES // max(1, sum(encoding.row_bytes for encoding in encodings)))


class Numbers:
    """Numeric columns, side by side: [rows, columns] FP32. A value beyond its precision is rounded.

    One beyond its range, 3.4e38 either way, is refused. Of `nullable` columns a missing value is NaN; of the
    others it is refused.
    """

    def __init__(self, columns: Sequence[str], nullable: Collection[str] = ()) -> None:
        self.columns = tuple(columns)
        self.row_bytes = FLOAT32_BYTES * len(self.columns)
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
                f"{name} is {'text' if kind in TEXTS else kind}, and this recipe learns from numbers; "
                + ("encode its words" if kind in TEXTS else "send it as numbers")
                + ", or leave it out of the features",
            )
        if values.null_count and name not in self._nullable:
            raise _missing(name, values.null_count, len(values))
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


class Categories:
    """One column of texts: [rows, 1] FP32, each one's place among the categories, -1 where it is none.

    An empty text is a missing value, as null is: NaN where the column is `nullable`, else it is refused.
    """

    def __init__(self, column: str, categories: Sequence[str], *, nullable: bool = False) -> None:
        self.columns = (column,)
        self.row_bytes = FLOAT32_BYTES
        self._nullable = nullable
        # Null is looked up as a value, too.
        self._known = pa.array([None, "", *categories], pa.string())
        places = [math.nan, math.nan, *range(len(categories)), UNKNOWN_CATEGORY]
        self._places = np.array(places, np.float32)[:, np.newaxis]

    def encode(self, batch: pa.RecordBatch) -> Tensor:
        """Look the places up."""
        name, values = self.columns[0], batch.column(self.columns[0])
        if values.type not in TEXTS:
            raise FailedPrecondition(UNUSABLE_VALUES, f"{name} is {values.type}, and not text")
        found = pc.index_in(values, value_set=self._known.cast(values.type))
        places = self._places[found.fill_null(len(self._known)).to_numpy()]
        missing = int(np.isnan(places).sum())
        if missing and not self._nullable:
            raise _missing(name, missing, len(values))
        return torch.from_numpy(places)


class Tensors:
    """One column of tensors: [rows, *shape] of their own type of numbers. A missing one is refused."""

    def __init__(self, column: str, tensor: TensorType) -> None:
        self.columns = (column,)
        self.row_bytes = tensor.size
        self._tensor = tensor

    def encode(self, batch: pa.RecordBatch) -> Tensor:
        """Decode them one by one, into one block of memory."""
        name, values = self.columns[0], batch.column(self.columns[0])
        if not pa.types.is_binary(values.type) and not pa.types.is_large_binary(values.type):
            raise FailedPrecondition(UNUSABLE_VALUES, f"{name} is {values.type}, and not a tensor's bytes")
        if values.null_count:
            raise FailedPrecondition(
                UNUSABLE_VALUES, f"{name} has no value in {values.null_count} of {len(values)} rows"
            )
        decoded = np.empty((len(values), *self._tensor.shape), self._tensor.dtype)
        for row, value in enumerate(values):
            try:
                decoded[row] = self._tensor.decode(value.as_py())
            except TensorFault as fault:
                raise FailedPrecondition(
                    UNUSABLE_VALUES, f"{name} in one of {len(values)} rows {fault.message}"
                ) from fault
        return torch.from_numpy(decoded)


class Flat:
    """Numbers, texts and tensors side by side, each tensor's values in a row: [rows, columns] FP32.

    Texts have `categories`, by column. Of `nullable` columns a missing value is NaN, a missing tensor as many
    of them.
    """

    def __init__(
        self,
        columns: Sequence[tuple[str, TensorType | None]],
        nullable: Collection[str] = (),
        categories: Mapping[str, Sequence[str]] = _NO_CATEGORIES,
    ) -> None:
        self.columns = tuple(name for name, _ in columns)
        self.row_bytes = FLOAT32_BYTES * sum(tensor.values if tensor else 1 for _, tensor in columns)
        self._nullable = frozenset(nullable)
        self._parts: list[Numbers | Categories | tuple[str, TensorType]] = []
        for is_number, group in itertools.groupby(
            columns, lambda column: column[1] is None and column[0] not in categories
        ):
            if is_number:
                self._parts.append(Numbers([name for name, _ in group], nullable))
                continue
            self._parts += [
                Categories(name, categories[name], nullable=name in nullable)
                if tensor is None
                else (name, tensor)
                for name, tensor in group
            ]

    def encode(self, batch: pa.RecordBatch) -> Tensor:
        """Encode each, and put them together."""
        parts = [
            self._flattened(batch, *part) if isinstance(part, tuple) else part.encode(batch)
            for part in self._parts
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _flattened(self, batch: pa.RecordBatch, name: str, tensor: TensorType) -> Tensor:
        present = batch.column(name).is_valid()
        if name in self._nullable and not pc.all(present).as_py():
            values = torch.full((len(batch), tensor.values), math.nan)
            some = batch.filter(present)
            if len(some):
                kept = torch.from_numpy(present.to_numpy(zero_copy_only=False))
                values[kept] = self._flattened(some, name, tensor)
            return values
        flat = Tensors(name, tensor).encode(batch).reshape(len(batch), -1).float()
        if not flat.isfinite().all():
            raise FailedPrecondition(
                UNUSABLE_VALUES, f"{name} has values beyond float32, which models learn from"
            )
        return flat


class Classes:
    """One column of labels: [rows] INT64, each value's place among the classes."""

    def __init__(self, column: str, classes: Sequence[str | int | float | bool]) -> None:
        self.columns = (column,)
        self.row_bytes = INT64_BYTES
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


def _missing(column: str, count: int, rows: int) -> FailedPrecondition:
    return FailedPrecondition(
        UNUSABLE_VALUES,
        f"{column} has no value in {count} of {rows} rows; say what stands for a missing value, "
        "make the feature not nullable, or leave it out",
    )

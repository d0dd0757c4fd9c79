"""What a version's rows look like, field by field, in a few kilobytes that grow with rows to come.

A profile is made in one pass and never from the rows of an earlier version again: it takes up where the
previous version's ended. So everything in it can be merged. Counts, bounds, mean and squared deviations are
exact (up to rounding) by pairwise merging, as in Chan, Golub and LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances" (1979). Quantiles are a KLL sketch (Karnin, Lang and Liberty,
"Optimal quantile approximation in streams", 2016). Counts of values are exact while they are few, and else a
summary of the frequent ones (Agarwal et al., "Mergeable summaries", 2012).

Of the key, and of whatever is neither feature nor label, values are counted and not looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasketches import kll_doubles_sketch

from headrace.ingestion.domain.schema import Field, FieldType, Schema
from headrace.values import value_text

QUANTILE_SIZE: Final = 200
"""The KLL sketch's `k`: about 5 kB, and ranks within `RANK_ERROR`."""
RANK_ERROR: Final = kll_doubles_sketch.get_normalized_rank_error(QUANTILE_SIZE, False)
"""By how much the share of rows below a value may be wrong, with 99 % confidence."""
EXACT_VALUES: Final = 500
"""Up to so many different values are counted exactly."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Numbers in exact sums; `squares` is the sum of squared deviations from the mean."""

    count: int = 0
    min: float = math.inf
    max: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the population; infinite where its square is no double."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def merge(self, other: Moments) -> Moments:
        """Those of both sets of numbers together."""
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        share = other.count / count
        # Weighted, so that no sum leaves the range of doubles.
        mean = self.mean * (1 - share) + other.mean * share
        distance = other.mean - self.mean
        return Moments(
            count,
            min(self.min, other.min),
            max(self.max, other.max),
            mean,
            self.squares + other.squares + distance * distance * (self.count * share),
        )


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """The most frequent values by their `value_text`, at most `EXACT_VALUES`.

    A count, also that of a value that is left out, is too low by `error` at most: 0 while values are few.
    """

    counts: Mapping[str, int]
    error: int = 0

    def merge(self, counts: Mapping[str, int]) -> ValueCounts:
        """Those of both together."""
        merged = dict(self.counts)
        for value, count in counts.items():
            merged[value] = merged.get(value, 0) + count
        if len(merged) <= EXACT_VALUES:
            return ValueCounts(merged, self.error)
        # What the first one that is too many has is taken from all: at most 1/500 of the rows in the end.
        surplus = sorted(merged.values(), reverse=True)[EXACT_VALUES]
        kept = {value: count - surplus for value, count in merged.items() if count > surplus}
        return ValueCounts(kept, self.error + surplus)

    def most_frequent(self, at_most: int) -> Mapping[str, int]:
        """The most frequent ones first."""
        return dict(sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:at_most])


@dataclass(frozen=True, slots=True)
class FieldProfile:
    """One field. `count` values are there and `null_count` are not.

    `moments` and `quantiles`, a serialized sketch, are a number's; `values` a bool's, a string's, and an
    integer's with at most `EXACT_VALUES` different ones.
    """

    name: str
    type: FieldType
    count: int = 0
    null_count: int = 0
    moments: Moments | None = None
    quantiles: bytes | None = None
    values: ValueCounts | None = None

    @property
    def null_share(self) -> float:
        """Of all rows, those without a value."""
        rows = self.count + self.null_count
        return self.null_count / rows if rows else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """All rows of a version, by the schema's fields in their order."""

    row_count: int
    fields: tuple[FieldProfile, ...]

    def field(self, name: str) -> FieldProfile | None:
        """The field of that name."""
        return next((field for field in self.fields if field.name == name), None)


def extended(base: Profile | None, schema: Schema, batches: Iterable[pa.RecordBatch]) -> Profile:
    """The profile of `base`'s rows and those of the batches together.

    A batch may lack columns that its rows were written without: they are null. Holds one batch at a time.
    Where `base` is not `is_extensible`, the fields that it does not describe stay without a description.
    """
    profiler = _Profiler(base, schema)
    for batch in batches:
        profiler.add(batch)
    return profiler.profile()


def is_extensible(base: Profile, schema: Schema) -> bool:
    """Whether `base` describes all values of the fields that are looked at.

    It does not those of a field that was an attribute and is a feature now.
    """
    looked_at = _looked_at(schema)
    return all(_is_described(field) for field in base.fields if field.name in looked_at)


def number_count(quantiles: bytes | None) -> int:
    """How many numbers a serialized sketch is of."""
    return int(kll_doubles_sketch.deserialize(quantiles).n) if quantiles else 0


def quantiles(field: FieldProfile, ranks: Sequence[float]) -> list[float]:
    """The values below which these shares of the numbers lie; none where there are no numbers."""
    sketch = _sketch(field)
    return list(sketch.get_quantiles(list(ranks))) if sketch else []


def shares_up_to(field: FieldProfile, points: Sequence[float]) -> list[float]:
    """For each of the rising points the share of the numbers that are not above it; none as above."""
    sketch = _sketch(field)
    return list(sketch.get_cdf(list(points), inclusive=True))[:-1] if sketch else []


def _sketch(field: FieldProfile) -> kll_doubles_sketch | None:
    sketch = kll_doubles_sketch.deserialize(field.quantiles) if field.quantiles else None
    # One that is empty refuses every question.
    return None if sketch is None or sketch.is_empty() else sketch


def _looked_at(schema: Schema) -> frozenset[str]:
    return frozenset(field.name for field in (*schema.features, schema.label))


def _is_described(field: FieldProfile) -> bool:
    if field.type.is_number:
        return number_count(field.quantiles) == field.count
    # Of a tensor there is no more to say.
    return field.values is not None or not field.count or field.type is FieldType.TENSOR


class _Profiler:
    def __init__(self, base: Profile | None, schema: Schema) -> None:
        self._rows = base.row_count if base else 0
        known = {field.name: field for field in base.fields} if base else {}
        looked_at = _looked_at(schema)
        self._fields = [
            _FieldProfiler(known.get(field.name), field, self._rows, values=field.name in looked_at)
            for field in schema.stored_fields
        ]

    def add(self, batch: pa.RecordBatch) -> None:
        self._rows += batch.num_rows
        present = set(batch.schema.names)
        for field in self._fields:
            field.add(batch.column(field.name) if field.name in present else None, batch.num_rows)

    def profile(self) -> Profile:
        return Profile(self._rows, tuple(field.profile() for field in self._fields))


class _FieldProfiler:
    def __init__(self, base: FieldProfile | None, field: Field, rows: int, *, values: bool) -> None:
        """A field that came after the first `rows` rows is null in them."""
        base = base or FieldProfile(field.name, field.type, null_count=rows)
        self.name = field.name
        self._type = field.type
        self._count, self._null_count = base.count, base.null_count
        self._moments: Moments | None = None
        self._quantiles: kll_doubles_sketch | None = None
        self._values: ValueCounts | None = None
        # Never of a part of the rows only.
        values = values and _is_described(base)
        if values and field.type.is_number:
            self._moments = base.moments or Moments()
            self._quantiles = (
                kll_doubles_sketch.deserialize(base.quantiles)
                if base.quantiles
                else kll_doubles_sketch(QUANTILE_SIZE)
            )
        if values and _is_counted(field.type) and (base.values is not None or not base.count):
            self._values = base.values or ValueCounts({})

    def add(self, column: pa.Array | None, rows: int) -> None:
        present = rows - column.null_count if column is not None else 0
        self._count += present
        self._null_count += rows - present
        if column is None or not present:
            return
        if self._moments is not None and self._quantiles is not None:
            numbers = _numbers(column)
            self._moments = self._moments.merge(_moments_of(numbers))
            self._quantiles.update(numbers)
        if self._values is not None:
            merged = self._values.merge(_counts_of(column))
            # Integers that are many are described as the numbers that they are.
            self._values = None if self._type.is_integer and merged.error else merged

    def profile(self) -> FieldProfile:
        return FieldProfile(
            self.name,
            self._type,
            self._count,
            self._null_count,
            self._moments,
            self._quantiles.serialize() if self._quantiles is not None else None,
            self._values,
        )


def _is_counted(field_type: FieldType) -> bool:
    return field_type in (FieldType.BOOL, FieldType.STRING) or field_type.is_integer


def _numbers(column: pa.Array) -> npt.NDArray[np.float64]:
    # A copy: the sketch takes no array that cannot be written to.
    return np.array(column.drop_null(), np.float64)


def _moments_of(numbers: npt.NDArray[np.float64]) -> Moments:
    count = len(numbers)
    # Divided first: a sum of doubles may be none.
    mean = float((numbers / count).sum())
    with np.errstate(over="ignore"):
        squares = float(np.square(numbers - mean).sum())
    return Moments(count, float(numbers.min()), float(numbers.max()), mean, squares)


def _counts_of(column: pa.Array) -> Counter[str]:
    found = pc.value_counts(column.drop_null())
    counts: Counter[str] = Counter()
    for value, count in zip(
        found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True
    ):
        counts[value_text(value)] += count
    return counts

"""Scales of columns, measured in one pass over their rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# What is measured at a time, in double precision.
MEASURED_VALUES = 1 << 22


class Moments:
    """Per column: count, mean, sum of squared deviations, smallest and largest, of values that are not NaN.

    Added up batch by batch in double precision. Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self.count = self.mean = self.squares = torch.zeros((), dtype=torch.float64)
        self.smallest = torch.tensor(math.inf, dtype=torch.float64)
        self.largest = -self.smallest

    def add(self, batch: Tensor) -> None:
        """Add [rows, columns]."""
        # A batch may be a whole split, and each step below takes as much memory again.
        rows = max(1, MEASURED_VALUES // batch.shape[1])
        for part in batch.split(rows):  # type: ignore[no-untyped-call]
            self._add(part.double())

    def _add(self, exact: Tensor) -> None:
        present = ~exact.isnan()
        count = present.sum(dim=0).double()
        mean = exact.nansum(dim=0) / count.clamp(min=1)
        total = self.count + count
        share = count / total.clamp(min=1)
        apart = mean - self.mean
        self.squares = self.squares + ((exact - mean) ** 2).nansum(dim=0) + apart**2 * self.count * share
        self.mean = self.mean + apart * share
        self.count = total
        self.smallest = torch.minimum(self.smallest, exact.nan_to_num(nan=math.inf).amin(dim=0))
        self.largest = torch.maximum(self.largest, exact.nan_to_num(nan=-math.inf).amax(dim=0))

    def pooled(self, places: Tensor) -> Moments:
        """Return, for each column, those of all columns with the same number: [columns] INT64."""
        count, mean, squares = (
            torch.zeros(int(places.max()) + 1, dtype=torch.float64).index_add(0, places, values)
            for values in (self.count, self.count * self.mean, self.squares)
        )
        mean /= count.clamp(min=1)
        squares.index_add_(0, places, self.count * (self.mean - mean[places]) ** 2)
        together = Moments()
        together.count, together.mean, together.squares = count[places], mean[places], squares[places]
        for name, reduction in (("smallest", "amin"), ("largest", "amax")):
            extremes = torch.zeros_like(count).scatter_reduce(
                0, places, getattr(self, name), reduction, include_self=False
            )
            setattr(together, name, extremes[places])
        return together

    def deviation(self) -> Tensor:
        """Return the standard deviation of all values, not of a sample."""
        return (self.squares / self.count.clamp(min=1)).sqrt()


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
    def fitted(cls, batches: Iterable[Tensor]) -> Scale:
        """Give [rows, columns] mean 0 and variance 1; a constant column only mean 0."""
        moments = Moments()
        for batch in batches:
            moments.add(batch)
        deviation = moments.deviation()
        return cls(
            moments.mean.float(),
            torch.where(deviation > 0, deviation, torch.ones_like(deviation)).float(),
        )

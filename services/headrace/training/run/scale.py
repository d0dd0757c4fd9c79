"""Scales of columns, measured in one pass over their rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


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
        deviation = (moments.squares / moments.count).sqrt()
        return cls(
            moments.mean.float(),
            torch.where(deviation > 0, deviation, torch.ones_like(deviation)).float(),
        )


class Moments:
    """Count, mean and sum of squared deviations of columns, added up batch by batch in double precision.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, batch: Tensor) -> None:
        """Add [rows, columns]."""
        exact = batch.double()
        count, mean = len(exact), exact.mean(dim=0)
        total = self.count + count
        apart = mean - self.mean
        self.squares = (
            self.squares + ((exact - mean) ** 2).sum(dim=0) + apart**2 * (self.count * count / total)
        )
        self.mean = self.mean + apart * (count / total)
        self.count = total

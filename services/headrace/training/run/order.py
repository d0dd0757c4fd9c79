"""The order in which an epoch takes its rows, and a place in it to come back to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from headrace.datasets import Reader
from headrace.training.run.errors import explained


class Order(Protocol):
    """Batches of each epoch: features and labels."""

    @property
    def resumable(self) -> bool:
        """Whether a state may be taken within an epoch; else it is one of the epoch's beginning."""

    def rest(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give what is left of the present epoch; afterwards the next one begins. Raises RunError."""

    def state_dict(self) -> dict[str, Any]:
        """Return the place: tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place."""


class HeldOrder:
    """Rows in memory, shuffled whole."""

    resumable = False

    def __init__(self, features: Tensor, labels: Tensor, batch_rows: int, seed: int) -> None:
        self._features = features
        self._labels = labels
        self._batch_rows = batch_rows
        self._generator = torch.Generator().manual_seed(seed)

    def rest(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give a whole epoch."""
        rows = len(self._features)
        if self._batch_rows >= rows:
            # The whole split at once: its order does not matter.
            yield self._features, self._labels
            return
        order = torch.randperm(rows, generator=self._generator).to(self._features.device)
        for batch in torch.split(order, self._batch_rows):
            yield self._features[batch], self._labels[batch]

    def state_dict(self) -> dict[str, Any]:
        """Return what the next epoch's order is drawn from."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw the next order from there."""
        self._generator.set_state(state["generator"])


class StreamedOrder:
    """Rows read from their table, shuffled as the reader does."""

    resumable = True

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def rest(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read what is left of the epoch."""
        with explained():
            yield from cast("Iterator[tuple[Tensor, Tensor]]", iter(self._reader))

    def state_dict(self) -> dict[str, Any]:
        """Return the reader's place."""
        return dict(self._reader.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read on from there."""
        self._reader.load_state_dict(state)

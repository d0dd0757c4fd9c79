"""What the table of predictions needs from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.log_table import Column
from headrace.inference.use_cases.ports import LoggedPrediction


@dataclass(frozen=True, slots=True)
class TabledPrediction:
    """A prediction that becomes rows of a dataset, and whose version's it is."""

    prediction: LoggedPrediction
    dataset: str
    model: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row on its way, under an id that is the same whenever it is sent; `data` is the sample's JSON."""

    event_id: str
    dataset: str
    key: str
    time: datetime
    data: bytes
    traceparent: str


class LogTables(Protocol):
    """The datasets that predictions go to."""

    async def check(self, dataset: str) -> None:
        """Raises FailedPrecondition LOG_DATASET_TAKEN where it holds something else, HeadraceError."""

    async def columns(self, dataset: str, version: ServedVersion) -> Sequence[Column]:
        """Have the dataset take the version's predictions; the columns that may be sent.

        Not those that are personal in the data that the version was trained on, and were not when the dataset
        got them. Raises HeadraceError, FailedPrecondition LOG_DATASET_TAKEN among it.
        """


class TableRows(Protocol):
    """Where rows go."""

    async def __call__(self, rows: Sequence[TableRow]) -> None:
        """Send all of them, and return when the broker has them."""

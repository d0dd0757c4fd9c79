"""The erasure of a subject from a dataset, as it is kept while it goes on and as a record afterwards."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from headrace.ingestion.domain.key_ring import KeyRing

_USE: Final = "erasure"


class ErasureState(enum.Enum):
    """How far an erasure has come."""

    REQUESTED = "REQUESTED"
    REWRITTEN = "REWRITTEN"
    """The newest table version is without the subject: no dataset version is cut from one before it."""
    DONE = "DONE"
    """No file, no rejected event and no logged prediction holds the subject."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure. `subject` is the value of the dataset's key, sealed where the service has a key, and
    empty once it is done.

    `begin_version`: the table's version when it began; `table_version`: from which on no row is the
    subject's. `row_count`: rows of the newest table version, at the time; `prediction_count`: entries of
    the inference service's log; `versions`: those that held the subject.
    """

    id: str
    dataset: str
    subject: bytes
    sealed_by: str
    create_time: datetime
    state: ErasureState = ErasureState.REQUESTED
    begin_version: int | None = None
    table_version: int | None = None
    row_count: int = 0
    rejected_count: int = 0
    prediction_count: int = 0
    versions: tuple[int, ...] = ()
    end_time: datetime | None = None
    problem: str = ""
    """Why the last attempt did not end it."""

    def done(self, versions: tuple[int, ...], time: datetime) -> Erasure:
        """The record that stays."""
        return replace(
            self,
            subject=b"",
            sealed_by="",
            state=ErasureState.DONE,
            versions=versions,
            end_time=time,
            problem="",
        )


def requested(erasure: str, dataset: str, subject: str, time: datetime, keys: KeyRing) -> Erasure:
    """A new one."""
    if not keys.keys:
        return Erasure(erasure, dataset, subject.encode(), "", time)
    key_id, sealed = keys.seal(subject.encode(), _USE)
    return Erasure(erasure, dataset, sealed, key_id, time)


def subject_of(erasure: Erasure, keys: KeyRing) -> str:
    """Whom it is about. Raises FailedPrecondition PRIVACY_KEY_MISSING, DataLoss SEAL_BROKEN."""
    if not erasure.sealed_by:
        return erasure.subject.decode()
    return keys.open(erasure.sealed_by, erasure.subject, _USE).decode()

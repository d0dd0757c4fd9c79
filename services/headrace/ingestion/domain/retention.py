"""For how long a dataset keeps what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FieldViolation, InvalidArgument
from headrace.ingestion.domain.rejects import Rejects

_TIME: Final = "_event_time"
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_DAY: Final = timedelta(days=1)
_HOUR: Final = timedelta(hours=1)
# From there on a day more matters little.
_BY_DAYS: Final = timedelta(days=10)


@dataclass(frozen=True, slots=True)
class Retention:
    """Ages beyond which rows, versions and rejected events go; None: they stay for ever."""

    rows: timedelta | None = None
    versions: timedelta | None = None
    rejected: timedelta | None = None

    def oldest_event_time(self, now: datetime) -> datetime | None:
        """Rows with an earlier event time go; None: none does.

        It moves by whole days, or whole hours, so that files with rows on both sides of it are not written
        again each time that somebody looks.
        """
        if self.rows is None:
            return None
        step = _DAY if self.rows >= _BY_DAYS else _HOUR
        return _EPOCH + (now - self.rows - _EPOCH) // step * step


def check_retention(retention: Retention, rejects: Rejects) -> None:
    """Raises InvalidArgument INVALID_RETENTION."""
    if retention.rejected is not None and retention.rejected < rejects.window:
        description = (
            f"must be at least rejects.window, {rejects.window}, in which rejected events are counted"
        )
        field = "retention.rejected"
        raise InvalidArgument(
            "INVALID_RETENTION", f"{field} {description}", fields=[FieldViolation(field, description)]
        )


def is_older(before: datetime) -> pc.Expression:
    """Rows whose event time is earlier."""
    return pc.field(_TIME) < _moment(before)


def is_recent(before: datetime) -> pc.Expression:
    """All others: also those of which no event time is known."""
    return (pc.field(_TIME) >= _moment(before)) | pc.field(_TIME).is_null()


def _moment(time: datetime) -> pa.Scalar:
    return pa.scalar(time, pa.timestamp("us", "UTC"))

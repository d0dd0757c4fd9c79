"""How many rejected events are too many, and what they lead to then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from math import floor


@dataclass(frozen=True, slots=True)
class Rejects:
    """What a dataset's owner allows.

    More than `alert_share` of the events of a `window` raise an alert; with `hold_cut` no version is cut by
    itself that would lack more than that.
    """

    alert_share: float = 0.05
    window: timedelta = timedelta(minutes=10)
    hold_cut: bool = False


@dataclass(frozen=True, slots=True)
class RejectShare:
    """Events that were rejected and wait, and rows that were stored, in the same time."""

    rejected: int
    stored: int

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 of nothing."""
        return self.rejected / (self.rejected + self.stored) if self.rejected else 0.0

    def exceeds(self, alert_share: float) -> bool:
        """Whether that is more than what is allowed."""
        too_many = fewest_too_many(alert_share, self.stored)
        return too_many is not None and self.rejected >= too_many


@dataclass(frozen=True, slots=True)
class Episode:
    """A time in which too many of a dataset's events were rejected."""

    id: str
    dataset: str
    begin_time: datetime


def fewest_too_many(alert_share: float, stored: int) -> int | None:
    """The smallest number of rejected events that is too many beside so many rows; None where none is."""
    # As its owner wrote it: 7 of 100 are not more than 0.07, whatever the nearest double is.
    share = Fraction(str(alert_share))
    return floor(stored * share / (1 - share)) + 1 if share < 1 else None

"""When a version is cut by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from cronsim import CronSim, CronSimError

from headrace.errors import FieldViolation, InvalidArgument
from headrace.ingestion.domain.dataset import Uncut
from headrace.ingestion.domain.schema import Cut

CLOCK_SKEW: Final = timedelta(minutes=1)
"""How far the clocks of two instances may be apart."""


def check_cut(cut: Cut) -> None:
    """Raises InvalidArgument INVALID_CUT."""
    if not cut.schedule:
        return
    try:
        CronSim(cut.schedule, datetime.fromtimestamp(0, UTC))
    except CronSimError as error:
        field, fault = "cut.schedule", f'must be a cron expression such as "0 2 * * *": {error}'
        raise InvalidArgument(
            "INVALID_CUT", f"{field} {fault}", fields=[FieldViolation(field, fault)]
        ) from error


def is_due(cut: Cut, uncut: Uncut, now: datetime) -> bool:
    """Whether the rows beyond the last version make a version now.

    A function of state and time alone: asked again after a crash it gives the same answer, so that a cut
    that was due is never lost.
    """
    if not uncut.rows:
        return False
    if cut.rows and uncut.rows >= cut.rows:
        return True
    due = due_time(cut, uncut, now)
    return due is not None and now >= due


def due_time(cut: Cut, uncut: Uncut, now: datetime) -> datetime | None:
    """When the rows beyond the last version make a version by their age or by the schedule, if ever.

    Rows from a time to come were stored before a clock was set back. How old they are cannot be told, and
    waiting for that time may take for ever: they are due.
    """
    first = uncut.first_commit_time
    if first is None:
        return None
    by_age = first + timedelta(seconds=cut.seconds) if cut.seconds else None
    by_schedule = _next_time(cut.schedule, first) if cut.schedule else None
    times = [time for time in (by_age, by_schedule) if time is not None]
    if not times:
        return None
    return now if first > now + CLOCK_SKEW else min(times)


def _next_time(schedule: str, after: datetime) -> datetime | None:
    """The schedule's first moment after this one; None where there is none in the next fifty years."""
    return next(CronSim(schedule, after.astimezone(UTC)), None)

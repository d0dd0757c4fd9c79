"""When a version is cut by itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from headrace.ingestion.domain.dataset import Uncut
from headrace.ingestion.domain.schema import Cut

CLOCK_SKEW: Final = timedelta(minutes=1)
"""How far the clocks of two instances may be apart."""


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
    """When the rows beyond the last version make a version by their age, if ever.

    Rows from a time to come were stored before a clock was set back. How old they are cannot be told, and
    waiting for that time may take for ever: they are due.
    """
    first = uncut.first_commit_time
    if not cut.seconds or first is None:
        return None
    return now if first > now + CLOCK_SKEW else first + timedelta(seconds=cut.seconds)

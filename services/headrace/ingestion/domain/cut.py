"""When a version is cut by itself."""

from __future__ import annotations

from datetime import datetime, timedelta

from headrace.ingestion.domain.dataset import Uncut
from headrace.ingestion.domain.schema import Cut


def is_due(cut: Cut, uncut: Uncut, now: datetime) -> bool:
    """Whether the rows beyond the last version make a version now.

    A function of state and time alone: asked again after a crash it gives the same answer, so that a cut
    that was due is never lost.
    """
    if not uncut.rows:
        return False
    if cut.rows and uncut.rows >= cut.rows:
        return True
    due = due_time(cut, uncut)
    return due is not None and now >= due


def due_time(cut: Cut, uncut: Uncut) -> datetime | None:
    """When the rows beyond the last version make a version by their age, if ever."""
    if not cut.seconds or uncut.first_commit_time is None:
        return None
    return uncut.first_commit_time + timedelta(seconds=cut.seconds)

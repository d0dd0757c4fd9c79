"""The time, injected where a decision depends on it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Answers the present moment as an aware datetime in UTC."""


def utc_now() -> datetime:
    """Return the present moment, aware, in UTC: the `Clock` of production."""
    return datetime.now(UTC)

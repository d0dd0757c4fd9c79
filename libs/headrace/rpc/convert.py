"""Times and durations between Python and Protobuf. An unset message is None."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


@overload
def to_timestamp(moment: datetime) -> Timestamp: ...
@overload
def to_timestamp(moment: None) -> None: ...
@overload
def to_timestamp(moment: datetime | None) -> Timestamp | None: ...
def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """Return an aware datetime as a Timestamp; None stays None, which leaves a message field unset."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def from_timestamp(timestamp: Timestamp) -> datetime:
    """Return a Timestamp as an aware datetime in UTC."""
    return timestamp.ToDatetime(tzinfo=UTC)


@overload
def to_duration(length: timedelta) -> Duration: ...
@overload
def to_duration(length: None) -> None: ...
@overload
def to_duration(length: timedelta | None) -> Duration | None: ...
def to_duration(length: timedelta | None) -> Duration | None:
    """Return a timedelta as a Duration; None stays None, which leaves a message field unset."""
    if length is None:
        return None
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def from_duration(duration: Duration) -> timedelta:
    """Return a Duration as a timedelta."""
    return duration.ToTimedelta()

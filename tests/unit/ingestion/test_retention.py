from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.rejects import Rejects
from headrace.ingestion.domain.retention import Retention, check_retention, is_older, is_recent

DAY = timedelta(days=1)
NOW = datetime(2026, 3, 2, 13, 45, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kept", "oldest"),
    [
        (timedelta(hours=1), datetime(2026, 3, 2, 12, tzinfo=UTC)),
        (9 * DAY, datetime(2026, 2, 21, 13, tzinfo=UTC)),
        (10 * DAY, datetime(2026, 2, 20, tzinfo=UTC)),
        (90 * DAY, datetime(2025, 12, 2, tzinfo=UTC)),
        # Before the epoch it is no other way.
        (36500 * DAY, datetime(1926, 3, 27, tzinfo=UTC)),
    ],
)
def test_no_row_goes_that_is_not_old_enough_and_the_line_moves_by_whole_steps(
    kept: timedelta, oldest: datetime
) -> None:
    assert Retention(rows=kept).oldest_event_time(NOW) == oldest
    assert oldest <= NOW - kept


def test_what_is_not_declared_stays_for_ever() -> None:
    assert Retention(versions=DAY, rejected=DAY).oldest_event_time(NOW) is None


def test_each_row_is_either_old_or_not() -> None:
    times = [NOW - timedelta(microseconds=1), NOW, None, datetime(1, 1, 1, tzinfo=UTC)]
    rows = pa.table({"_event_time": pa.array(times, pa.timestamp("us", "UTC"))})
    assert rows.filter(is_older(NOW)).column("_event_time").to_pylist() == [times[0], times[3]]
    assert rows.filter(is_recent(NOW)).column("_event_time").to_pylist() == [NOW, None]


def test_rejected_events_are_kept_as_long_as_they_are_counted() -> None:
    rejects = Rejects(window=2 * DAY)
    check_retention(Retention(rejected=2 * DAY), rejects)
    check_retention(Retention(rows=DAY, versions=DAY), rejects)
    with pytest.raises(InvalidArgument, match=r"at least rejects\.window, 2 days") as refused:
        check_retention(Retention(rejected=DAY), rejects)
    assert (refused.value.reason, refused.value.fields[0].field) == (
        "INVALID_RETENTION",
        "retention.rejected",
    )

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from headrace.scheduling.use_cases.reconcile import Watch

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_gap_in_watching_begins_the_grace_anew() -> None:
    watch = Watch(timedelta(seconds=5), START, START)
    watch.seen(START + timedelta(seconds=4))
    watch.seen(START + timedelta(seconds=8))
    assert watch.since == START
    after_gap = START + timedelta(seconds=60)
    watch.seen(after_gap)
    assert watch.since == after_gap

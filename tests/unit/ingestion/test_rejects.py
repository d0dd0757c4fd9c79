from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.ingestion.domain.rejects import RejectShare, fewest_too_many


def test_the_share_is_that_of_all_events() -> None:
    assert RejectShare(5, 95).share == 0.05
    assert RejectShare(5, 0).share == 1
    assert RejectShare(0, 0).share == 0


@given(st.floats(0, 1), st.integers(0, 10**9))
def test_one_less_than_too_many_is_not_too_many(alert_share: float, stored: int) -> None:
    number = fewest_too_many(alert_share, stored)
    if number is None:
        assert alert_share == 1
        return
    assert RejectShare(number, stored).exceeds(alert_share)
    assert not RejectShare(number - 1, stored).exceeds(alert_share)
    assert RejectShare(number, stored).share >= alert_share
    assert RejectShare(number - 1, stored).share <= alert_share


def test_a_share_that_is_just_allowed_is_allowed() -> None:
    assert fewest_too_many(0.05, 95) == 6
    assert fewest_too_many(0.07, 93) == 8
    assert fewest_too_many(0, 95) == 1
    assert fewest_too_many(1, 95) is None

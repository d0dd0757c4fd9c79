"""Episodes of drift: when one begins and when it is over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.inference.domain.drift import Comparison, DriftRules, Finding
from headrace.inference.domain.drift_watch import NOTHING_COMPARED, Watch, WindowResult, watched

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def a_window(number: int, *, drifts: bool) -> WindowResult:
    end = BEGAN + timedelta(minutes=number)
    finding = Finding("x", Comparison.KOLMOGOROV_SMIRNOV, 0.5, 0.0, 1.0, drifts)
    return WindowResult(1, end - timedelta(minutes=1), end, 500, 500, (finding,))


def followed(drifts: list[bool], windows: int = 2) -> list[Watch]:
    numbers = count(1)
    watch, seen = Watch("live", 1, BEGAN), []
    for place, drift in enumerate(drifts):
        result = a_window(place, drifts=drift)
        watch = watched(watch, DriftRules(windows=windows), result, lambda: str(next(numbers)))
        assert watch.since == result.end
        seen.append(watch)
    return seen


@pytest.mark.parametrize(
    ("drifts", "episodes"),
    [
        ([True, False, True, False], ["", "", "", ""]),
        ([True, True, True], ["", "1", "1"]),
        ([True, True, False, True, False, False], ["", "1", "1", "1", "1", ""]),
        ([True, True, False, False, True, True], ["", "1", "1", "", "", "2"]),
    ],
)
def test_an_episode_takes_several_windows_in_a_row_to_begin_and_to_end(
    drifts: list[bool], episodes: list[str]
) -> None:
    assert [watch.episode for watch in followed(drifts)] == episodes


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_episodes_change_only_where_as_many_windows_agree(drifts: list[bool], windows: int) -> None:
    before = ""
    for place, watch in enumerate(followed(drifts, windows)):
        if bool(watch.episode) != bool(before):
            last = drifts[max(0, place - windows + 1) : place + 1]
            assert last == [bool(watch.episode)] * windows
        before = watch.episode


@pytest.mark.parametrize("drifts", [[], [True], [True, True], [True, True, False]])
def test_a_window_in_which_nothing_could_be_compared_says_so_and_changes_nothing_else(
    drifts: list[bool],
) -> None:
    before = followed(drifts)[-1] if drifts else Watch("live", 1, BEGAN)
    after = before
    for number in range(10, 15):
        empty = replace(a_window(number, drifts=False), findings=())
        after = watched(after, DriftRules(windows=2), empty, lambda: "another")
        assert after == replace(before, since=empty.end, message=NOTHING_COMPARED)
    # One that can be compared goes on from there.
    again = watched(after, DriftRules(windows=2), a_window(20, drifts=False), lambda: "another")
    assert (again.calm, again.message) == (before.calm + 1, "")

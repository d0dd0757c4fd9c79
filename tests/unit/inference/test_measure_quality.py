"""Quality by version and segment, from what a database would have counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.inference.domain.quality import Cell, Met, measures
from headrace.inference.use_cases.measure_quality import MeasureQuality, Quality
from headrace.inference.use_cases.ports import Counted, Group

BINARY = ("0", "1")


class Log:
    """Rows and units of work in memory."""

    def __init__(
        self,
        predictions: dict[Group, int],
        met: dict[Group, list[Met]],
        segments: int,
        classes: Sequence[str] = BINARY,
    ) -> None:
        self.counted = Counted(predictions, segments)
        self.met = met
        self.classes = classes
        self.asked: list[object] = []

    @property
    def rows(self) -> Log:
        return self

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        yield self

    async def deployment(self, name: str) -> Any:
        return SimpleNamespace(model=name)

    async def served_versions(self, model: str) -> list[Any]:
        return [SimpleNamespace(version=version, classes=self.classes) for version in (1, 2)]

    async def prediction_counts(self, deployment: str, version: int, largest: int) -> Counted:
        self.asked.append((deployment, version, largest))
        return self.counted

    async def answer_counts(
        self, deployment: str, version: int, segments: Collection[str]
    ) -> dict[Group, list[Met]]:
        self.asked.append((deployment, version, set(segments)))
        return self.met


async def measured(log: Log, **asked: int) -> Quality:
    return await MeasureQuality(log.begin)("live", **asked)


def right_and_wrong(right: int, wrong: int) -> list[Met]:
    return [Met(1.0, 1.0, right), Met(1.0, 0.0, wrong)]


async def test_groups_are_put_together_by_version_and_by_segment() -> None:
    log = Log(
        {Group(1, "a"): 10, Group(2, "a"): 5, Group(1, ""): 100, Group(2, None): 200},
        {Group(1, "a"): right_and_wrong(3, 1), Group(2, "a"): right_and_wrong(1, 1)},
        segments=9,
    )
    found = await measured(log, version=0, max_segments=1)
    assert log.asked == [("live", 0, 1), ("live", 0, {"a", ""})]
    assert (found.all.predictions, found.all.feedback, found.all.metrics["accuracy"]) == (315, 6, 4 / 6)
    assert {version: one.predictions for version, one in found.versions.items()} == {1: 110, 2: 205}
    # By size, and what is left over last, however much it is.
    assert [(one.segment, one.all.predictions, one.all.feedback) for one in found.segments] == [
        ("", 100, 0),
        ("a", 15, 6),
        (None, 200, 0),
    ]
    assert {version: one.metrics["accuracy"] for version, one in found.segments[1].versions.items()} == {
        1: 0.75,
        2: 0.5,
    }
    assert found.segment_count == 9


async def test_where_no_request_named_a_segment_there_is_none() -> None:
    found = await measured(Log({Group(1, ""): 10}, {Group(1, ""): right_and_wrong(1, 0)}, segments=0))
    assert not found.segments
    assert not found.gaps


async def test_only_segments_with_enough_labels_are_compared_and_none_that_is_no_kind_of_request() -> None:
    worst = right_and_wrong(0, 1000)
    met = {
        Group(1, "a"): right_and_wrong(30, 0),
        Group(1, "b"): right_and_wrong(15, 15),
        Group(1, "few"): right_and_wrong(0, 29),
        Group(1, ""): worst,
        Group(1, "?"): worst,
        Group(1, None): worst,
    }
    log = Log(dict.fromkeys(met, 1000), met, segments=9)
    found = await measured(log)
    assert (found.gaps["accuracy"].best, found.gaps["accuracy"].worst) == ("a", "b")
    # Of recall counts how many there were to find: 15 in b.
    assert "recall" not in found.gaps
    assert (await measured(log, min_labels=29)).gaps["accuracy"].worst == "few"
    assert "recall" in (await measured(log, min_labels=15)).gaps


async def test_a_segment_in_which_a_class_never_came_has_no_fewer_classes() -> None:
    met = {Group(1, "a"): [Met(0.0, 0.0, 40), Met(1.0, 1.0, 40)], Group(1, "b"): [Met(2.0, 1.0, 40)]}
    found = await measured(Log(dict.fromkeys(met, 40), met, segments=2, classes=("0", "1", "2")))
    assert [set(one.all.metrics) for one in found.segments] == [{"accuracy"}, {"accuracy"}]


async def test_of_numbers_the_mean_error_is_compared() -> None:
    met = {
        Group(1, "a"): [Met(1.0, 1.5, 20), Met(1.0, 1.4, 20)],
        Group(1, "b"): [Met(1.0, 9.0, 20), Met(1.0, 8.0, 20)],
    }
    found = await measured(Log(dict.fromkeys(met, 40), met, segments=2, classes=()))
    [gap] = found.gaps.items()
    assert (gap[0], gap[1].best, gap[1].worst, gap[1].is_certain) == ("mae", "a", "b", True)
    assert set(found.segments[0].all.metrics) == {"mae", "mse"}
    assert set(found.segments[0].all.intervals) == {"mae"}


names = st.one_of(st.none(), st.sampled_from(["", "?", "a", "b"]))
counts = st.dictionaries(
    st.builds(Group, st.sampled_from([1, 2]), names),
    st.lists(st.builds(Met, st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]), st.integers(1, 99))),
)


@given(counts)
async def test_nothing_is_lost_or_counted_twice(met: dict[Group, list[Met]]) -> None:
    log = Log({group: sum(one.count for one in found) for group, found in met.items()}, met, segments=2)
    found = await measured(log)
    for parts in (found.versions.values(), [one.all for one in found.segments]):
        assert sum(part.predictions for part in parts) == found.all.predictions
        assert sum(part.feedback for part in parts) == found.all.feedback
    for segment in found.segments:
        assert sum(one.feedback for one in segment.versions.values()) == segment.all.feedback
    # Accuracy is the parts' mean, by their labels.
    if found.all.feedback:
        right = sum(one.metrics.get("accuracy", 0) * one.feedback for one in (p.all for p in found.segments))
        assert right / found.all.feedback == pytest.approx(found.all.metrics["accuracy"])


def test_of_one_label_no_error_is_known() -> None:
    assert measures([Cell(0.0, 1.0, 1)], classes=False, binary=False) == {}
    assert measures([Cell(0.0, 1e300, 2)], classes=False, binary=False) == {}

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.ingestion.domain.recent_events import RecentEvents, name_hashes


def hashes_of(names: Sequence[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    ids = pa.chunked_array([pa.array(names, pa.string())])
    return name_hashes(pa.chunked_array([pa.repeat("tests", len(names))]), ids)


def expected(events: Sequence[tuple[int, str]], reach: int) -> list[bool]:
    """The definition: an earlier row of the same name, at most `reach` offsets before."""
    repeated: list[bool] = []
    for index, (offset, name) in enumerate(events):
        earlier = zip(events[:index], repeated, strict=True)
        repeated.append(
            any(
                name == other and offset - reach <= at and not was_repeated
                for (at, other), was_repeated in earlier
            )
        )
    return repeated


@given(
    gaps=st.lists(st.integers(1, 4), min_size=1, max_size=60),
    names=st.lists(st.sampled_from("abcdef"), min_size=60, max_size=60),
    cuts=st.sets(st.integers(0, 60)),
    reach=st.integers(1, 30),
)
def test_what_repeats_is_decided_by_offsets_and_not_by_batches(
    gaps: list[int], names: list[str], cuts: set[int], reach: int
) -> None:
    offsets = np.cumsum(np.array(gaps, np.int64))
    events = list(zip(offsets.tolist(), names[: len(gaps)], strict=True))
    recent = RecentEvents(reach)
    found: list[bool] = []
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < len(events)), len(events)]
    for start, end in pairwise(bounds):
        hashes, some = hashes_of([name for _, name in events[start:end]]), offsets[start:end]
        repeated = recent.repeated(hashes, some)
        # Asked again before it is remembered, as after a failed commit, it answers the same.
        assert (recent.repeated(hashes, some) == repeated).all()
        recent.add(hashes[~repeated], some[~repeated])
        found += repeated.tolist()
    assert found == expected(events, reach)


def test_an_event_that_is_read_again_repeats_nothing() -> None:
    recent, names, offsets = RecentEvents(100), hashes_of(["a", "b"]), np.array([3, 4], np.int64)
    recent.add(names, offsets)
    assert recent.repeated(names, offsets).tolist() == [False, False]
    assert recent.repeated(names, offsets + 2).tolist() == [True, True]


def test_what_is_remembered_again_takes_no_more_room() -> None:
    recent, names, offsets = RecentEvents(100), hashes_of(["a", "b"]), np.array([3, 4], np.int64)
    for _ in range(3):
        recent.add(names, offsets)
    assert len(recent) == 2
    recent.add(hashes_of(["a", "b", "c"]), np.array([3, 4, 5], np.int64))
    assert len(recent) == 3
    assert recent.repeated(hashes_of(["c"]), np.array([6], np.int64)).tolist() == [True]


def test_only_what_can_still_be_repeated_is_kept() -> None:
    recent = RecentEvents(1000)
    for start in range(0, 50_000, 500):
        recent.add(hashes_of([str(n) for n in range(start, start + 500)]), np.arange(start, start + 500))
    assert len(recent) < 4000
    last = hashes_of(["49001", "48000"])
    assert recent.repeated(last, np.array([50_000, 50_001], np.int64)).tolist() == [True, False]
    recent.forget_before(50_000)
    assert len(recent) == 0
    assert recent.repeated(last, np.array([50_000, 50_001], np.int64)).tolist() == [False, False]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("s", "1"), ("s", "2")),
        (("s", "1"), ("t", "1")),
        (("ab", "c"), ("a", "bc")),
        (("", "x\0"), ("", "x")),
    ],
)
def test_source_and_id_are_a_name_together(left: tuple[str, str], right: tuple[str, str]) -> None:
    sources, ids = zip(left, right, strict=True)
    hashes = name_hashes(pa.chunked_array([pa.array(sources)]), pa.chunked_array([pa.array(ids)]))
    assert (hashes[0] != hashes[1]).all()

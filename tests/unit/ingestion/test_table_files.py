from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from headrace.ingestion.domain.table_files import (
    DataFile,
    Rewrite,
    files_to_merge,
    table_versions_to_keep,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)
KIB = 1024


def files_of(*sizes: int) -> list[DataFile]:
    return [DataFile(f"f{number}", size, 1, number) for number, size in enumerate(sizes)]


def merged(*sizes: int, target: int = 1024 * KIB, min_files: int = 3) -> list[int]:
    chosen = files_to_merge(files_of(*sizes), target_bytes=target, min_files=min_files)
    return [int(file.path[1:]) for file in chosen]


def test_too_few_small_files_are_left_alone() -> None:
    assert merged(2 * KIB, 2 * KIB) == []


def test_small_files_are_merged_without_the_large_ones_beside_them() -> None:
    assert merged(2 * KIB, 300 * KIB, 3 * KIB, 2 * KIB) == [0, 2, 3]


def test_what_is_large_enough_is_never_written_again() -> None:
    assert merged(600 * KIB, 600 * KIB, 600 * KIB, 600 * KIB) == []


def test_a_merged_file_has_at_most_the_target_size_and_the_oldest_go_first() -> None:
    assert merged(400 * KIB, 400 * KIB, 400 * KIB, 400 * KIB) == [0, 1]


@given(st.lists(st.integers(1, 3_000_000), max_size=200))
def test_merging_until_nothing_is_chosen_ends_with_few_files(sizes: list[int]) -> None:
    target, min_files = 1_000_000, 4
    files = files_of(*sizes)
    while chosen := files_to_merge(files, target_bytes=target, min_files=min_files):
        assert len(chosen) >= 2
        size = sum(file.size for file in chosen)
        assert size <= target
        files = [file for file in files if file not in chosen]
        files.append(DataFile(f"m{len(files)}-{size}", size, len(chosen), 0))
    assert sum(file.size for file in files) == sum(sizes)
    small = [file for file in files if file.size <= target // 2]
    # Less than min_files in each tier; sizes up to half the target make so many tiers.
    assert len(small) <= (min_files - 1) * ((target // 2).bit_length() // 4 + 1)


def test_while_a_cut_or_a_reader_may_need_it_the_version_before_a_rewrite_is_kept() -> None:
    old, young = NOW - 2 * DAY, NOW - DAY / 2
    keep = table_versions_to_keep
    # No version was cut at or after the rewrite: one still may be, anywhere before it.
    assert keep([Rewrite(7, old)], [], now=NOW, retention=DAY) == [6]
    assert keep([Rewrite(7, old)], [5], now=NOW, retention=DAY) == [6]
    # One was, so that none will be before it; but somebody may have opened the table yesterday.
    assert keep([Rewrite(7, young)], [5, 8], now=NOW, retention=DAY) == [6]
    assert keep([Rewrite(7, old)], [5, 8], now=NOW, retention=DAY) == [5]
    assert keep([Rewrite(7, old)], [8], now=NOW, retention=DAY) == []


commits = st.lists(st.sampled_from(["append", "merge", "cut"]), max_size=60)


@given(commits, st.integers(0, 40))
def test_every_file_of_every_version_is_in_a_version_that_is_kept_or_in_the_newest(
    script: list[str], age: int
) -> None:
    """A table in memory: appends add a file, merges replace some, and cuts are what must stay readable."""
    states, rewrites, cut = [frozenset[str]()], [], list[int]()
    for number, step in enumerate(script):
        newest, time = states[-1], NOW + timedelta(hours=number)
        if step == "append":
            states.append(newest | {f"a{number}"})
        elif step == "merge" and newest:
            # Not all of them: some files live through several rewrites.
            gone = sorted(newest)[: 1 + number % len(newest)]
            rewrites.append(Rewrite(len(states), time))
            states.append(newest - set(gone) | {f"m{number}"})
        elif step == "cut":
            cut.append(len(states) - 1)
    now, retention = NOW + timedelta(hours=len(script)), timedelta(hours=age)
    kept = table_versions_to_keep(rewrites, cut, now=now, retention=retention)
    held = states[-1].union(*(states[version] for version in kept))
    last = cut[-1] if cut else 0
    for version in {*cut, *range(last, len(states))}:
        assert states[version] <= held
    for rewrite in rewrites:
        if now - rewrite.time < retention:
            assert states[rewrite.table_version - 1] <= held

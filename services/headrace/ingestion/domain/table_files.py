"""Which files of a table are merged, and which of its versions must stay readable. Pure decisions."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

# Sizes of one tier lie within a factor of sixteen.
_TIER_BITS: Final = 4


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a table: its path in the table's folder, its bytes and rows, when it was written."""

    path: str
    size: int
    rows: int
    modified: int


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A commit that took files out of the table without taking rows out, and when."""

    table_version: int
    time: datetime


def files_to_merge(files: Sequence[DataFile], *, target_bytes: int, min_files: int) -> Sequence[DataFile]:
    """Files of about one size that are worth one larger file, the oldest first; none where there are too few.

    Like with like (size-tiered compaction): a row is written again once for each tier, not each time that
    a few small files stand beside the large one that it is in.
    """
    tiers: defaultdict[int, list[DataFile]] = defaultdict(list)
    for file in files:
        if file.size <= target_bytes // 2:
            tiers[file.size.bit_length() // _TIER_BITS].append(file)
    for _, tier in sorted(tiers.items()):
        if len(tier) >= min_files:
            return _fitting(sorted(tier, key=lambda file: (file.modified, file.path)), target_bytes)
    return ()


def _fitting(files: Sequence[DataFile], target_bytes: int) -> Sequence[DataFile]:
    """So many of the first ones as make one file; two always fit."""
    chosen, size = [], 0
    for file in files:
        size += file.size
        if size > target_bytes:
            break
        chosen.append(file)
    return chosen


def table_versions_to_keep(
    rewrites: Sequence[Rewrite], cut: Sequence[int], *, now: datetime, retention: timedelta
) -> Sequence[int]:
    """Versions of a table whose files, with those of the newest one, are all that anybody may still read.

    `cut`: the table versions that dataset versions stand on, ascending. Between two rewrites files are only
    added, so that of the versions in between the last one that counts has the files of all of them. Before
    a rewrite that is

    - the version right before it, where a dataset version may still be cut there (an instance may have read
      the table long ago; it cannot cut below the last dataset version, whose number would be taken), or
      where readers that opened it then may still be reading;
    - otherwise the last one that a dataset version stands on.
    """
    last = cut[-1] if cut else -1
    kept: set[int] = set()
    for rewrite in rewrites:
        if rewrite.table_version > last or rewrite.time > now - retention:
            kept.add(rewrite.table_version - 1)
        else:
            position = bisect_left(cut, rewrite.table_version)
            if position:
                kept.add(cut[position - 1])
    return sorted(version for version in kept if version >= 0)

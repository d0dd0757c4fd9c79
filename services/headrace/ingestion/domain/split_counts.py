"""How many of a version's rows each split has, and of which classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FieldViolation, InvalidArgument
from headrace.ingestion.domain.schema import Field
from headrace.splits import NEVER, SPLITS, Shares, Splitter

# Shares are written in decimal: 0.7 + 0.15 + 0.15 is not exactly 1 in binary.
_TOLERANCE: Final = 1e-6
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class SplitCount:
    """Rows of one split; `unlabelled` of them have no label.

    `classes`: of each of the label's allowed values, as JSON, how many rows have it.
    """

    rows: int
    unlabelled: int
    classes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """By `shares`, those of each split in the order of `SPLITS`.

    By time, `validation_begins` and `test_begins` are the first moments of these splits; None: never.
    """

    shares: Shares
    splits: tuple[SplitCount, ...]
    validation_begins: datetime | None = None
    test_begins: datetime | None = None


def check_split(split: Shares | None) -> None:
    """Raise `InvalidArgument` INVALID_SPLIT where the shares do not sum to 1."""
    if split is None:
        return
    total = split.train + split.validation + split.test
    if not abs(total - 1.0) <= _TOLERANCE:
        why = f"the shares sum to {total:g} and must sum to 1"
        raise InvalidArgument("INVALID_SPLIT", f"split: {why}", fields=[FieldViolation("split", why)])


def is_countable_on(base: SplitCounts | None, split: Shares | None) -> bool:
    """Whether counts by `split` of `base`'s rows and more need only the rows that are more.

    By time they need all rows, but those are not the profile's business.
    """
    return split is None or split.by == "time" or (base is not None and base.shares == split)


def moment_of(microseconds: int) -> datetime | None:
    """When a split begins; None: never."""
    return None if microseconds == NEVER else _EPOCH + timedelta(microseconds=microseconds)


class SplitCounter:
    """Counts rows on top of those of `base`, whose splitter was the same."""

    def __init__(self, label: Field, splitter: Splitter, base: SplitCounts | None = None) -> None:
        self._label = label
        self._splitter = splitter
        self._classes = [json.dumps(value) for value in label.allowed_values]
        known = base.splits if base else [SplitCount(0, 0)] * len(SPLITS)
        self._rows = np.array([count.rows for count in known], np.int64)
        self._unlabelled = np.array([count.unlabelled for count in known], np.int64)
        # A class that was allowed later had no rows before.
        self._by_class = np.array(
            [[dict(count.classes).get(value, 0) for value in self._classes] for count in known], np.int64
        )

    def through(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Count the batches on their way to somebody else."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch's rows."""
        splits = self._splitter.assign(batch.column(self._splitter.column)).astype(np.int64)
        labels = batch.column(self._label.name)
        missing = labels.is_null().to_numpy(zero_copy_only=False)
        self._rows += np.bincount(splits, minlength=len(SPLITS))
        self._unlabelled += np.bincount(splits[missing], minlength=len(SPLITS))
        if self._classes:
            values = pa.array(self._label.allowed_values).cast(labels.type)
            places = pc.index_in(labels, value_set=values)
            known = places.is_valid().to_numpy(zero_copy_only=False)
            cells = splits[known] * len(self._classes) + places.drop_null().to_numpy()
            self._by_class += np.bincount(cells, minlength=self._by_class.size).reshape(self._by_class.shape)

    def counts(
        self,
        shares: Shares,
        validation_begins: datetime | None = None,
        test_begins: datetime | None = None,
    ) -> SplitCounts:
        """What was counted."""
        splits = tuple(
            SplitCount(int(rows), int(unlabelled), tuple(zip(self._classes, map(int, classes), strict=True)))
            for rows, unlabelled, classes in zip(self._rows, self._unlabelled, self._by_class, strict=True)
        )
        return SplitCounts(shares, splits, validation_begins, test_begins)

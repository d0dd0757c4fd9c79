"""Splits and their counts between the domain's types and the contract's messages."""

from __future__ import annotations

from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.ingestion.domain.split_counts import SplitCount, SplitCounts
from headrace.rpc.convert import from_timestamp, to_timestamp
from headrace.splits import SPLITS, By, Shares

_BY: Final[dict[int, By]] = {
    api.SPLIT_BY_UNSPECIFIED: "key",
    api.SPLIT_BY_KEY: "key",
    api.SPLIT_BY_TIME: "time",
}
_BY_NUMBERS: Final = {"key": api.SPLIT_BY_KEY, "time": api.SPLIT_BY_TIME}


def split_from_message(message: api.Split) -> Shares:
    """The split of a message that keeps the proto's own rules."""
    return Shares(message.train, message.validation, message.test, _BY[message.by])


def split_to_message(split: Shares) -> api.Split:
    """The same in the contract's words."""
    return api.Split(
        train=split.train, validation=split.validation, test=split.test, by=_BY_NUMBERS[split.by]
    )


def split_counts_from_message(message: api.SplitCounts) -> SplitCounts:
    """The counts of a message that `split_counts_to_message` made."""
    return SplitCounts(
        split_from_message(message.split),
        tuple(
            SplitCount(
                count.row_count,
                count.unlabelled_count,
                tuple((item.value, item.row_count) for item in count.classes),
            )
            for count in message.counts
        ),
        from_timestamp(message.validation_begin_time) if message.HasField("validation_begin_time") else None,
        from_timestamp(message.test_begin_time) if message.HasField("test_begin_time") else None,
    )


def split_counts_to_message(counts: SplitCounts) -> api.SplitCounts:
    """The same in the contract's words."""
    return api.SplitCounts(
        split=split_to_message(counts.shares),
        counts=[
            api.SplitCount(
                split=name,
                row_count=count.rows,
                unlabelled_count=count.unlabelled,
                classes=[api.ClassCount(value=value, row_count=rows) for value, rows in count.classes],
            )
            for name, count in zip(SPLITS, counts.splits, strict=True)
        ],
        validation_begin_time=to_timestamp(counts.validation_begins),
        test_begin_time=to_timestamp(counts.test_begins),
    )

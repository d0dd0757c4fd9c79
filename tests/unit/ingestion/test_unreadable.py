"""Record batches that cannot be read: one rejection each, whatever fails around it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.records import Sent, batch_of, parts_of
from tests.unit.ingestion.test_store_batch import NOW, World, store_batch

from headrace.ingestion import translation
from headrace.ingestion.domain.dataset import SourcePartition
from headrace.ingestion.domain.rejection import Reason, Rejection
from headrace.ingestion.domain.source_topic import Feed, SourceTopic
from headrace.ingestion.use_cases.ports import Span
from headrace.ingestion.use_cases.unreadable import rejection_of
from headrace.messaging.record_columns import Bounds, Unreadable

SOURCE = SourcePartition("cluster", "t", 0)
SPAN = Span(SOURCE, 5, 8)


def unreadable(*, codec: int = 0, most: int = 1000, cut: int = 0) -> Unreadable:
    """A record batch at the offsets 5 to 7, without its last bytes."""
    whole = batch_of(*(Sent(offset, b"secret" * 100) for offset in (5, 6, 7)), codec=codec)
    batch = replace(whole, data=whole.data[: len(whole.data) - cut])
    [part] = parts_of([batch], Bounds(100, most, most))
    assert part.unreadable is not None
    return part.unreadable


def malformed() -> Unreadable:
    return unreadable(codec=4, cut=1)


async def reject(world: World, *, span: Span = SPAN) -> list[Rejection]:
    return list((await store_batch(world).reject(malformed(), span, None)).rejections)


def test_an_entry_says_which_offsets_it_accounts_for_and_has_the_bytes() -> None:
    found = malformed()
    rejection = rejection_of(found, SPAN, None)
    assert (rejection.offset, rejection.next_offset, rejection.is_batch) == (5, 8, True)
    assert rejection.payload == found.batch.data
    assert rejection.verdict.reason is Reason.MALFORMED_BATCH
    assert rejection.verdict.message.startswith("the record batch at offsets 5 to 7 cannot be read: zstd: ")
    # Whatever it had was nobody's yet.
    assert (rejection.dataset, rejection.event_id, rejection.key) == ("", "", b"")


def test_a_record_batch_that_is_too_large_says_how_large_it_may_be() -> None:
    rejection = rejection_of(unreadable(codec=4), SPAN, None)
    assert rejection.verdict.reason is Reason.OVERSIZE_BATCH
    assert rejection.verdict.rule == "max_record_batch_bytes"
    assert "has more than 1000 bytes, decompressed" in rejection.verdict.message


def test_of_a_dataset_s_own_topic_it_is_the_dataset_s() -> None:
    feed = Feed("scans", SourceTopic("t"))
    assert rejection_of(malformed(), SPAN, feed).dataset == "scans"


@pytest.mark.parametrize(("start", "first"), [(0, 5), (6, 6)])
def test_an_entry_begins_where_its_batch_does_or_where_that_was_read_from(start: int, first: int) -> None:
    rejection = rejection_of(malformed(), replace(SPAN, start=start), None)
    assert (rejection.offset, rejection.next_offset) == (first, 8)


def test_no_word_about_it_has_a_value_of_its_records() -> None:
    rejection = rejection_of(unreadable(cut=1, most=5000), SPAN, None)
    assert "secret" not in rejection.verdict.message
    assert b"secret" in rejection.payload


def test_whoever_reads_the_list_is_told_up_to_where_it_accounts() -> None:
    message = translation.rejected_to_message(rejection_of(malformed(), SPAN, None), NOW)
    assert (message.offset, message.next_offset) == (5, 8)


async def test_it_is_rejected_once_and_told_of_whenever_it_is_read() -> None:
    world = World()
    [rejection] = await reject(world)
    assert (rejection.offset, list(world.kept), world.published) == (5, [("t", 0, 5)], [6])
    assert await reject(world) == []
    assert (len(world.kept), world.published) == (1, [6, 6])


async def test_what_is_read_from_its_middle_on_is_rejected_already() -> None:
    world = World()
    await reject(world)
    assert await reject(world, span=replace(SPAN, start=7)) == []
    assert len(world.kept) == 1


async def test_a_failure_behind_the_rejection_leaves_it_counted_once() -> None:
    world = World(refuse_events=1, spans=[[]])
    store = store_batch(world)
    with pytest.raises(ConnectionError, match="no broker"):
        await store.reject(malformed(), SPAN, None)
    stored = await store.reject(malformed(), SPAN, None)
    assert [rejection.offset for rejection in stored.rejections] == [5]
    assert (len(world.kept), world.published) == (1, [6])

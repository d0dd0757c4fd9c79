"""Events at which the service itself fails, and their neighbours."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import Sent
from tests.unit.ingestion.test_judge_batch import DATASETS, offsets_of, opened, sent
from tests.unit.ingestion.test_store_batch import World, a_batch, store_batch

from headrace.errors import FailedPrecondition
from headrace.ingestion.domain.columnar import ColumnReader
from headrace.ingestion.domain.rejection import Reason
from headrace.ingestion.use_cases.envelopes import Opened
from headrace.ingestion.use_cases.judge_apart import MOST_FAULTS, judge_apart
from headrace.ingestion.use_cases.judge_batch import Judge, Judged


def events(count: int) -> list[Sent]:
    """Every third one names a dataset that there is not, and every fifth one is no event."""
    return [
        replace(sent(offset), headers=[])
        if offset % 5 == 4
        else unknown(offset)
        if offset % 3 == 2
        else sent(offset)
        for offset in range(count)
    ]


def unknown(offset: int) -> Sent:
    one = sent(offset)
    return replace(one, headers=[*one.headers, ("ce_subject", b"another")])


class Judging:
    """A judge that fails at some events."""

    def __init__(self, failing: Collection[int], error: Exception | None = None) -> None:
        self.calls = 0
        self._failing = set(failing)
        self._error = error or ZeroDivisionError("a secret")

    def __call__(self, some: Opened) -> Judged:
        self.calls += 1
        indexes = {index for samples in some.samples for index in samples.indexes.tolist()}
        if self._failing & (indexes | {index for index, _ in some.refused}):
            raise self._error
        return Judge().judge("cluster", some, DATASETS)


@given(st.integers(1, 20), st.sets(st.integers(0, 19)))
def test_each_event_is_judged_or_rejected_once_and_in_its_place(count: int, failing: set[int]) -> None:
    failing = {index for index in failing if index < count}
    judged = judge_apart("cluster", opened(events(count)), Judging(failing))
    assert offsets_of(judged) == list(range(count))
    whole = Judge().judge("cluster", opened(events(count)), DATASETS)
    internal = {one.offset for one in judged.rejections if one.verdict.reason is Reason.INTERNAL}
    assert internal == failing
    rows = judged.rows["known"].column("_offset").to_pylist() if judged.rows else []
    expected = whole.rows["known"].column("_offset").to_pylist() if whole.rows else []
    assert rows == [offset for offset in expected if offset not in failing]


def test_what_is_sound_is_judged_once() -> None:
    judging = Judging(())
    judge_apart("cluster", opened(events(1000)), judging)
    assert judging.calls == 1


def test_one_event_among_many_is_soon_found() -> None:
    judging = Judging([617])
    judge_apart("cluster", opened(events(1000)), judging)
    assert judging.calls < 25


def test_an_event_that_fails_is_kept_whole_and_nothing_of_it_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        [rejection] = judge_apart("cluster", opened([sent()]), Judging([0])).rejections
    assert rejection.payload == sent().value
    assert (rejection.dataset, rejection.event_id) == ("known", "e1")
    assert "(ZeroDivisionError)" in rejection.verdict.message
    assert "ZeroDivisionError in __call__, line" in caplog.text
    assert "secret" not in rejection.verdict.message + caplog.text


def test_where_many_events_fail_none_of_them_is_what_is_at_fault() -> None:
    with pytest.raises(ZeroDivisionError):
        judge_apart("cluster", opened(events(MOST_FAULTS + 1)), Judging(range(MOST_FAULTS + 1)))


@pytest.mark.parametrize("error", [FailedPrecondition("PRIVACY_KEY_MISSING", "no key"), MemoryError()])
def test_what_is_no_events_own_rejects_none(error: Exception) -> None:
    with pytest.raises(type(error)):
        judge_apart("cluster", opened(events(2)), Judging([0], error))


async def test_a_batch_with_an_event_at_which_the_service_fails_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_json = ColumnReader.read_json

    def fails_at_the_last(self: ColumnReader, payloads: object) -> object:
        if b'{"id":"p","a":2}' in list(payloads):  # type: ignore[call-overload]
            raise ZeroDivisionError
        return read_json(self, payloads)  # type: ignore[arg-type]

    monkeypatch.setattr(ColumnReader, "read_json", fails_at_the_last)
    world = World()
    stored = await store_batch(world)(a_batch())
    assert stored.rows == {"known": 1}
    assert [(one.offset, one.verdict.reason) for one in stored.rejections] == [
        (1, Reason.SCHEMA_VIOLATION),
        (2, Reason.INTERNAL),
    ]

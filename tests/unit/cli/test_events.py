"""When reading topics ends, with a broker and a clock that do what a test says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
from aiokafka import ConsumerRecord

from headrace.cli import events

BEGAN = 1_800_000_000.0


class Clock:
    """Stands in for the module `time`; the broker moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self) -> float:
        return BEGAN + self.seconds

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class Record:
    """As much of a ConsumerRecord as is decoded; published `age` seconds before reading began."""

    key: bytes
    age: float = 10.0
    topic: str = "t"
    partition: int = 0
    offset: int = 0
    value: bytes = b""
    headers: Sequence[tuple[str, bytes]] = field(default_factory=tuple)

    @property
    def timestamp(self) -> int:
        return int((BEGAN - self.age) * 1000)


class Broker:
    """A consumer whose fetches take so many seconds and bring these records; then nothing, or one each."""

    def __init__(
        self, clock: Clock, fetches: Sequence[tuple[float, list[Record]]], endless: Record | None = None
    ) -> None:
        self._clock = clock
        self._fetches = list(fetches)
        self._endless = endless

    def __call__(self, *_topics: str, **_options: object) -> Broker:
        return self

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def getmany(self, timeout_ms: int) -> dict[str, list[Record]]:
        rest = (timeout_ms / 1000, [self._endless] if self._endless else [])
        seconds, records = self._fetches.pop(0) if self._fetches else rest
        self._clock.seconds += seconds
        return {"t": records} if records else {}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(events, "time", clock)
    return clock


async def keys(
    monkeypatch: pytest.MonkeyPatch, broker: Broker, *, follow: bool = False, at_most: int = 100
) -> list[str]:
    monkeypatch.setattr(events, "AIOKafkaConsumer", broker)
    seen: list[str] = []
    async for row in events.read("nowhere:9092", ["t"], follow=follow, from_beginning=True):
        seen.append(str(row["key"]))
        if len(seen) == at_most:
            break
    return seen


def test_of_a_claim_check_is_shown_where_its_payload_lies() -> None:
    headers = (("content-type", b"application/json"), ("ce_dataref", b"s3://bucket/claims/x"))
    row = events.decoded(cast("ConsumerRecord[bytes, bytes]", Record(b"k", headers=headers)))
    assert row["data"] == "s3://bucket/claims/x"


async def test_a_slow_first_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    fetches = [
        (1.5, []),
        (1.5, []),
        (1.5, [Record(b"a")]),
        (0.9, [Record(b"b")]),
        (1.1, []),
        (0, [Record(b"c")]),
    ]
    assert await keys(monkeypatch, Broker(clock, fetches)) == ["a", "b"]


async def test_an_empty_topic_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    assert await keys(monkeypatch, Broker(clock, [])) == []
    assert clock.seconds == pytest.approx(events.FIRST_SILENCE_SECONDS, abs=0.3)


async def test_a_busy_topic_is_read_up_to_the_moment_of_the_start(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    later = Record(b"later", age=-0.1)
    broker = Broker(clock, [(0.2, [Record(b"a"), later]), (0.2, [Record(b"b", age=0)])], endless=later)
    assert await keys(monkeypatch, broker) == ["a", "b"]
    assert clock.seconds < 2 * events.SILENCE_SECONDS


async def test_one_partition_that_is_busy_does_not_cut_the_others_short(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    fetches = [(1.5, [Record(b"later", age=-1)]), (0.8, [Record(b"a")])]
    assert await keys(monkeypatch, Broker(clock, fetches)) == ["a"]


async def test_following_takes_what_comes_later_and_never_ends(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    broker = Broker(clock, [(0.1, [Record(b"a")]), (60, [])], endless=Record(b"later", age=-60))
    assert await keys(monkeypatch, broker, follow=True, at_most=3) == ["a", "later", "later"]

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

import pytest

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.use_cases.append_samples import AppendSamples, NewSample
from headrace.ingestion.use_cases.envelopes import event_size
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.messaging.events import Event, encode
from headrace.messaging.record_batch import Record
from headrace.messaging.topics import SAMPLES
from headrace.telemetry import tracing

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))


@dataclass
class FakeWorld:
    """A catalogue of one dataset, and a topic."""

    published: list[tuple[str, Event]] = field(default_factory=list)

    async def datasets(self, names: Collection[str]) -> Mapping[str, Dataset]:
        return {name: Dataset(name, SCHEMA, Cut(), 1, NOW, NOW) for name in names}

    async def publish_all(self, topic: str, keyed: Iterable[tuple[str, Event]]) -> None:
        self.published += keyed

    async def append(self, json: bytes, max_event_bytes: int) -> int:
        async def samples() -> AsyncIterator[NewSample]:
            yield NewSample("known", "e1", json)

        use_case = AppendSamples(
            cast("Catalogue", self), self, clock=lambda: NOW, max_event_bytes=max_event_bytes
        )
        return await use_case(samples())


def size_of(key: str, event: Event) -> int:
    # Where this process records no spans, the event has no trace yet: the producer gives it one.
    headers, value = encode(replace(event, traceparent=event.traceparent or tracing.new_traceparent()))
    return event_size(Record(SAMPLES, 0, 0, 0, key.encode(), value, headers))


async def test_a_sample_is_measured_as_its_consumer_measures_it() -> None:
    world, sample = FakeWorld(), b'{"id": "p\xc3\xa4tient"}'
    assert await world.append(sample, 10_000) == 1
    [(key, event)] = world.published
    assert key == "pätient"
    size = size_of(key, event)
    assert await world.append(sample, size) == 1
    with pytest.raises(InvalidArgument) as caught:
        await world.append(sample, size - 1)
    assert caught.value.reason == "OVERSIZE_EVENT"
    assert len(world.published) == 2

"""Samples by gRPC onto the samples topic, where all samples meet the same validation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import orjson

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.envelopes import JSON_TYPE, SAMPLE_TYPE, header_bytes
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.messaging.dataschema import ATTRIBUTE, dataschema
from headrace.messaging.events import Event, encode
from headrace.messaging.topics import SAMPLES
from headrace.runtime.clock import Clock
from headrace.runtime.ids import new_id
from headrace.telemetry import names, tracing

SOURCE: Final = "headrace/ingestion"
# What is held before it is published; the client waits meanwhile.
_CHUNK_SAMPLES: Final = 500
_CHUNK_BYTES: Final = 4 * 1024 * 1024

# The header traceparent, which an event gets when it is published.
_TRACE_BYTES: Final = len("traceparent") + len("00-") + 32 + len("-") + 16 + len("-01")


@dataclass(frozen=True, slots=True)
class NewSample:
    """A sample to be published; an empty `event_id` is replaced by a fresh one.

    `schema_version`: by which it was written; 0: it does not say.
    """

    dataset: str
    event_id: str
    json: bytes
    schema_version: int = 0


class EventPublisher(Protocol):
    """Puts events on topics."""

    async def publish_all(self, topic: str, keyed: Iterable[tuple[str, Event]]) -> None:
        """Publish events with their keys, and return when the broker has them all."""


class AppendSamples:
    """The use case."""

    def __init__(
        self, catalogue: Catalogue, publisher: EventPublisher, *, clock: Clock, max_event_bytes: int
    ) -> None:
        self._catalogue = catalogue
        self._publisher = publisher
        self._clock = clock
        self._max_event_bytes = max_event_bytes

    async def __call__(self, samples: AsyncIterator[NewSample]) -> int:
        """Publish all samples; return how many, once the broker has them.

        Raises NotFound DATASET_NOT_FOUND, InvalidArgument OVERSIZE_EVENT. Samples before the one at fault
        may have been published.
        """
        datasets: dict[str, Dataset] = {}
        keyed: list[tuple[str, Event]] = []
        size = count = 0
        async for sample in samples:
            if sample.dataset not in datasets:
                datasets[sample.dataset] = await require_dataset(self._catalogue, sample.dataset)
            event = self._event(sample)
            key = _entity(sample.json, datasets[sample.dataset].schema.key) or event.id
            self._check_size(key, event)
            keyed.append((key, event))
            count += 1
            size += len(sample.json)
            if len(keyed) >= _CHUNK_SAMPLES or size >= _CHUNK_BYTES:
                await self._publish(keyed)
                keyed, size = [], 0
        if keyed:
            await self._publish(keyed)
        return count

    async def _publish(self, keyed: Sequence[tuple[str, Event]]) -> None:
        with tracing.span(
            names.SPAN_PUBLISH + SAMPLES,
            kind=tracing.SpanKind.PRODUCER,
            attributes={
                names.MESSAGING_SYSTEM: "kafka",
                names.MESSAGING_OPERATION_NAME: "publish",
                names.MESSAGING_OPERATION_TYPE: "send",
                names.MESSAGING_DESTINATION: SAMPLES,
                names.MESSAGING_BATCH_COUNT: len(keyed),
            },
        ):
            traceparent = tracing.current_traceparent()
            await self._publisher.publish_all(
                SAMPLES, [(key, replace(event, traceparent=traceparent)) for key, event in keyed]
            )

    def _check_size(self, key: str, event: Event) -> None:
        """Refuse here what the consumer would: an answer is sooner read than the list of rejected events."""
        headers, value = encode(event)
        size = len(key.encode()) + len(value) + header_bytes(headers) + _TRACE_BYTES
        if size > self._max_event_bytes:
            raise InvalidArgument(
                "OVERSIZE_EVENT",
                f"a sample has {size} bytes with key and headers, and {self._max_event_bytes} is the most",
            )

    def _event(self, sample: NewSample) -> Event:
        return Event(
            id=sample.event_id or new_id(),
            source=SOURCE,
            type=SAMPLE_TYPE,
            subject=sample.dataset,
            time=self._clock(),
            data=sample.json,
            content_type=JSON_TYPE,
            extensions={ATTRIBUTE: dataschema(sample.dataset, sample.schema_version)}
            if sample.schema_version
            else {},
        )


def _entity(payload: bytes, key: str) -> str:
    """The sample's entity; "" where it has none, which is for the validation to say."""
    try:
        sample = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return ""
    entity = sample.get(key) if isinstance(sample, dict) else None
    return entity if isinstance(entity, str) else ""

"""The events about rejected ones, on their topic."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from headrace.events.ingestion.v1 import events_pb2
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.storage.repository import SOURCE
from headrace.ingestion.translation import write_rejected
from headrace.messaging.events import Event, encode, protobuf_event
from headrace.messaging.producer import Encoded, Producer
from headrace.messaging.topics import REJECTED_SAMPLES

SAMPLE_REJECTED: Final = "headrace.ingestion.sample-rejected.v1"
# Of a rejected event's key, so much is the key of the event about it; the message holds all of it.
_MAX_KEY_BYTES: Final = 4096


class KafkaRejectedEvents:
    """Publishes SampleRejected."""

    def __init__(self, producer: Producer, *, max_bytes: int) -> None:
        """`max_bytes` bounds what of a rejected event is published; the table keeps all of it."""
        self._producer = producer
        self._max_bytes = max_bytes

    def encode(self, rejections: Sequence[Rejection], reject_time: datetime) -> Sequence[Encoded]:
        """Write one for each."""
        keyed = [rejected_event(rejection, reject_time, self._max_bytes) for rejection in rejections]
        return [(REJECTED_SAMPLES, key, *encode(event)) for key, event in keyed]

    async def publish(self, events: Sequence[Encoded]) -> None:
        """Publish what was written. Raises aiokafka's KafkaError where the broker refuses it."""
        await self._producer.publish_batches(events)


def rejected_event(rejection: Rejection, reject_time: datetime, max_bytes: int) -> tuple[str, Event]:
    """The event about a rejected one, and its key."""
    message = events_pb2.SampleRejected()
    write_rejected(message.rejected, rejection, reject_time, max_bytes)
    event = protobuf_event(
        message,
        type=SAMPLE_REJECTED,
        source=SOURCE,
        subject=rejection.dataset,
        # An entry's event, however often a crash makes it be published.
        id=f"rejected-{rejection.id}",
        time=reject_time,
        # The rejected event's own trace, not that of the batch that it happened to be in.
        traceparent=rejection.traceparent or None,
    )
    # A sealed event's own key is sealed, too.
    key = event.id if rejection.sealed_by else rejection.key[:_MAX_KEY_BYTES].decode(errors="replace")
    return key, event

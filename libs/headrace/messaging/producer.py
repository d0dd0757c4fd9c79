"""Publishing events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeAlias

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder

from headrace.messaging.events import Event, Headers, encode
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 16 << 20
# Of one partition, sent together: many small events cost half as much as in aiokafka's 16 KiB.
_BATCH_BYTES = 256 << 10
STOP_SECONDS = 5.0

# Topic, key, headers, value.
Encoded: TypeAlias = tuple[str, str | bytes | None, Headers, bytes]


class Producer:
    """Publishes events and returns when the broker has them (acks=all).

    Records of one call and key keep their order. Raises aiokafka's KafkaError where the broker refuses them.
    A broker that is away is waited for: some 40 s without idempotence, and with it for ever, since a record
    that is given up would leave a gap in the sequence. Whoever cannot wait sets a timeout; what was under way
    may then still arrive. The end of the context waits five seconds for that, and drops the rest.
    """

    def __init__(self, bootstrap: str, *, client_id: str, idempotence: bool) -> None:
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._idempotence = idempotence
        self._producer: AIOKafkaProducer | None = None
        self._partition_of = DefaultPartitioner()

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=self._idempotence,
            max_request_size=MAX_REQUEST_BYTES,
            max_batch_size=_BATCH_BYTES,
            linger_ms=2,
        )
        try:
            await self._producer.start()
        except BaseException:
            # A producer that could not connect still holds a client.
            await self._producer.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._producer is not None
        stopping = asyncio.create_task(self._producer.stop())
        try:
            done, _ = await asyncio.wait([stopping], timeout=STOP_SECONDS)
            if done:
                stopping.result()
            else:
                # It waits for every record, whatever becomes of the broker.
                logger.warning("records were dropped: the broker has not taken them")
                self._producer._sender.sender_task.cancel()  # noqa: SLF001 - there is no other way
                await self._producer.client.close()
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)

    async def publish(self, topic: str, key: str, event: Event) -> None:
        """Publish one event, in a span of its own that the event's consumers continue."""
        with tracing.span(
            names.SPAN_PUBLISH + topic,
            kind=tracing.SpanKind.PRODUCER,
            parent=event.traceparent or None,
            attributes=_attributes(topic, event.id),
        ):
            carried = replace(event, traceparent=tracing.current_traceparent() or event.traceparent)
            await self.publish_encoded([(topic, key, *encode(carried))])

    async def publish_all(self, topic: str, keyed: Iterable[tuple[str, Event]]) -> None:
        """Publish many events, pipelined, each in its own trace context."""
        await self.publish_encoded([(topic, key, *encode(event)) for key, event in keyed])

    async def publish_encoded(self, records: Sequence[Encoded]) -> None:
        """Publish records as they are, and wait for every acknowledgement."""
        assert self._producer is not None, "use the producer as a context manager"
        pending: list[asyncio.Future[object]] = []
        refused: Exception | None = None
        for topic, key, headers, value in records:
            try:
                pending.append(
                    await self._producer.send(
                        topic, value, key=key.encode() if isinstance(key, str) else key, headers=headers
                    )
                )
            except KafkaError as error:
                # Those before it are on their way; those behind it must not overtake it.
                refused = error
                break
        await _acknowledged(pending)
        if refused is not None:
            raise refused

    async def publish_batches(self, records: Sequence[Encoded]) -> None:
        """The same for many small records, none near the largest request, at a third of the cost.

        aiokafka makes some objects and callbacks for each record that it sends, and as many for a batch.
        """
        assert self._producer is not None, "use the producer as a context manager"
        partitions = {
            topic: sorted(await self._producer.partitions_for(topic)) for topic in {it[0] for it in records}
        }
        batches: dict[tuple[str, int], BatchBuilder] = {}
        pending: list[asyncio.Future[object]] = []
        refused: Exception | None = None
        try:
            for topic, key, headers, value in records:
                raw = key.encode() if isinstance(key, str) else key
                place = topic, self._partition_of(raw, partitions[topic], partitions[topic])
                batch = batches.get(place)
                if batch is not None and not _append(batch, raw, headers, value):
                    pending.append(await self._producer.send_batch(batch, topic, partition=place[1]))
                    batch = None
                if batch is None:
                    batch = batches[place] = self._producer.create_batch()
                    _append(batch, raw, headers, value)
            for (topic, partition), batch in batches.items():
                pending.append(await self._producer.send_batch(batch, topic, partition=partition))
        except KafkaError as error:
            refused = error
        await _acknowledged(pending)
        if refused is not None:
            raise refused


def _append(batch: BatchBuilder, key: bytes | None, headers: Headers, value: bytes) -> bool:
    """Answers False where the batch is full; the first record always fits."""
    return batch.append(timestamp=None, key=key, value=value, headers=headers) is not None


async def _acknowledged(pending: Sequence[asyncio.Future[object]]) -> None:
    # gather and not a loop: when one fails, the others' errors must not go unseen either.
    for result in await asyncio.gather(*pending, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _attributes(topic: str, event_id: str) -> dict[str, str]:
    return {
        names.MESSAGING_SYSTEM: "kafka",
        names.MESSAGING_OPERATION_NAME: "publish",
        names.MESSAGING_OPERATION_TYPE: "send",
        names.MESSAGING_DESTINATION: topic,
        names.MESSAGING_MESSAGE_ID: event_id,
    }

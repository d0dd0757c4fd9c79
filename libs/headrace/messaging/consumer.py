"""The consumer loop: at least once, in order for each key, bounded, and patient.

- Records of one key run one after the other; different keys run side by side, up to `max_in_flight`. Where
  order does not matter, those that were fetched at once may be handled at once.
- A handler that raises is tried again with growing pauses; PermanentFailure, or the last try, puts the record
  among the dead letters, and the partition goes on. Tries while a part that it needs is away do not count.
- Only a finished prefix of a partition is committed: a crash repeats records and never skips one.
- When a partition is taken away, its records in work are waited for and committed first. What is not done by
  then is cancelled, so that it does not run beside the partition's next owner.
- A topic that was deleted and made again is read from its first record (docs/adr/0051). What of it was read
  before that was noticed comes twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self, TypeAlias
from uuid import UUID

from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, MessageSizeTooLargeError
from opentelemetry.trace import Status, StatusCode

from headrace.messaging import metrics
from headrace.messaging.client import SESSION_SECONDS, WAIT_MS, consumer_client
from headrace.messaging.events import Event, InvalidCloudEvent, decode
from headrace.messaging.producer import Producer
from headrace.messaging.topic_ids import look_for_partitions, topic_ids
from headrace.messaging.topics import DEAD_LETTERS
from headrace.messaging.tracker import PartitionTracker
from headrace.runtime.outage import is_outage
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

Handler = Callable[[Event], Awaitable[None]]
HandlerOfMany = Callable[[Sequence[Event]], Awaitable[None]]
Record: TypeAlias = ConsumerRecord

POLL_MS = 200
# What is decoded and handled at once holds up everything else in the process.
MOST_TOGETHER = 200
COMMIT_SECONDS = 1.0
# aiokafka tries for as long as there is no broker, and would keep a stop or a rebalance waiting.
COMMIT_DEADLINE_SECONDS = 3.0
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
DRAIN_SECONDS = 5.0
MAX_MESSAGE_CHARACTERS = 2000

# Reasons of dead letters that the consumer itself gives; a handler's PermanentFailure brings its own.
INVALID_CLOUDEVENT: Final = "INVALID_CLOUDEVENT"
HANDLER_FAILED: Final = "HANDLER_FAILED"


class PermanentFailure(Exception):  # noqa: N818 - what it is, not what to call it
    """The event can never be handled: straight to the dead letters, with `reason`, a stable code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a handler is tried."""

    attempts: int = 8
    first_seconds: float = 0.1
    factor: float = 2.0
    longest_seconds: float = 10.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the attempt of that number, from 1."""
        # The power is capped, so that an outage of days does not overflow it.
        return min(self.first_seconds * self.factor ** min(attempt - 1, 64), self.longest_seconds)


class Consumer:
    """Consumes topics as a member of a group."""

    def __init__(
        self,
        bootstrap: str,
        *,
        group: str,
        topics: Iterable[str],
        handler: Handler,
        dead_letters: Producer,
        max_in_flight: int = 64,
        retry: RetryPolicy | None = None,
        client_id: str,
        session_seconds: float = SESSION_SECONDS,
        ordered: bool = True,
        together: HandlerOfMany | None = None,
        wait_ms: int = WAIT_MS,
    ) -> None:
        """`ordered`: off where outcomes do not depend on order; one key's events run side by side then.

        `together`: without order, handles events that were fetched at once, all or none of them. Where it
        raises, `handler` gets each of them; and always those of a sampled trace, for spans of their own.
        `wait_ms`: as for `consumer_client`.
        """
        assert together is None or not ordered
        self._ordered = ordered
        self._together = together
        self._topics = list(topics)
        self._group = group
        self._handler = handler
        self._dead_letters = dead_letters
        self._max_in_flight = max_in_flight
        self._retry = retry or RetryPolicy()
        self._client = consumer_client(
            bootstrap, group=group, client_id=client_id, session_seconds=session_seconds, wait_ms=wait_ms
        )
        self._trackers: dict[TopicPartition, PartitionTracker] = {}
        # Longer, and the group would go on without this member before it has given its partitions up.
        self._revoke_seconds = session_seconds / 2
        # The last task of each key: the next record of that key waits for it.
        self._tails: dict[tuple[str, int, bytes], asyncio.Task[None]] = {}
        self._tasks: dict[asyncio.Task[None], TopicPartition] = {}
        self._in_flight = 0
        self._progress = asyncio.Event()
        self._committed: dict[TopicPartition, int] = {}
        self._topic_ids: dict[str, UUID] = {}
        # Made again, and not yet read from the beginning.
        self._made_again: set[str] = set()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._client.subscribe(self._topics, listener=_Rebalance(self))
        try:
            await self._client.start()
            await self._look_at_topics()
        except BaseException:
            # A consumer that could not connect still holds a client.
            await self._client.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._drain(set(self._trackers), DRAIN_SECONDS)
        finally:
            await self._client.stop()

    async def run(self) -> None:
        """Consume until cancelled. What is in work then is finished by leaving the context.

        Raises what kept a record from being handled and from being set aside.
        """
        loop = asyncio.get_running_loop()
        commit_at = loop.time() + COMMIT_SECONDS
        while self._failure is None:
            room = self._max_in_flight - self._in_flight
            if room > 0:
                batches = await self._client.getmany(timeout_ms=POLL_MS, max_records=room)
                for partition, records in batches.items():
                    if self._together is not None:
                        self._begin_together(partition, records, self._together)
                        continue
                    for record in records:
                        self._begin(partition, record)
            else:
                # Not polled while behind; heartbeats go on in the background.
                await self._wait_for_progress()
            if loop.time() >= commit_at:
                if await self._look_at_topics():
                    await self._begin_topics_again()
                    await self._commit(list(self._trackers))
                commit_at = loop.time() + COMMIT_SECONDS
        raise self._failure

    def _begin(self, partition: TopicPartition, record: Record) -> None:
        tracker = self._tracked(partition, record)
        order = (record.key or b"") if self._ordered else str(record.offset).encode()
        key = (record.topic, record.partition, order)
        task = self._spawn(partition, self._process(tracker, record, self._tails.get(key)), 1)
        self._tails[key] = task

        def left(_: asyncio.Task[None]) -> None:
            if self._tails.get(key) is task:
                del self._tails[key]

        task.add_done_callback(left)

    def _begin_together(
        self, partition: TopicPartition, records: Sequence[Record], handler: HandlerOfMany
    ) -> None:
        tracked = [(self._tracked(partition, record), record) for record in records]
        for first in range(0, len(tracked), MOST_TOGETHER):
            some = tracked[first : first + MOST_TOGETHER]
            self._spawn(partition, self._process_together(some, handler), len(some))

    def _tracked(self, partition: TopicPartition, record: Record) -> PartitionTracker:
        tracker = self._trackers.get(partition)
        if tracker is None or not tracker.follows(record.offset):
            # A topic that was made anew begins anew; what is in work of the old one counts there no more.
            tracker = self._trackers[partition] = PartitionTracker()
        tracker.start(record.offset)
        return tracker

    def _spawn(
        self, partition: TopicPartition, work: Coroutine[None, None, None], records: int
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks[task] = partition
        self._in_flight += records
        task.add_done_callback(lambda done: self._ended(done, records))
        return task

    def _ended(self, task: asyncio.Task[None], records: int) -> None:
        del self._tasks[task]
        self._in_flight -= records
        self._progress.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # Not even the dead letters took it. It stays unfinished, is never committed past, and comes again
            # when the service has been started anew.
            self._failure = self._failure or error

    async def _process_together(
        self, tracked: Sequence[tuple[PartitionTracker, Record]], handler: HandlerOfMany
    ) -> None:
        together, alone = [], []
        events = []
        for tracker, record in tracked:
            try:
                event = decode(record.headers, record.value, received=_received(record))
            except InvalidCloudEvent:
                alone.append((tracker, record))
                continue
            if tracing.is_sampled(event.traceparent):
                alone.append((tracker, record))
            else:
                together.append((tracker, record))
                events.append(event)
        try:
            if events:
                await handler(events)
        except Exception as error:
            # Whatever it is, each by itself says it again, and waits or is set aside for it.
            logger.info("%d events at once failed, each is handled by itself: %r", len(events), error)
            alone += together
        else:
            for tracker, record in together:
                tracker.finish(record.offset)
            metrics.HANDLED.labels(tracked[0][1].topic, self._group).inc(len(together))
        try:
            async with asyncio.TaskGroup() as group:
                for tracker, record in alone:
                    group.create_task(self._process(tracker, record, None))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _process(
        self, tracker: PartitionTracker, record: Record, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
            if before.cancelled() or before.exception() is not None:
                # Not out of turn: both come again, in order.
                raise asyncio.CancelledError
        try:
            event = decode(record.headers, record.value, received=_received(record))
        except InvalidCloudEvent as error:
            await self._set_aside(record, INVALID_CLOUDEVENT, str(error))
        else:
            await self._handle(record, event)
        tracker.finish(record.offset)

    async def _handle(self, record: Record, event: Event) -> None:
        with tracing.span(
            names.SPAN_PROCESS + record.topic,
            kind=tracing.SpanKind.CONSUMER,
            parent=event.traceparent,
            attributes={
                names.MESSAGING_SYSTEM: "kafka",
                names.MESSAGING_OPERATION_NAME: "process",
                names.MESSAGING_OPERATION_TYPE: "process",
                names.MESSAGING_DESTINATION: record.topic,
                names.MESSAGING_PARTITION: str(record.partition),
                names.MESSAGING_KAFKA_OFFSET: record.offset,
                names.MESSAGING_CONSUMER_GROUP: self._group,
                names.MESSAGING_MESSAGE_ID: event.id,
            },
        ) as span:
            tries, failures = 0, 0
            while True:
                tries += 1
                try:
                    await self._handler(event)
                except PermanentFailure as error:
                    span.set_attribute(names.ERROR_REASON, error.reason)
                    span.set_status(Status(StatusCode.ERROR, str(error)))
                    await self._set_aside(record, error.reason, str(error))
                    return
                except Exception as error:
                    # An outage is not the event's fault: it is waited for, however long it lasts.
                    failures += not is_outage(error)
                    span.record_exception(error)
                    if failures == self._retry.attempts:
                        logger.exception("giving up on event %s of %s", event.id, record.topic)
                        span.set_attribute(names.ERROR_REASON, HANDLER_FAILED)
                        span.set_status(Status(StatusCode.ERROR, str(error)))
                        await self._set_aside(record, HANDLER_FAILED, f"{type(error).__name__}: {error}")
                        return
                    logger.warning(
                        "event %s of %s failed (try %d): %s: %s",
                        event.id,
                        record.topic,
                        tries,
                        type(error).__name__,
                        error,
                    )
                    metrics.RETRIES.labels(record.topic, self._group).inc()
                    await asyncio.sleep(self._retry.pause(tries))
                else:
                    metrics.HANDLED.labels(record.topic, self._group).inc()
                    return

    async def _set_aside(self, record: Record, reason: str, message: str) -> None:
        """Publish a record as it came among the dead letters, with the reason as headers."""
        headers = [
            *record.headers,
            ("headrace-reason", reason.encode()),
            ("headrace-message", message[:MAX_MESSAGE_CHARACTERS].encode(errors="replace")),
            ("headrace-consumer", self._group.encode()),
            ("headrace-topic", record.topic.encode()),
            ("headrace-partition", str(record.partition).encode()),
            ("headrace-offset", str(record.offset).encode()),
        ]
        value = record.value or b""
        tries = 0
        while True:
            tries += 1
            try:
                await self._dead_letters.publish_encoded([(DEAD_LETTERS, record.key, headers, value)])
                break
            except MessageSizeTooLargeError:
                if not value:
                    raise
                # With the reason it does not fit any more. Where it came from still has the whole of it.
                headers.append(("headrace-bytes-left-out", str(len(value)).encode()))
                value = b""
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("dead letters wait for the broker: %s: %s", type(error).__name__, error)
                await asyncio.sleep(self._retry.pause(tries))
        metrics.DEAD_LETTERS.labels(record.topic, self._group, reason).inc()
        logger.warning(
            "dead letter: %s/%d/%d: %s: %s", record.topic, record.partition, record.offset, reason, message
        )

    async def _wait_for_progress(self) -> None:
        self._progress.clear()
        try:
            async with asyncio.timeout(POLL_MS / 1000):
                await self._progress.wait()
        except TimeoutError:
            pass

    async def _begin_topics_again(self) -> None:
        """Read those from their beginning that were made again."""
        again = [partition for partition in self._client.assignment() if partition.topic in self._made_again]
        if not again:
            if not all(map(self._client.partitions_for_topic, self._made_again)):
                look_for_partitions(self._client)
            return
        for partition in again:
            self._forget(partition)
        try:
            async with asyncio.timeout(COMMIT_DEADLINE_SECONDS):
                # First: a broker forgets a group's offsets in its own time, and whoever is assigned a
                # partition at this moment, this one too, is sent to where the old topic was read.
                await self._client.commit(await self._client.beginning_offsets(again))
                await self._client.seek_to_beginning(*again)
        except (KafkaError, IllegalStateError, TimeoutError) as error:
            logger.warning("topics made again are not read yet: %s: %s", type(error).__name__, error)
            return
        self._made_again -= {partition.topic for partition in again}
        logger.warning("made again, and read from the beginning: %s", ", ".join({p.topic for p in again}))

    async def _look_at_topics(self) -> bool:
        """Note which were made again; whether the broker told."""
        try:
            async with asyncio.timeout(COMMIT_DEADLINE_SECONDS):
                found = await topic_ids(self._client, self._topics)
        except (KafkaError, TimeoutError) as error:
            logger.info("the topics' ids are not known: %s: %s", type(error).__name__, error)
            return False
        self._made_again |= {name for name, new in found.items() if self._topic_ids.get(name, new) != new}
        self._topic_ids |= found
        return True

    def _finished(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Offsets that are to be committed; an old topic's is none of the new one's."""
        return {
            partition: offset
            for partition in partitions
            if (tracker := self._trackers.get(partition)) is not None
            and (offset := tracker.committable) is not None
            and self._committed.get(partition) != offset
            and partition.topic not in self._made_again
        }

    async def _commit(self, partitions: Iterable[TopicPartition]) -> None:
        """Commit what is finished; the topics were just looked at."""
        offsets = self._finished(partitions)
        if not offsets:
            return
        try:
            async with asyncio.timeout(COMMIT_DEADLINE_SECONDS):
                await self._client.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            # The group went on without us: the records come again, to whoever has the partition now.
            logger.info("offsets were not committed: %s", error)
            return
        except (KafkaError, TimeoutError) as error:
            logger.warning("offsets were not committed yet: %s: %s", type(error).__name__, error)
            return
        self._committed.update(offsets)

    async def _drain(self, partitions: Collection[TopicPartition], seconds: float) -> None:
        """Wait for the partitions' records in work and cancel the rest; commit what is done, and forget."""
        in_work = [task for task, partition in self._tasks.items() if partition in partitions]
        if in_work and self._failure is None:
            await asyncio.wait(in_work, timeout=seconds)
        for task in in_work:
            task.cancel()
        await asyncio.gather(*in_work, return_exceptions=True)
        # Who has nothing to commit does not wait for the broker.
        if self._finished(partitions) and await self._look_at_topics():
            await self._commit(partitions)
        for partition in partitions:
            self._forget(partition)

    def _forget(self, partition: TopicPartition) -> None:
        self._trackers.pop(partition, None)
        self._committed.pop(partition, None)

    async def _revoked(self, partitions: Collection[TopicPartition]) -> None:
        await self._drain(partitions, self._revoke_seconds)


def _received(record: Record) -> datetime:
    try:
        return _EPOCH + timedelta(milliseconds=record.timestamp)
    except OverflowError:
        # A producer may set any 64 bits as a record's time.
        return _EPOCH


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """Finishes what is in work before partitions move."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._consumer._revoked(set(revoked))  # noqa: SLF001 - one piece with the consumer

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        logger.info("assigned: %s", ", ".join(f"{p.topic}/{p.partition}" for p in assigned) or "nothing")

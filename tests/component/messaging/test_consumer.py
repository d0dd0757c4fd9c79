"""The consumer loop on a real broker: nothing lost, order per key, poison set aside, partitions that move."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaError
from opentelemetry.trace import SpanKind, StatusCode
from tests.support.spans import recorded_spans
from tests.support.topics import make_again
from tests.support.waiting import eventually

from headrace.embedded.parts.process import free_port
from headrace.errors import Unavailable
from headrace.messaging import consumer
from headrace.messaging.consumer import MOST_TOGETHER, Consumer, HandlerOfMany, PermanentFailure, RetryPolicy
from headrace.messaging.events import Event, decode, encode
from headrace.messaging.producer import Producer
from headrace.messaging.topic_ids import topic_ids
from headrace.messaging.topics import DEAD_LETTERS, Topic, ensure_topics, load_topics
from headrace.runtime.runner import Runner
from headrace.telemetry import names

pytestmark = pytest.mark.broker

DEADLINE = 30.0
QUICK = RetryPolicy(attempts=3, first_seconds=0.01, longest_seconds=0.05)
# Kafka's own minimum; the embedded broker lets a joining group wait for half of it.
EMBEDDED = os.environ.get("HEADRACE_TEST_BROKER") != "kafka"
SESSION_SECONDS = 2.0 if EMBEDDED else 6.0


def event(number: int) -> Event:
    return Event(
        id=str(uuid.uuid4()),
        source="tests",
        type="tests.numbered.v1",
        subject="numbers",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        data=str(number).encode(),
        content_type="text/plain",
    )


def of_two_partitions(name: str) -> Topic:
    template = load_topics()[DEAD_LETTERS].model_dump()
    return Topic(**{**template, "name": name, "partitions": 2})


@pytest.fixture
async def topic(kafka_bootstrap: str) -> str:
    name = f"tests.{uuid.uuid4().hex}.v1"
    await ensure_topics(kafka_bootstrap, [of_two_partitions(name), load_topics()[DEAD_LETTERS]])
    return name


@pytest.fixture
async def producer(kafka_bootstrap: str) -> AsyncIterator[Producer]:
    async with Producer(kafka_bootstrap, client_id="tests", idempotence=False) as opened:
        yield opened


def member(
    bootstrap: str,
    topic: str,
    handler: Callable[[Event], Awaitable[None]],
    producer: Producer,
    *,
    max_in_flight: int = 64,
    ordered: bool = True,
    together: HandlerOfMany | None = None,
) -> Consumer:
    return Consumer(
        bootstrap,
        group=f"g-{topic}",
        topics=[topic],
        handler=handler,
        dead_letters=producer,
        retry=QUICK,
        max_in_flight=max_in_flight,
        client_id="tests",
        session_seconds=SESSION_SECONDS,
        ordered=ordered,
        together=together,
    )


@asynccontextmanager
async def consuming(
    bootstrap: str,
    topic: str,
    handler: Callable[[Event], Awaitable[None]],
    producer: Producer,
    *,
    max_in_flight: int = 64,
    ordered: bool = True,
    together: HandlerOfMany | None = None,
) -> AsyncIterator[asyncio.Task[None]]:
    async with member(
        bootstrap,
        topic,
        handler,
        producer,
        max_in_flight=max_in_flight,
        ordered=ordered,
        together=together,
    ) as consumer:
        task = asyncio.create_task(consumer.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await eventually(holds, bool, DEADLINE)


async def test_events_of_a_key_are_handled_in_order_and_keys_side_by_side(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: list[int] = []
    running = 0
    most_running = 0

    async def handler(received: Event) -> None:
        nonlocal running, most_running
        running += 1
        most_running = max(most_running, running)
        await asyncio.sleep(0)
        seen.append(int(received.data))
        running -= 1

    await producer.publish_all(topic, [(f"key-{n % 3}", event(n)) for n in range(60)])
    async with consuming(kafka_bootstrap, topic, handler, producer):
        await until(lambda: len(seen) == 60)
    for key in range(3):
        of_key = [n for n in seen if n % 3 == key]
        assert of_key == sorted(of_key)
    assert most_running > 1


async def test_without_order_one_keys_events_are_handled_side_by_side(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: list[int] = []
    last_seen = asyncio.Event()

    async def handler(received: Event) -> None:
        # The last one is what all the others wait for: in order, nothing would ever end.
        if int(received.data) == 9:
            last_seen.set()
        await last_seen.wait()
        seen.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(10)])
    async with consuming(kafka_bootstrap, topic, handler, producer, ordered=False):
        await until(lambda: sorted(seen) == list(range(10)))


async def test_a_finished_event_does_not_come_again_and_an_unfinished_one_does(
    kafka_bootstrap: str, topic: str, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[int] = []
    stuck = asyncio.Event()

    async def dies_at_three(received: Event) -> None:
        if int(received.data) == 3:
            stuck.set()
            await asyncio.Future()
        first.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(5)])
    monkeypatch.setattr("headrace.messaging.consumer.DRAIN_SECONDS", 0.1)
    async with consuming(kafka_bootstrap, topic, dies_at_three, producer):
        async with asyncio.timeout(DEADLINE):
            await stuck.wait()
    assert first == [0, 1, 2]

    again: list[int] = []

    async def records(received: Event) -> None:
        again.append(int(received.data))

    async with consuming(kafka_bootstrap, topic, records, producer):
        await until(lambda: len(again) == 2)
    assert again == [3, 4]


async def test_a_member_that_loses_its_work_leaves_none_of_it_running(
    kafka_bootstrap: str, topic: str, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.messaging.consumer.DRAIN_SECONDS", 0.1)
    running: set[int] = set()

    async def never_ends(received: Event) -> None:
        number = int(received.data)
        running.add(number)
        try:
            await asyncio.Future()
        finally:
            running.remove(number)

    await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(8)])
    async with consuming(kafka_bootstrap, topic, never_ends, producer):
        await until(lambda: len(running) == 8)
    assert not running


async def test_a_stop_finishes_and_commits_what_is_in_work(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    begun = asyncio.Event()
    may_end = asyncio.Event()
    ended: list[int] = []

    async def handler(received: Event) -> None:
        begun.set()
        await may_end.wait()
        ended.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(3)])
    consumer = member(kafka_bootstrap, topic, handler, producer)
    async with consumer:
        task = asyncio.create_task(consumer.run())
        async with asyncio.timeout(DEADLINE):
            await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        asyncio.get_running_loop().call_later(0.1, may_end.set)
    assert ended
    finished = list(ended)

    async with consuming(kafka_bootstrap, topic, handler, producer):
        await producer.publish(topic, "key", event(3))
        await until(lambda: 3 in ended)
    assert ended == [0, 1, 2, 3]
    assert finished == [0, 1, 2][: len(finished)]


async def test_a_services_stop_waits_for_a_handler_longer_than_it_asks_tasks_to_end(
    kafka_bootstrap: str, topic: str, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.runtime.runner.CANCEL_AGAIN_SECONDS", 0.02)
    begun = asyncio.Event()
    ended: list[int] = []

    async def handler(received: Event) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        ended.append(int(received.data))

    await producer.publish(topic, "key", event(0))
    runner = Runner()
    consumer = await runner.enter(member(kafka_bootstrap, topic, handler, producer))
    runner.spawn(consumer.run, "consumer")
    async with asyncio.timeout(DEADLINE):
        await begun.wait()
        await runner.close(DEADLINE)
    assert runner.failure is None
    assert ended == [0]

    async with consuming(kafka_bootstrap, topic, handler, producer):
        await producer.publish(topic, "key", event(1))
        await until(lambda: 1 in ended)
    assert ended == [0, 1]


async def test_a_commit_that_no_broker_answers_does_not_hold_up_the_stop(
    kafka_bootstrap: str, topic: str, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.messaging.consumer.COMMIT_DEADLINE_SECONDS", 0.5)
    seen: list[int] = []
    tries = 0

    async def handler(received: Event) -> None:
        seen.append(int(received.data))

    async def never_ends(_: object) -> None:
        nonlocal tries
        tries += 1
        await asyncio.Future()

    await producer.publish(topic, "key", event(0))
    async with asyncio.timeout(DEADLINE), member(kafka_bootstrap, topic, handler, producer) as consumer:
        monkeypatch.setattr(consumer._client, "commit", never_ends)
        task = asyncio.create_task(consumer.run())
        # Nor does it end the consumer, which tries again.
        await until(lambda: tries == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (seen, tries) == ([0], 3)


async def test_no_more_events_are_taken_than_may_be_in_flight(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    limit = 5
    gate = asyncio.Semaphore(0)
    running: set[int] = set()
    ended: list[int] = []
    most = 0

    async def handler(received: Event) -> None:
        nonlocal most
        running.add(int(received.data))
        most = max(most, len(running))
        await gate.acquire()
        running.remove(int(received.data))
        ended.append(int(received.data))

    def counts(of_running: int, of_ended: int) -> bool:
        return (len(running), len(ended)) == (of_running, of_ended)

    await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(20)])
    async with consuming(kafka_bootstrap, topic, handler, producer, max_in_flight=limit):
        for done in range(20):
            await until(partial(counts, min(limit, 20 - done), done))
            gate.release()
        await until(partial(counts, 0, 20))
    assert most == limit
    assert sorted(ended) == list(range(20))


async def test_an_outage_is_waited_for_however_many_tries_it_takes(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    tries = 0
    seen: list[int] = []

    async def handler(received: Event) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3 * QUICK.attempts:
            raise Unavailable("REGISTRY_UNAVAILABLE", "the registry is away")
        seen.append(int(received.data))

    await producer.publish(topic, "key", event(0))
    async with consuming(kafka_bootstrap, topic, handler, producer):
        await until(lambda: seen == [0])


async def test_when_not_even_the_dead_letters_take_an_event_the_consumer_fails_and_loses_nothing(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    class Broken(Producer):
        async def publish_encoded(self, records: object) -> None:
            raise RuntimeError("no room")

    seen: list[int] = []

    async def refuses_one(received: Event) -> None:
        if received.data == b"1":
            raise PermanentFailure("NO_SUCH_THING", "it names a thing that never was")
        seen.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(4)])
    broken = Broken(kafka_bootstrap, client_id="tests", idempotence=False)
    with pytest.raises(RuntimeError, match="no room"):
        async with asyncio.timeout(DEADLINE), consuming(kafka_bootstrap, topic, refuses_one, broken) as task:
            await task
    # Those behind it in its key's order have waited, and come again with it.
    assert seen == [0]

    again: list[int] = []

    async def records(received: Event) -> None:
        again.append(int(received.data))

    async with consuming(kafka_bootstrap, topic, records, producer):
        await until(lambda: len(again) == 3)
    assert again == [1, 2, 3]


async def test_poison_is_set_aside_and_its_neighbours_are_handled(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: list[int] = []
    tries = 0

    async def handler(received: Event) -> None:
        nonlocal tries
        if received.data == b"1":
            raise PermanentFailure("NO_SUCH_THING", "it names a thing that never was")
        if received.data == b"2":
            tries += 1
            raise RuntimeError("still broken")
        seen.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(4)])
    await producer.publish_encoded([(topic, "key", [("ce_id", b"no event")], b"?")])
    async with consuming(kafka_bootstrap, topic, handler, producer):
        letters = await dead_letters(kafka_bootstrap, topic, 3)
    assert seen == [0, 3]
    assert tries == QUICK.attempts
    assert letters == {
        b"1": "NO_SUCH_THING",
        b"2": "HANDLER_FAILED",
        b"?": "INVALID_CLOUDEVENT",
    }


async def test_events_that_are_handled_at_once_do_not_come_again(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: list[int] = []
    most = 0

    async def alone(received: Event) -> None:
        raise AssertionError("nothing is wrong with these")

    async def together(received: Sequence[Event]) -> None:
        nonlocal most
        most = max(most, len(received))
        seen.extend(int(it.data) for it in received)

    consume = partial(
        consuming,
        kafka_bootstrap,
        topic,
        alone,
        producer,
        max_in_flight=300,
        ordered=False,
        together=together,
    )
    await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(500)])
    async with consume():
        await until(lambda: len(seen) == 500)
    async with consume():
        await producer.publish(topic, "key", event(500))
        await until(lambda: 500 in seen)
    assert sorted(seen) == list(range(501))
    assert 1 < most <= MOST_TOGETHER


async def test_of_events_that_fail_at_once_the_poison_is_set_aside_and_its_neighbours_are_handled(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: list[int] = []

    async def alone(received: Event) -> None:
        if received.data == b"1":
            raise PermanentFailure("NO_SUCH_THING", "it names a thing that never was")
        seen.append(int(received.data))

    async def together(received: Sequence[Event]) -> None:
        if any(it.data == b"1" for it in received):
            raise PermanentFailure("NO_SUCH_THING", "one of them names a thing that never was")
        seen.extend(int(it.data) for it in received)

    await producer.publish_all(topic, [("key", event(n)) for n in range(4)])
    await producer.publish_encoded([(topic, "key", [("ce_id", b"no event")], b"?")])
    async with consuming(kafka_bootstrap, topic, alone, producer, ordered=False, together=together):
        letters = await dead_letters(kafka_bootstrap, topic, 2)
        await until(lambda: sorted(seen) == [0, 2, 3])
    assert letters == {b"1": "NO_SUCH_THING", b"?": "INVALID_CLOUDEVENT"}


async def test_of_events_that_are_handled_at_once_those_of_a_sampled_trace_have_spans_of_their_own(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    at_once: list[int] = []
    traced: list[int] = []

    async def alone(received: Event) -> None:
        traced.append(int(received.data))

    async def together(received: Sequence[Event]) -> None:
        at_once.extend(int(it.data) for it in received)

    sampled, not_sampled = (f"00-{'a' * 32}-{'b' * 16}-0{flag}" for flag in (1, 0))
    sent = [replace(event(0), traceparent=sampled), replace(event(1), traceparent=not_sampled), event(2)]
    records = [(topic, "key", *encode(it)) for it in sent]
    with recorded_spans() as exporter:
        async with consuming(kafka_bootstrap, topic, alone, producer, ordered=False, together=together):
            await producer.publish_encoded(records)
            await until(lambda: len(at_once) + len(traced) == 3)
        [span] = exporter.get_finished_spans()
    assert (traced, sorted(at_once)) == ([0], [1, 2])
    assert span.parent is not None
    assert span.parent.trace_id == int("a" * 32, 16)


async def test_a_log_that_begins_anew_is_read_anew(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: list[int] = []

    async def handler(received: Event) -> None:
        seen.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(3)])
    async with member(kafka_bootstrap, topic, handler, producer) as consumer:
        task = asyncio.create_task(consumer.run())
        await until(lambda: len(seen) == 3)
        # As a broker does that lost its log: offsets fall, and the group has not moved.
        await consumer._client.seek_to_beginning()
        await until(lambda: len(seen) == 6)
        await producer.publish(topic, "key", event(3))
        await until(lambda: len(seen) == 7)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert seen == [0, 1, 2, 0, 1, 2, 3]


async def test_a_topic_that_was_deleted_and_made_again_is_read_from_its_first_record(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: list[int] = []

    async def handler(received: Event) -> None:
        seen.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(3)])
    async with consuming(kafka_bootstrap, topic, handler, producer):
        await until(lambda: len(seen) == 3)
        await make_again(kafka_bootstrap, of_two_partitions(topic))
        # More than before: where the consumer stood is in the middle of them.
        async with Producer(kafka_bootstrap, client_id="tests", idempotence=False) as another:
            await another.publish_all(topic, [("key", event(n)) for n in range(3, 10)])
        # What of it had been read before it was noticed comes twice.
        await until(lambda: seen[-7:] == [3, 4, 5, 6, 7, 8, 9])


@pytest.mark.skipif(not EMBEDDED, reason="with Kafka, who is not told of it loses the partition")
async def test_before_a_topic_that_was_made_again_is_read_its_group_is_not_where_the_old_one_was_read(
    kafka_bootstrap: str, topic: str, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is assigned its partitions at that moment would be sent there."""
    told = asyncio.Event()
    old_ids: dict[str, uuid.UUID] = {}

    async def ids(client: AIOKafkaConsumer, topics: Iterable[str]) -> dict[str, uuid.UUID]:
        found = await topic_ids(client, topics)
        old_ids.update(old_ids or found)
        return found if told.is_set() else old_ids

    monkeypatch.setattr(consumer, "topic_ids", ids)
    places: list[dict[TopicPartition, int]] = []
    seen: list[int] = []

    async def handler(received: Event) -> None:
        seen.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(3)])
    async with member(kafka_bootstrap, topic, handler, producer) as one:
        seek = one._client.seek_to_beginning

        async def noted(*partitions: TopicPartition) -> None:
            places.append(await committed(kafka_bootstrap, topic))
            await seek(*partitions)

        monkeypatch.setattr(one._client, "seek_to_beginning", noted)
        running = asyncio.create_task(one.run())
        try:
            [partition] = await eventually(lambda: committed(kafka_bootstrap, topic), bool)
            await make_again(kafka_bootstrap, of_two_partitions(topic))
            async with Producer(kafka_bootstrap, client_id="tests", idempotence=False) as another:
                await another.publish_all(topic, [("key", event(n)) for n in range(3, 10)])

            async def old_place_stays() -> bool:
                """As where a broker forgets it late."""
                with suppress(KafkaError, IllegalStateError):
                    await one._client.commit({partition: 2})
                return (await committed(kafka_bootstrap, topic)).get(partition) == 2

            await eventually(old_place_stays, bool)
            told.set()
            await until(lambda: bool(places) and seen[-7:] == [3, 4, 5, 6, 7, 8, 9])
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert places == [{}]


async def test_a_record_of_any_time_is_handled(kafka_bootstrap: str, topic: str, producer: Producer) -> None:
    seen: list[datetime] = []

    async def handler(received: Event) -> None:
        seen.append(received.time)

    before = datetime.now(UTC) - timedelta(seconds=1)
    headers, value = encode(event(0))
    timeless = [(name, text) for name, text in headers if name != "ce_time"]
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as plain:
        for milliseconds in (0, 1_000, 253_402_300_800_000):
            await plain.send_and_wait(topic, value, key=b"key", headers=timeless, timestamp_ms=milliseconds)
    async with consuming(kafka_bootstrap, topic, handler, producer):
        await until(lambda: len(seen) == 3)
    if EMBEDDED:
        epoch = datetime.fromtimestamp(0, UTC)
        assert seen[0] == epoch
        assert (seen[1] - epoch).total_seconds() == 1
    else:
        # Kafka puts the time of arrival in their place, for retention counts from it.
        assert all(before <= time <= datetime.now(UTC) for time in seen)


async def committed(bootstrap: str, topic: str) -> dict[TopicPartition, int]:
    """Where the group is, of partitions of which it has read something."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(2)]
        offsets = await admin.list_consumer_group_offsets(f"g-{topic}", partitions=partitions)
    finally:
        await admin.close()
    return {partition: told.offset for partition, told in offsets.items() if told.offset > 0}


async def dead_letters(bootstrap: str, topic: str, count: int) -> dict[bytes, str]:
    return {
        record.value or b"": dict(record.headers)["headrace-reason"].decode()
        for record in await letters_of(bootstrap, topic, count)
    }


async def letters_of(bootstrap: str, topic: str, count: int) -> list[ConsumerRecord]:
    found: list[ConsumerRecord] = []
    consumer = AIOKafkaConsumer(
        DEAD_LETTERS, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None
    )
    await consumer.start()
    try:
        async with asyncio.timeout(DEADLINE):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += [
                        record
                        for record in records
                        if dict(record.headers)["headrace-topic"] == topic.encode()
                    ]
    finally:
        await consumer.stop()
    return found


async def test_a_dead_letter_is_the_event_as_it_came_with_where_and_why(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    async def handler(received: Event) -> None:
        raise PermanentFailure("NO_SUCH_THING", "es fehlt: ß")

    original = replace(event(7), extensions={"tenant": "a"})
    await producer.publish(topic, "key", original)
    async with consuming(kafka_bootstrap, topic, handler, producer):
        (letter,) = await letters_of(kafka_bootstrap, topic, 1)
    assert letter.key == b"key"
    came_back = decode(letter.headers, letter.value, received=datetime.now(UTC))
    assert replace(came_back, traceparent="") == replace(original, traceparent="")
    headers = dict(letter.headers)
    assert headers["headrace-reason"] == b"NO_SUCH_THING"
    assert headers["headrace-message"].decode() == "es fehlt: ß"
    assert headers["headrace-consumer"] == f"g-{topic}".encode()
    assert headers["headrace-offset"] == b"0"
    assert headers["headrace-partition"] in {b"0", b"1"}


async def test_an_event_too_large_to_carry_its_reason_leaves_its_payload_where_it_came_from(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    async def handler(received: Event) -> None:
        raise PermanentFailure("NO_SUCH_THING", "x" * 1000)

    # The most that the producer takes, headers included; the reason does not fit any more.
    large = replace(event(0), data=b"x" * ((16 << 20) - 500))
    await producer.publish(topic, "key", large)
    async with consuming(kafka_bootstrap, topic, handler, producer):
        (letter,) = await letters_of(kafka_bootstrap, topic, 1)
    headers = dict(letter.headers)
    assert not letter.value
    assert headers["headrace-bytes-left-out"] == str(len(large.data)).encode()
    assert headers["ce_id"].decode() == large.id


async def test_a_consumer_continues_the_publishers_trace_and_says_what_failed(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    async def handler(received: Event) -> None:
        raise PermanentFailure("NO_SUCH_THING", "it names a thing that never was")

    with recorded_spans() as exporter:
        async with consuming(kafka_bootstrap, topic, handler, producer):
            sent = event(0)
            await producer.publish(topic, "key", sent)
            await letters_of(kafka_bootstrap, topic, 1)
        spans = {span.name: span for span in exporter.get_finished_spans()}
    published, processed = spans[f"publish {topic}"], spans[f"process {topic}"]
    assert (published.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert processed.parent is not None
    assert published.context is not None
    assert processed.parent.span_id == published.context.span_id
    assert processed.parent.trace_id == published.context.trace_id
    for span in (published, processed):
        assert span.attributes is not None
        assert span.attributes[names.MESSAGING_SYSTEM] == "kafka"
        assert span.attributes[names.MESSAGING_DESTINATION] == topic
        assert span.attributes[names.MESSAGING_MESSAGE_ID] == sent.id
    assert processed.attributes is not None
    assert processed.attributes[names.MESSAGING_CONSUMER_GROUP] == f"g-{topic}"
    assert processed.attributes[names.MESSAGING_KAFKA_OFFSET] == 0
    assert processed.attributes[names.ERROR_REASON] == "NO_SUCH_THING"
    assert processed.status.status_code is StatusCode.ERROR


async def test_a_second_member_takes_over_partitions_and_nothing_is_lost(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: set[int] = set()

    async def handler(received: Event) -> None:
        seen.add(int(received.data))

    async with consuming(kafka_bootstrap, topic, handler, producer):
        await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(50)])
        await until(lambda: len(seen) == 50)
        async with consuming(kafka_bootstrap, topic, handler, producer):
            await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(50, 100)])
            await until(lambda: len(seen) == 100)
        await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(100, 150)])
        await until(lambda: len(seen) == 150)


async def test_while_partitions_move_each_keys_events_begin_in_order(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    """Slow handlers are in work at each rebalance; a key's event never begins before the one ahead of it."""
    keys, rounds = 8, 12
    begun: defaultdict[int, list[int]] = defaultdict(list)
    running: defaultdict[int, int] = defaultdict(int)
    overlaps: list[int] = []
    ended: set[int] = set()

    async def handler(received: Event) -> None:
        number = int(received.data)
        key = number % keys
        begun[key].append(number)
        if running[key]:
            overlaps.append(number)
        running[key] += 1
        try:
            await asyncio.sleep(0.02)
        finally:
            running[key] -= 1
        ended.add(number)

    async def publish() -> None:
        for first in range(0, keys * rounds, keys):
            await producer.publish_all(
                topic, [(f"key-{n % keys}", event(n)) for n in range(first, first + keys)]
            )
            await until(partial(has_ended, first // 2))

    def has_ended(count: int) -> bool:
        return len(ended) >= count

    async with consuming(kafka_bootstrap, topic, handler, producer):
        publishing = asyncio.create_task(publish())
        await until(lambda: len(ended) > keys)
        async with consuming(kafka_bootstrap, topic, handler, producer):
            await publishing
            await until(lambda: len(ended) == keys * rounds)
    assert not overlaps
    for numbers in begun.values():
        # Deliveries may repeat; the first of each event are in order.
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts)


async def test_a_consumer_that_finds_no_broker_says_so_and_leaves_nothing_open(producer: Producer) -> None:
    async def handler(received: Event) -> None: ...

    with pytest.raises(KafkaConnectionError):
        async with member(f"127.0.0.1:{free_port()}", "tests.none.v1", handler, producer):
            pass


@pytest.mark.kill
async def test_a_killed_consumers_events_go_to_another_and_none_is_skipped(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    await producer.publish_all(topic, [(f"key-{n % 5}", event(n)) for n in range(40)])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        Path(__file__).with_name("dying_consumer.py"),
        kafka_bootstrap,
        topic,
        str(SESSION_SECONDS),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        output, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    handled = [int(line) for line in output.split()]
    assert len(handled) == 20

    again: list[int] = []

    async def records(received: Event) -> None:
        again.append(int(received.data))

    async with consuming(kafka_bootstrap, topic, records, producer):
        await until(lambda: {*handled, *again} == set(range(40)))

"""The consumer loop on a real broker: nothing lost, order per key, poison set aside, partitions that move."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaConsumer

from headrace.messaging.consumer import Consumer, PermanentFailure, RetryPolicy
from headrace.messaging.events import Event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import DEAD_LETTERS, Topic, ensure_topics, load_topics

pytestmark = pytest.mark.broker

DEADLINE = 30.0
QUICK = RetryPolicy(attempts=3, first_seconds=0.01)


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


@pytest.fixture
async def topic(kafka_bootstrap: str) -> str:
    name = f"tests.{uuid.uuid4().hex}.v1"
    template = load_topics()[DEAD_LETTERS]
    await ensure_topics(
        kafka_bootstrap, [Topic(**{**template.model_dump(), "name": name, "partitions": 2}), template]
    )
    return name


@pytest.fixture
async def producer(kafka_bootstrap: str) -> AsyncIterator[Producer]:
    async with Producer(kafka_bootstrap, client_id="tests", idempotence=False) as opened:
        yield opened


@asynccontextmanager
async def consuming(
    bootstrap: str,
    topic: str,
    group: str,
    handler: Callable[[Event], Awaitable[None]],
    producer: Producer,
    *,
    max_in_flight: int = 64,
) -> AsyncIterator[asyncio.Task[None]]:
    consumer = Consumer(
        bootstrap,
        group=group,
        topics=[topic],
        handler=handler,
        dead_letters=producer,
        retry=QUICK,
        max_in_flight=max_in_flight,
        client_id="tests",
    )
    async with consumer:
        task = asyncio.create_task(consumer.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


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
    async with consuming(kafka_bootstrap, topic, f"g-{topic}", handler, producer):
        await until(lambda: len(seen) == 60)
    for key in range(3):
        of_key = [n for n in seen if n % 3 == key]
        assert of_key == sorted(of_key)
    assert most_running > 1


async def test_a_finished_event_does_not_come_again_and_an_unfinished_one_does(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    first: list[int] = []
    stuck = asyncio.Event()

    async def dies_at_three(received: Event) -> None:
        if int(received.data) == 3:
            stuck.set()
            await asyncio.Future()
        first.append(int(received.data))

    await producer.publish_all(topic, [("key", event(n)) for n in range(5)])
    consumer = Consumer(
        kafka_bootstrap,
        group=f"g-{topic}",
        topics=[topic],
        handler=dies_at_three,
        dead_letters=producer,
        client_id="tests",
    )
    async with consumer:
        task = asyncio.create_task(consumer.run())
        async with asyncio.timeout(DEADLINE):
            await stuck.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert first == [0, 1, 2]

    again: list[int] = []

    async def records(received: Event) -> None:
        again.append(int(received.data))

    async with consuming(kafka_bootstrap, topic, f"g-{topic}", records, producer):
        await until(lambda: len(again) == 2)
    assert again == [3, 4]


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
    async with consuming(kafka_bootstrap, topic, f"g-{topic}", handler, producer):
        letters = await dead_letters(kafka_bootstrap, topic, 3)
    assert seen == [0, 3]
    assert tries == QUICK.attempts
    assert letters == {
        b"1": "NO_SUCH_THING",
        b"2": "HANDLER_FAILED",
        b"?": "INVALID_CLOUDEVENT",
    }


async def dead_letters(bootstrap: str, topic: str, count: int) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    consumer = AIOKafkaConsumer(
        DEAD_LETTERS, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None
    )
    await consumer.start()
    try:
        async with asyncio.timeout(DEADLINE):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        headers = {name: value.decode() for name, value in record.headers}
                        if headers["headrace-topic"] == topic:
                            found[record.value or b""] = headers["headrace-reason"]
    finally:
        await consumer.stop()
    return found


async def test_a_second_member_takes_over_partitions_and_nothing_is_lost(
    kafka_bootstrap: str, topic: str, producer: Producer
) -> None:
    seen: set[int] = set()

    async def handler(received: Event) -> None:
        seen.add(int(received.data))

    group = f"g-{topic}"
    async with consuming(kafka_bootstrap, topic, group, handler, producer):
        await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(50)])
        await until(lambda: len(seen) == 50)
        async with consuming(kafka_bootstrap, topic, group, handler, producer):
            await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(50, 100)])
            await until(lambda: len(seen) == 100)
        await producer.publish_all(topic, [(f"key-{n}", event(n)) for n in range(100, 150)])
        await until(lambda: len(seen) == 150)

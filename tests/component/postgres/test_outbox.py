"""Events leave if, and only if, their transaction commits, in order, whatever dies or is away."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError, OutOfOrderSequenceNumber

from headrace.messaging.events import Event, decode
from headrace.messaging.producer import Encoded, Producer
from headrace.messaging.topics import DEAD_LETTERS, Topic, ensure_topics, load_topics
from headrace.postgres import Pool, connect, outbox, transaction
from headrace.postgres.inbox import first_delivery
from headrace.postgres.migrations import migrate

DEADLINE = 30.0
# A package of the platform that has no migrations but the library's.
LIBRARY = "headrace.postgres.tables"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def event(number: int, data: bytes | None = None) -> Event:
    return Event(
        id=str(number),
        source="tests",
        type="tests.numbered.v1",
        subject="numbers",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        data=str(number).encode() if data is None else data,
        traceparent=TRACEPARENT,
        extensions={"tenant": "ü"},
    )


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    async with connect(postgres_dsn, schema="tests", application_name="tests") as opened:
        await migrate(opened, LIBRARY)
        yield opened


@pytest.fixture
async def topic(kafka_bootstrap: str) -> str:
    name = f"tests.{uuid.uuid4().hex}.v1"
    template = load_topics()[DEAD_LETTERS].model_dump()
    await ensure_topics(kafka_bootstrap, [Topic(**{**template, "name": name, "partitions": 2})])
    return name


class Recorder(Producer):
    """Takes what a broker would, and can be away."""

    def __init__(self) -> None:
        super().__init__("", client_id="tests", idempotence=False)
        self.taken: list[tuple[str, str]] = []
        self.away = False
        self.refused = 0

    async def publish_encoded(self, records: Sequence[Encoded]) -> None:
        if self.away:
            self.refused += 1
            raise KafkaConnectionError("away")
        for topic, key, headers, value in records:
            assert isinstance(key, str)
            received = decode(headers, value, received=datetime.now(UTC))
            assert received == event(int(received.id))
            self.taken.append((f"{topic}/{key}", received.id))

    def ids(self) -> list[str]:
        return [taken for _, taken in self.taken]


@asynccontextmanager
async def relaying(pool: Pool, producer: Producer) -> AsyncIterator[None]:
    task = asyncio.create_task(outbox.Relay(pool, producer).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def queue(pool: Pool, *numbers: int) -> None:
    for number in numbers:
        async with transaction(pool) as connection:
            await outbox.enqueue(connection, "t", "key", event(number))


async def until_empty(pool: Pool) -> None:
    async with asyncio.timeout(DEADLINE):
        while await pool.fetchval("SELECT count(*) FROM outbox"):
            await asyncio.sleep(0.01)


async def test_events_leave_in_order_and_unchanged(pool: Pool) -> None:
    recorder = Recorder()
    await queue(pool, *range(5))
    async with relaying(pool, recorder):
        await until_empty(pool)
        await queue(pool, *range(5, 450))
        async with transaction(pool) as connection:
            await outbox.enqueue_all(connection, "t", [("key", event(n)) for n in range(450, 700)])
        await until_empty(pool)
    assert recorder.ids() == [str(number) for number in range(700)]


async def test_records_of_any_bytes_leave_as_they_are(pool: Pool) -> None:
    written: list[Encoded] = [
        ("t", "text", [("a", b"1"), ("b", b"\xff"), ("a", b"\0"), ("c", b"")], b"\xff\0"),
        ("t", b"\xff\x00", [("a", b"1")], b""),
        ("t", b"\0", [], b"x"),
    ]
    taken: list[Encoded] = []

    class Taker(Recorder):
        async def publish_encoded(self, records: Sequence[Encoded]) -> None:
            taken.extend(records)

    async with transaction(pool) as connection:
        records = [
            (key.encode() if isinstance(key, str) else key, headers, value)
            for _, key, headers, value in written
        ]
        await outbox.enqueue_records(connection, "t", records)
    async with relaying(pool, Taker()):
        await until_empty(pool)
    assert taken == written


async def test_an_event_of_a_transaction_that_fails_never_leaves(pool: Pool) -> None:
    recorder = Recorder()

    async def fails() -> None:
        async with transaction(pool) as connection:
            await outbox.enqueue(connection, "t", "key", event(1))
            raise RuntimeError

    async with relaying(pool, recorder):
        with pytest.raises(RuntimeError):
            await fails()
        await queue(pool, 2)
        await until_empty(pool)
    assert recorder.ids() == ["2"]


async def test_a_commit_wakes_the_relay_at_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "POLL_SECONDS", 2 * DEADLINE)
    recorder = Recorder()
    async with relaying(pool, recorder):
        await queue(pool, 0)
        await until_empty(pool)
        for number in range(1, 6):
            await queue(pool, number)
            await until_empty(pool)
    assert len(recorder.taken) == 6


async def test_without_a_notification_it_looks_by_itself(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "CHANNEL", "nobody_listens")
    recorder = Recorder()
    async with relaying(pool, recorder):
        monkeypatch.setattr(outbox, "CHANNEL", "nobody_notifies")
        await queue(pool, 1)
        await until_empty(pool)
    assert recorder.ids() == ["1"]


async def test_while_the_broker_is_away_events_stay(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.02)
    recorder = Recorder()
    recorder.away = True
    async with relaying(pool, recorder):
        await queue(pool, *range(3))
        async with asyncio.timeout(DEADLINE):
            while recorder.refused < 3:
                await asyncio.sleep(0.01)
        assert await pool.fetchval("SELECT count(*) FROM outbox") == 3
        recorder.away = False
        await until_empty(pool)
    assert recorder.ids() == ["0", "1", "2"]


async def test_a_producer_that_does_not_recover_ends_the_relay(pool: Pool) -> None:
    class Fenced(Recorder):
        async def publish_encoded(self, records: Sequence[Encoded]) -> None:
            raise OutOfOrderSequenceNumber

    await queue(pool, 1)
    with pytest.raises(OutOfOrderSequenceNumber):
        async with asyncio.timeout(DEADLINE):
            await outbox.Relay(pool, Fenced()).run()
    assert await pool.fetchval("SELECT count(*) FROM outbox") == 1


async def test_the_inbox_forgets_what_cannot_come_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.postgres.inbox.PART", 2)
    await pool.executemany(
        "INSERT INTO inbox (consumer, event_id, received_at)"
        " VALUES ('a', $1, now() - make_interval(days => $2))",
        [(f"{days} days old", days) for days in (0, 1, 34, 36, 37, 100, 1000, 2000)],
    )
    async with relaying(pool, Recorder()), asyncio.timeout(DEADLINE):
        while await pool.fetchval("SELECT count(*) FROM inbox") > 3:
            await asyncio.sleep(0.01)
    left = await pool.fetch("SELECT event_id FROM inbox ORDER BY received_at DESC")
    assert [row["event_id"] for row in left] == ["0 days old", "1 days old", "34 days old"]


async def test_while_the_database_is_away_the_relay_waits(
    pool: Pool, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.postgres.leader.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("headrace.postgres.leader.CHECK_SECONDS", 0.05)
    recorder = Recorder()
    # A pool of the test's own, whose connections are not among those that are ended.
    async with (
        connect(postgres_dsn, schema="tests", application_name="observer") as own,
        relaying(pool, recorder),
    ):
        for number in range(3):
            await queue(own, number)
            await until_empty(own)
            await own.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'tests'"
            )
        await queue(own, 3)
        await until_empty(own)
    assert list(dict.fromkeys(recorder.ids())) == ["0", "1", "2", "3"]


async def test_of_several_instances_one_relays_and_another_takes_over(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.postgres.leader.RETRY_SECONDS", 0.05)
    first, second = Recorder(), Recorder()
    async with relaying(pool, second):
        async with relaying(pool, first):
            await queue(pool, *range(20))
            await until_empty(pool)
        assert sorted([len(first.taken), len(second.taken)]) == [0, 20]
        await queue(pool, 20)
        await until_empty(pool)
    assert "20" in second.ids()


async def test_services_in_one_database_relay_their_own(postgres_dsn: str) -> None:
    async with (
        connect(postgres_dsn, schema="one", application_name="tests") as one,
        connect(postgres_dsn, schema="two", application_name="tests") as two,
    ):
        recorders = []
        for pool, number in ((one, 1), (two, 2)):
            await migrate(pool, LIBRARY)
            recorder = Recorder()
            recorders.append(recorder)
            async with relaying(pool, recorder):
                await queue(pool, number)
                await until_empty(pool)
        assert [recorder.ids() for recorder in recorders] == [["1"], ["2"]]


async def test_an_event_that_no_broker_would_take_fails_its_transaction(pool: Pool) -> None:
    with pytest.raises(outbox.EventTooLarge, match="at most 1000000 can be published"):
        async with transaction(pool) as connection:
            await outbox.enqueue(connection, "t", "key", event(1, b"x" * 1_000_000))
    async with transaction(pool) as connection:
        await outbox.enqueue(connection, "t", "key", event(1, b"x" * 999_000))


async def test_a_second_delivery_is_known_unless_the_first_was_rolled_back(pool: Pool) -> None:
    async def handle(consumer: str, source: str = "tests", *, fail: bool = False) -> bool:
        async with transaction(pool) as connection:
            first = await first_delivery(connection, consumer, replace(event(1), source=source))
            if fail:
                raise RuntimeError
            return first

    with pytest.raises(RuntimeError):
        await handle("a", fail=True)
    assert await handle("a")
    assert not await handle("a")
    assert await handle("b")
    # Producers give their ids without knowing of each other.
    assert await handle("a", "elsewhere")
    assert not await handle("a", "elsewhere")


async def test_of_two_deliveries_at_once_one_is_the_first(pool: Pool) -> None:
    async def handle() -> bool:
        async with transaction(pool) as connection:
            first = await first_delivery(connection, "a", event(1))
            await connection.execute("SELECT pg_sleep(0.05)")
            return first

    assert sorted(await asyncio.gather(handle(), handle(), handle())) == [False, False, True]


@pytest.mark.broker
@pytest.mark.kill
@pytest.mark.parametrize("where", ["outbox.before-publish", "outbox.after-publish"])
async def test_a_killed_relay_loses_nothing_and_keeps_each_keys_order(
    pool: Pool, postgres_dsn: str, kafka_bootstrap: str, topic: str, tmp_path: Path, where: str
) -> None:
    environment = {**os.environ, "HEADRACE_FAULT": where, "HEADRACE_FAULT_ONCE": str(tmp_path / "fired")}
    arguments: list[str | Path] = [
        Path(__file__).with_name("relaying.py"),
        postgres_dsn,
        kafka_bootstrap,
        topic,
    ]
    killed = await asyncio.create_subprocess_exec(sys.executable, *arguments, "30", env=environment)
    async with asyncio.timeout(DEADLINE):
        assert await killed.wait() == -signal.SIGKILL
    assert await pool.fetchval("SELECT count(*) FROM outbox") == 30

    again = await asyncio.create_subprocess_exec(sys.executable, *arguments, "0", env=environment)
    try:
        await until_empty(pool)
    finally:
        again.terminate()
        await again.wait()

    expected = 30 if where == "outbox.before-publish" else 60
    by_key = await consumed(kafka_bootstrap, topic, expected)
    assert sum(len(ids) for ids in by_key.values()) == expected
    for key, ids in by_key.items():
        firsts = list(dict.fromkeys(ids))
        assert firsts == sorted(firsts)
        assert {f"key-{number % 3}".encode() for number in ids} == {key}
    assert set(itertools.chain(*by_key.values())) == set(range(30))


async def consumed(bootstrap: str, topic: str, count: int) -> dict[bytes, list[int]]:
    found: defaultdict[bytes, list[int]] = defaultdict(list)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None
    )
    async with consumer, asyncio.timeout(DEADLINE):
        while sum(len(ids) for ids in found.values()) < count:
            record = await consumer.getone()
            found[record.key].append(int(record.value))
    return dict(found)

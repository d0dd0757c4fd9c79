"""Three instances that are killed and paused at random moments, while a producer repeats itself and errs.

What must come of it is worked out by an independent reader of the topic, which shares no code with the
service. Here a short run; `make test-chaos` makes a long one, of a million events and a hundred faults.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import asyncpg
import deltalake
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from tests.support.ingestion import Ingestion, Process
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.events.ingestion.v1 import events_pb2
from headrace.ingestion.domain.content_hash import hash_rows, to_hex
from headrace.messaging import topics

EVENTS: Final = int(os.environ.get("HEADRACE_CHAOS_EVENTS", "4000"))
FAULTS: Final = int(os.environ.get("HEADRACE_CHAOS_FAULTS", "4"))
SEED: Final = int(os.environ.get("HEADRACE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
BATCH: Final = max(100, EVENTS // 100)
# Each fault may cost a rebalance, which waits for the session of who died.
SECONDS: Final = 120.0 + 20.0 * FAULTS + EVENTS / 1000

pytestmark = [pytest.mark.broker, pytest.mark.timeout(2 * SECONDS)]

Place = tuple[int, int]
"""Partition and offset."""


def payload(rng: random.Random, number: int) -> bytes:
    """A valid row, but for one in twenty."""
    row: dict[str, object] = {"id": f"p{number % 50}", "radius": number / 2, "grade": None, "malignant": 1}
    fault = rng.random()
    if fault < 0.02:
        row["radius"] = "wide"
    elif fault < 0.04:
        row.pop("malignant")
    text = json.dumps(row).encode()
    return text[:-1] if 0.04 <= fault < 0.05 else text


def is_valid(data: bytes) -> bool:
    """What the dataset's declaration says, in other words."""
    try:
        row = json.loads(data)
    except ValueError:
        return False
    return isinstance(row["radius"], float) and row.get("malignant") in (0, 1)


@dataclass
class Chaos:
    """The producer's side, and what has come of it so far."""

    ingestion: Ingestion
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))
    sent: int = 0

    async def produce(self) -> None:
        """Send all events, some of them again a little later, and never far ahead of what is stored."""
        producer = Producer({"bootstrap.servers": self.ingestion.bootstrap, "linger.ms": 5})
        for start in range(0, EVENTS, BATCH):
            chunk = [(number, payload(self.rng, number)) for number in range(start, start + BATCH)]
            repeated = [event for event in chunk if self.rng.random() < 0.03]
            for number, value in [*chunk, *repeated]:
                headers = self.ingestion.headers(f"{self.ingestion.dataset}-{number:08}")
                producer.produce(topics.SAMPLES, value, f"p{number % 50}".encode(), headers=headers)
            left: int = await asyncio.to_thread(producer.flush, 60)
            assert left == 0
            self.sent += len(chunk) + len(repeated)
            behind = start - 4 * BATCH
            await eventually(self.accounted, lambda count, behind=behind: count >= behind, SECONDS)

    async def accounted(self) -> int:
        """Rows and rejected events."""
        return await asyncio.to_thread(self._rows) + len(await self.rejected())

    def _rows(self) -> int:
        table = deltalake.DeltaTable(f"{self.ingestion.store_uri}/datasets/{self.ingestion.dataset}")
        return int(sum(pa.table(table.get_add_actions(flatten=True)).column("num_records").to_pylist()))

    async def rejected(self) -> list[Place]:
        connection = await asyncpg.connect(self.ingestion.dsn)
        try:
            rows = await connection.fetch(
                'SELECT partition, "offset" FROM ingestion.rejected_samples WHERE dataset = $1',
                self.ingestion.dataset,
            )
        finally:
            await connection.close()
        return [(row["partition"], row["offset"]) for row in rows]

    def records(self, topic: str) -> Generator[Message, None, None]:
        """This test's records of a topic, in the order of each partition, for as long as any come."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.ingestion.bootstrap,
                "group.id": f"{self.ingestion.group}-checker",
                "enable.auto.commit": False,
            }
        )
        partitions = consumer.list_topics(topic, 30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        try:
            while True:
                record = consumer.poll(60)
                assert record is not None
                assert record.error() is None
                if dict(record.headers() or []).get("ce_subject") == self.ingestion.dataset.encode():
                    yield record
        finally:
            consumer.close()

    def announced(self, count: int) -> list[Place]:
        """So many rejected events that were told of, each once however often its event was published."""
        told: dict[bytes, Place] = {}
        with closing(self.records(topics.REJECTED_SAMPLES)) as records:
            while len(told) < count:
                record = next(records)
                rejected = events_pb2.SampleRejected.FromString(record.value()).rejected
                place = (rejected.partition, rejected.offset)
                assert told.setdefault(dict(record.headers())["ce_id"], place) == place
        return sorted(told.values())

    def expected(self) -> tuple[dict[str, Place], list[Place]]:
        """Where each valid event came first, and where the others are."""
        valid: dict[str, Place] = {}
        invalid: list[Place] = []
        with closing(self.records(topics.SAMPLES)) as records:
            sent = list(islice(records, self.sent))
        for record in sent:
            place = (record.partition(), record.offset())
            name = dict(record.headers())["ce_id"].decode()
            if is_valid(record.value()):
                valid.setdefault(name, place)
            else:
                invalid.append(place)
        return valid, sorted(invalid)


@dataclass
class Instances:
    """Those that run, and those that sleep."""

    ingestion: Ingestion
    rng: random.Random
    awake: list[Process] = field(default_factory=list)
    asleep: list[Process] = field(default_factory=list)

    async def start(self) -> None:
        settings = {"HEADRACE_INGESTION_BATCH_EVENTS": str(BATCH)}
        self.awake.append(await self.ingestion.start_ready(**settings))

    async def harm(self) -> None:
        """Kill one, or pause it; wake the one that was paused before; another one takes its place."""
        victim = self.awake.pop(self.rng.randrange(len(self.awake)))
        if self.rng.random() < 0.3:
            victim.process.send_signal(signal.SIGSTOP)
            self.asleep.append(victim)
        else:
            victim.process.kill()
            await victim.killed()
            self.wake()
        await self.start()

    def wake(self) -> None:
        for process in self.asleep:
            process.process.send_signal(signal.SIGCONT)
        self.awake += self.asleep
        self.asleep.clear()

    async def stop(self) -> None:
        self.wake()
        assert [await process.stop() for process in self.awake] == [0] * len(self.awake)


async def test_random_faults_lose_nothing_and_double_nothing(ingestion: Ingestion) -> None:
    print(f"HEADRACE_CHAOS_SEED={SEED}")
    chaos = Chaos(ingestion)
    instances = Instances(ingestion, chaos.rng)
    for _ in range(3):
        await instances.start()
    await ingestion.apply(instances.awake[0], rows=EVENTS // 10)
    producing = asyncio.create_task(chaos.produce())
    for threshold in sorted(chaos.rng.sample(range(EVENTS // 20, EVENTS * 9 // 10), FAULTS)):
        await eventually(chaos.accounted, lambda count, threshold=threshold: count >= threshold, SECONDS)
        await instances.harm()
    await producing

    valid, invalid = await asyncio.to_thread(chaos.expected)
    await eventually(chaos.accounted, lambda count: count >= len(valid) + len(invalid), SECONDS)
    async with ingestion.stub(instances.awake[-1]) as stub:
        version = await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
    # Whoever slept wakes with work in hand, and ends it.
    await instances.stop()

    table = pa.table(deltalake.DeltaTable(version.table_uri).to_pyarrow_table())
    names, partitions, offsets = (
        table.column(name).to_pylist() for name in ("_event_id", "_partition", "_offset")
    )
    assert Counter(names) == Counter(valid.keys())
    assert dict(zip(names, zip(partitions, offsets, strict=True), strict=True)) == valid
    assert sorted(await chaos.rejected()) == invalid
    assert await asyncio.to_thread(chaos.announced, len(invalid)) == invalid
    assert version.row_count == len(valid)
    assert version.content_hash == to_hex(hash_rows(table, ["id", "radius", "grade", "malignant"]))

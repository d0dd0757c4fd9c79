"""Events on Kafka to rows of a Delta table, against a bare consumer of the same topic.

    python benchmarks/ingestion.py [--events 1000000] [--format json|protobuf|avro] [--malformed 0.01]
        [--processes 2] [--broker kafka] [--json FILE]

Events are samples of an id, a time, ten numbers and a label, 190 bytes in JSON, as CloudEvents in binary
mode, on the four partitions of the samples topic. First a bare aiokafka consumer reads all of them and looks
at none. Then the ingestion service does what it does: reads envelopes, validates every field, stores rows and
offsets in one Delta commit, keeps what it rejects. Its time runs from when it is ready, before its first
fetch, to its last commit; its memory is the largest resident size that the kernel saw. Where there are
several processes, that is one's, and time and events count from when the last of them is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType

import deltalake
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from formats import FORMATS, Format, registry
from setting import Service, machine

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import ingestion_pb2_grpc as api_grpc
from headrace.embedded.parts import free_port
from headrace.embedded.parts.kafka import ApacheKafka
from headrace.embedded.parts.postgres import Postgres
from headrace.embedded.parts.tansu import Tansu
from headrace.messaging.topics import SAMPLES, ensure_topics, load_topics
from headrace.rpc.client import channel

DATASET = "benchmark"
FEATURES = 10
BAR_RATE, BAR_RATIO, BAR_MEMORY_MIB = 150_000, 0.5, 600
_PRODUCED_AT_ONCE = 500


def row_of(rng: random.Random, number: int) -> dict[str, object]:
    """One event's row."""
    row: dict[str, object] = {"id": f"p{number:07}", "at": f"2026-01-02T03:04:{number % 60:02}Z"}
    row |= {f"x{index}": round(rng.random(), 5) for index in range(FEATURES)}
    row["y"] = number % 2
    return row


def payload(rng: random.Random, number: int, malformed: float, form: Format = FORMATS["json"]) -> bytes:
    """One event's row, or something that is none."""
    row = row_of(rng, number)
    if rng.random() >= malformed:
        return form.write(row)
    if rng.random() < 0.5:
        return form.write(row)[:-5]
    row["x3"] = 2.0
    return form.write(row)


def headers_of(number: int, form: Format = FORMATS["json"]) -> list[tuple[str, bytes]]:
    """One event's attributes."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", f"event-{number}".encode()),
        ("ce_source", b"benchmark"),
        ("ce_type", b"headrace.ingestion.sample.v1"),
        ("ce_subject", DATASET.encode()),
        ("content-type", form.content_type.encode()),
    ]


async def produce(
    bootstrap: str, events: int, malformed: float, form: Format = FORMATS["json"], first: int = 0
) -> float:
    """Send so many events, `first` the first one's number; mean bytes of a payload."""
    rng, size = random.Random(first), 0
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks=1, max_batch_size=1 << 20, linger_ms=20
    ) as producer:
        partitions = sorted(await producer.partitions_for(SAMPLES))
        pending: set[asyncio.Future[object]] = set()
        for start in range(first, first + events, _PRODUCED_AT_ONCE):
            partition = partitions[start // _PRODUCED_AT_ONCE % len(partitions)]
            batch = producer.create_batch()
            for number in range(start, min(first + events, start + _PRODUCED_AT_ONCE)):
                value = payload(rng, number, malformed, form)
                size += len(value)
                key = f"p{number:07}".encode()
                batch.append(key=key, value=value, timestamp=None, headers=headers_of(number, form))
            pending.add(await producer.send_batch(batch, SAMPLES, partition=partition))
            if len(pending) >= 16:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*pending)
    return size / events


async def bare(bootstrap: str, events: int) -> float:
    """Events a second that a consumer reads if it does nothing with them."""
    consumer = AIOKafkaConsumer(
        SAMPLES,
        bootstrap_servers=bootstrap,
        group_id=f"bare-{uuid.uuid4()}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    async with consumer:
        read, started = 0, 0.0
        while read < events:
            fetched = await consumer.getmany(timeout_ms=250, max_records=20_000)
            if fetched and not started:
                started = time.perf_counter()
            read += sum(map(len, fetched.values()))
        return read / (time.perf_counter() - started)


def schema() -> api.Schema:
    """Every field with a rule."""
    return api.Schema(
        key="id",
        features=[
            api.Field(name="at", type=api.FIELD_TYPE_STRING),
            *(
                api.Field(name=f"x{index}", type=api.FIELD_TYPE_FLOAT32, min=0, max=1)
                for index in range(FEATURES)
            ),
        ],
        label=api.Field(name="y", type=api.FIELD_TYPE_INT8, allowed_values=["0", "1"]),
    )


async def apply(service: Service) -> None:
    """Declare the dataset."""
    async with channel(f"127.0.0.1:{service.grpc_port}") as opened:
        await api_grpc.IngestionServiceStub(opened).ApplyDataset(
            api.ApplyDatasetRequest(name=DATASET, schema=schema())
        )


async def described(service: Service) -> api.Dataset:
    """The dataset now."""
    async with channel(f"127.0.0.1:{service.grpc_port}") as opened:
        return await api_grpc.IngestionServiceStub(opened).GetDataset(api.GetDatasetRequest(name=DATASET))


async def ingest(services: Sequence[Service], table: str, events: int) -> dict[str, float]:
    """Start the service on a full topic and wait until every event is a row or a rejection."""
    async with asyncio.TaskGroup() as starting:
        for service in services:
            starting.create_task(service.start())
    started = time.time()
    dataset = await described(services[0])
    before = dataset.row_count + dataset.rejected_count
    while True:
        dataset = await described(services[0])
        if dataset.row_count + dataset.rejected_count >= events:
            break
        await asyncio.sleep(0.25)
    peak = max(resident_mib(service.pid) for service in services if service.pid is not None)
    history = deltalake.DeltaTable(table).history()
    for service in services:
        await service.stop()
    seconds = max(entry["timestamp"] for entry in history) / 1000 - started
    return {
        "rows": dataset.row_count,
        "rejected": dataset.rejected_count,
        "commits": len(history),
        "seconds": seconds,
        "events_per_second": (events - before) / seconds,
        "peak_mib": peak,
    }


def resident_mib(pid: int, what: str = "VmHWM") -> float:
    """The largest resident size of a process so far; with "VmRSS" the present one."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


async def started_broker(folder: Path, broker_name: str, stack: AsyncExitStack) -> ApacheKafka | Tansu:
    """Start a broker that has the platform's topics."""
    logs = folder / "logs"
    broker: ApacheKafka | Tansu
    if broker_name == "kafka":
        broker = ApacheKafka(folder / "kafka", logs, free_port(), free_port())
    else:
        broker = Tansu(folder / "tansu", logs, free_port())
    await broker.start()
    stack.push_async_callback(broker.stop)
    await ensure_topics(broker.bootstrap, load_topics().values())
    return broker


async def services_on(
    broker: ApacheKafka | Tansu,
    folder: Path,
    stack: AsyncExitStack,
    processes: int = 1,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Sequence[Service]:
    """Start a database; the services that are to run on it, with their own store and consumer group."""
    logs, store = folder / "logs", folder / "store"
    database = Postgres(folder / "postgres", logs, free_port(), durable=True)
    await database.start()
    stack.push_async_callback(database.stop)
    store.mkdir(exist_ok=True)
    environment = {
        "HEADRACE_KAFKA_BOOTSTRAP": broker.bootstrap,
        "HEADRACE_KAFKA_IDEMPOTENCE": str(isinstance(broker, ApacheKafka)).lower(),
        "HEADRACE_POSTGRES_DSN": database.dsn,
        "HEADRACE_STORE_URI": f"file://{store}",
        "HEADRACE_INGESTION_CONSUMER_GROUP": f"benchmark-{folder.name}",
        **settings,
    }
    services = [
        Service("ingestion", folder / f"service-{number}", logs / str(number), environment)
        for number in range(processes)
    ]
    for service in services:
        stack.push_async_callback(service.stop)
    return services


async def started_parts(
    folder: Path,
    broker_name: str,
    stack: AsyncExitStack,
    processes: int = 1,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Sequence[Service], str]:
    """Start a broker and a database; the services that are to run on them, and the broker's address."""
    broker = await started_broker(folder, broker_name, stack)
    return await services_on(broker, folder, stack, processes, settings), broker.bootstrap


async def measure(
    folder: Path, broker_name: str, events: int, malformed: float, processes: int, form: str
) -> dict[str, float]:
    """Both sides on one topic."""
    async with AsyncExitStack() as stack:
        environment = {}
        if form == "avro":
            address = stack.enter_context(registry(row_of(random.Random(0), 0)))
            environment["HEADRACE_INGESTION_SCHEMA_REGISTRY_URL"] = address
        services, bootstrap = await started_parts(folder, broker_name, stack, processes, environment)
        await services[0].start()
        await apply(services[0])
        await services[0].stop()
        size = await produce(bootstrap, events, malformed, FORMATS[form])
        rate = await bare(bootstrap, events)
        figures = await ingest(services, str(folder / "store" / "datasets" / DATASET), events)
    figures |= {
        "payload_bytes": size,
        "bare_per_second": rate,
    }
    return figures | {"ratio": figures["events_per_second"] / rate}


def main() -> int:
    """Measure, print, and answer 0 where the bars are kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--format", choices=list(FORMATS), default="json")
    parser.add_argument("--malformed", type=float, default=0.0, help="share of events that are no valid row")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--broker", choices=["kafka", "embedded"], default="kafka")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
        figures = asyncio.run(
            measure(
                Path(folder),
                arguments.broker,
                arguments.events,
                arguments.malformed,
                arguments.processes,
                arguments.format,
            )
        )
    where = machine("aiokafka", "deltalake", "pyarrow")
    for name, value in where.items():
        print(f"{name:10} {value}")
    print(
        f"\n{arguments.events:,} events of {figures['payload_bytes']:.0f} bytes, {arguments.format}, "
        f"broker: {arguments.broker}, processes: {arguments.processes}"
    )
    stored, rejected = figures["rows"], figures["rejected"]
    print(f"{stored:,.0f} rows, {rejected:,.0f} rejected, {figures['commits']:.0f} commits\n")
    print(f"bare consumer     {figures['bare_per_second']:>10,.0f} events/s")
    print(f"ingestion         {figures['events_per_second']:>10,.0f} events/s (bar: {BAR_RATE:,})")
    print(f"ratio             {figures['ratio']:>10.2f}          (bar: {BAR_RATIO})")
    print(f"peak memory       {figures['peak_mib']:>10,.0f} MiB      (bar: {BAR_MEMORY_MIB})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": where, "figures": figures}, indent=1) + "\n")
    kept = (
        figures["events_per_second"] >= BAR_RATE
        and figures["ratio"] >= BAR_RATIO
        and figures["peak_mib"] < BAR_MEMORY_MIB
    )
    print("\nthe bars are kept" if kept else "\na bar is missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

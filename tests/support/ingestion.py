"""The ingestion service as a process of its own, on real parts, and what tests ask of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import deltalake
import pyarrow as pa
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from tests.support.services import platform
from tests.support.waiting import PATIENCE_SECONDS, eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import ingestion_pb2_grpc as api_grpc
from headrace.api.ingestion.v1 import versions_pb2_grpc
from headrace.embedded.parts import free_port
from headrace.events.ingestion.v1 import events_pb2
from headrace.messaging import topics
from headrace.objects.store import delta_storage_options
from headrace.rpc.client import channel

Headers = list[tuple[str, bytes]]

# Of a service that tests share, each list of rejected events is read as far back as the test's own go.
_PAGE: Final = 100
_SHOWN_CHARACTERS: Final = 20_000


@dataclass
class Process:
    """One running instance."""

    process: asyncio.subprocess.Process
    target: str
    http_port: int
    log: Path

    async def is_ready(self) -> bool:
        return await self.why_unready() == ""

    async def why_unready(self) -> str:
        """What /readyz says; nothing where it is ready."""

        def ask() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/readyz", timeout=5):
                    return ""
            except urllib.error.HTTPError as error:
                return str(error.read().decode())
            except OSError as error:
                return repr(error)

        assert self.process.returncode is None, f"the service ended by itself:\n{self.log_end()}"
        return await asyncio.to_thread(ask)

    async def metric(self, name: str, **labels: str) -> float:
        """The sample of that name with these labels; 0 where there is none."""

        def ask() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5) as answer:
                text: str = answer.read().decode()
                return text

        families = text_string_to_metric_families(await asyncio.to_thread(ask))
        samples = (sample for family in families for sample in family.samples)
        return next((s.value for s in samples if s.name == name and s.labels == labels), 0.0)

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-_SHOWN_CHARACTERS:]

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_SECONDS)

    async def killed(self) -> None:
        assert await asyncio.wait_for(self.process.wait(), PATIENCE_SECONDS) == -signal.SIGKILL


@dataclass
class Ingestion:
    """A database, a store and a consumer group of their own, and processes on them."""

    bootstrap: str
    dsn: str
    store_uri: str
    folder: Path
    group: str = field(default_factory=lambda: f"test-{uuid.uuid4()}")
    # Many tests share the broker, and with it the topic.
    dataset: str = field(default_factory=lambda: f"d-{uuid.uuid4()}")
    # Rejected events with ids up to this one are of tests before.
    rejected_before: int = 0
    processes: list[Process] = field(default_factory=list)

    async def begin_here(self) -> None:
        """Have the consumer group begin behind what other tests left in the topic."""
        declared = topics.load_topics()
        await topics.ensure_topics(self.bootstrap, declared.values())
        partitions = [TopicPartition(topics.SAMPLES, n) for n in range(declared[topics.SAMPLES].partitions)]
        async with AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, group_id=self.group, enable_auto_commit=False
        ) as consumer:
            consumer.assign(partitions)
            await consumer.commit(await consumer.end_offsets(partitions))

    async def for_another_test(self, process: Process) -> Ingestion:
        """The same service, with a dataset of the test's own and no rejected events so far."""
        async with self.stub(process) as stub:
            newest = (await stub.ListRejected(api.ListRejectedRequest(page_size=1))).rejected
        return replace(self, dataset=f"d-{uuid.uuid4()}", rejected_before=newest[0].id if newest else 0)

    async def start(self, **environment: str) -> Process:
        grpc_port, http_port = free_port(), free_port()
        log = self.folder / f"ingestion-{len(self.processes)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "headrace.ingestion",
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    **platform(self.bootstrap, self.dsn, self.store_uri),
                    "HEADRACE_INGESTION_GRPC_ADDRESS": f"127.0.0.1:{grpc_port}",
                    "HEADRACE_INGESTION_HTTP_ADDRESS": f"127.0.0.1:{http_port}",
                    "HEADRACE_INGESTION_CONSUMER_GROUP": self.group,
                    "HEADRACE_INGESTION_INFERENCE_TARGET": "",
                    **environment,
                },
            )
        started = Process(process, f"127.0.0.1:{grpc_port}", http_port, log)
        self.processes.append(started)
        return started

    async def start_ready(self, **environment: str) -> Process:
        process = await self.start(**environment)
        await eventually(process.is_ready, bool)
        return process

    @asynccontextmanager
    async def stub(self, process: Process) -> AsyncIterator[api_grpc.IngestionServiceAsyncStub]:
        async with channel(process.target) as connection:
            yield api_grpc.IngestionServiceStub(connection)

    @asynccontextmanager
    async def version_stub(
        self, process: Process
    ) -> AsyncIterator[versions_pb2_grpc.DatasetVersionServiceAsyncStub]:
        async with channel(process.target) as connection:
            yield versions_pb2_grpc.DatasetVersionServiceStub(connection)

    def schema(self) -> api.Schema:
        return api.Schema(
            key="id",
            features=[
                api.Field(name="radius", type=api.FIELD_TYPE_FLOAT32, min=0),
                api.Field(name="grade", type=api.FIELD_TYPE_INT8, nullable=True),
            ],
            label=api.Field(name="malignant", type=api.FIELD_TYPE_INT8, allowed_values=["0", "1"]),
        )

    async def apply(
        self, process: Process, *, rows: int = 0, seconds: float = 0, schedule: str = ""
    ) -> api.Dataset:
        request = api.ApplyDatasetRequest(
            name=self.dataset,
            schema=self.schema(),
            cut=api.Cut(rows=rows, seconds=seconds, schedule=schedule),
        )
        async with self.stub(process) as stub:
            return await stub.ApplyDataset(request)

    def headers(self, event_id: str, **changes: str | None) -> Headers:
        values = {
            "ce_specversion": "1.0",
            "ce_id": event_id,
            "ce_source": "tests",
            "ce_type": "headrace.ingestion.sample.v1",
            "ce_subject": self.dataset,
            "ce_time": "2026-01-02T03:04:05Z",
            "content-type": "application/json",
            **{name.replace("__", "-"): value for name, value in changes.items()},
        }
        return [(name, value.encode()) for name, value in values.items() if value is not None]

    async def publish(self, records: Sequence[tuple[bytes | None, bytes | None, Headers]]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.bootstrap, max_request_size=16 << 20) as producer:
            pending = [
                await producer.send(topics.SAMPLES, value, key=key, headers=headers)
                for key, value, headers in records
            ]
            for acknowledged in pending:
                await acknowledged

    async def caught_up(self, process: Process) -> None:
        """Wait until the process has read what stands in the topic, every partition of it."""
        nowhere = f"caught-up-{uuid.uuid4()}"
        async with AIOKafkaProducer(bootstrap_servers=self.bootstrap) as producer:
            partitions = await producer.partitions_for(topics.SAMPLES)
            for partition in partitions:
                headers = self.headers(f"{nowhere}-{partition}", ce_subject=nowhere)
                await producer.send_and_wait(topics.SAMPLES, b"{}", partition=partition, headers=headers)

        async def markers() -> list[api.RejectedSample]:
            return [sample for sample in await self._all_rejected(process) if sample.dataset == nowhere]

        await eventually(markers, lambda rejected: len(rejected) == len(partitions))

    def table(self, version: int | None = None) -> deltalake.DeltaTable:
        """The dataset's table. Blocks."""
        return deltalake.DeltaTable(
            f"{self.store_uri}/datasets/{self.dataset}", version, storage_options=delta_storage_options()
        )

    async def rows(self) -> list[Mapping[str, object]]:
        """The table's rows, by event id."""

        def read() -> list[Mapping[str, object]]:
            try:
                table = self.table()
            except deltalake.exceptions.TableNotFoundError:
                return []
            rows: list[Mapping[str, object]] = pa.table(table.to_pyarrow_table()).to_pylist()
            return sorted(rows, key=lambda row: str(row["_event_id"]))

        return await asyncio.to_thread(read)

    async def files(self) -> int:
        """How many files the table has."""

        def count() -> int:
            return len(self.table().file_uris())

        return await asyncio.to_thread(count)

    async def rejected(self, process: Process) -> list[api.RejectedSample]:
        """Every rejected event of this test's own, oldest first."""
        return [sample for sample in await self._all_rejected(process) if self.is_own(sample)]

    async def _all_rejected(self, process: Process) -> list[api.RejectedSample]:
        found: list[api.RejectedSample] = []
        token = ""
        async with self.stub(process) as stub:
            while True:
                page = await stub.ListRejected(api.ListRejectedRequest(page_size=_PAGE, page_token=token))
                own = [sample for sample in page.rejected if sample.id > self.rejected_before]
                found += own
                token = page.next_page_token
                if not token or len(own) < len(page.rejected):
                    return found[::-1]

    def is_own(self, sample: api.RejectedSample) -> bool:
        return sample.event_id.startswith(self.dataset) or sample.dataset.startswith(self.dataset)

    async def versions(self, process: Process) -> list[api.DatasetVersion]:
        """Oldest first."""
        async with self.stub(process) as stub:
            answer = await stub.ListVersions(api.ListVersionsRequest(dataset=self.dataset))
            return list(reversed(answer.versions))

    async def published(self, topic: str, count: int) -> list[tuple[dict[str, bytes], bytes]]:
        """So many different events of this dataset on a topic, and the copies of those published twice."""
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=self.bootstrap, auto_offset_reset="earliest", group_id=None
        )
        found: list[tuple[dict[str, bytes], bytes]] = []
        async with consumer, asyncio.timeout(PATIENCE_SECONDS):
            while len({headers["ce_id"] for headers, _ in found}) < count:
                record = await consumer.getone()
                headers = dict(record.headers)
                if headers.get("ce_subject", b"").decode().startswith(self.dataset):
                    found.append((headers, record.value))
        return found

    async def committed(self, count: int) -> list[events_pb2.DatasetVersionCommitted]:
        events = await self.published(topics.DATASET_VERSIONS, count)
        return [events_pb2.DatasetVersionCommitted.FromString(value) for _, value in events]

    async def close(self) -> None:
        for process in self.processes:
            if process.process.returncode is None:
                process.process.kill()
                await process.process.wait()


class Running(NamedTuple):
    """An environment, and the process that runs in it."""

    ingestion: Ingestion
    process: Process


@asynccontextmanager
async def ingestion_on(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, folder: Path
) -> AsyncIterator[Ingestion]:
    """An environment in which no process runs yet, and none does afterwards."""
    environment = Ingestion(kafka_bootstrap, postgres_dsn, store_uri, folder)
    await environment.begin_here()
    try:
        yield environment
    finally:
        await environment.close()

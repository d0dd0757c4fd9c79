"""The scheduling service as a process of its own, with a node and peers that tests play."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from aiokafka import AIOKafkaConsumer
from google.protobuf.duration_pb2 import Duration
from tests.support.services import until_connected
from tests.support.waiting import PATIENCE_SECONDS, eventually

from headrace import errors
from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.api.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc, quality_pb2
from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.api.scheduling.v1 import scheduling_pb2_grpc
from headrace.api.training.v1 import training_pb2
from headrace.embedded.parts import free_port
from headrace.events.ingestion.v1 import events_pb2 as ingestion_events
from headrace.events.scheduling.v1 import events_pb2 as scheduling_events
from headrace.events.training.v1 import events_pb2 as training_events
from headrace.messaging import topics
from headrace.messaging.events import Event, decode, parse, protobuf_event
from headrace.messaging.producer import Producer
from headrace.rpc.client import channel
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health

if TYPE_CHECKING:
    Stub = scheduling_pb2_grpc.SchedulingServiceAsyncStub
else:
    Stub = object

# Longer than a node may take to connect again: gRPC waits for up to two seconds between its tries.
LEASE_SECONDS = 4.0
TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
GIBIBYTE = 1 << 30


BLOCKED: dict[str, Any] = {
    "verdict": quality_pb2.VERDICT_BLOCK,
    "findings": [
        quality_pb2.QualityFinding(rule="range", verdict=quality_pb2.VERDICT_WARN, message="x: a bit much"),
        quality_pb2.QualityFinding(
            rule="null_share", verdict=quality_pb2.VERDICT_BLOCK, message="y: half of it is missing"
        ),
    ],
}
"""What a dataset version says that its quality rules block."""


def a_schema() -> ingestion_pb2.Schema:
    return ingestion_pb2.Schema(
        key="patient_id",
        features=[ingestion_pb2.Field(name="mean_radius", type=ingestion_pb2.FIELD_TYPE_FLOAT32, min=0)],
        label=ingestion_pb2.Field(
            name="malignant", type=ingestion_pb2.FIELD_TYPE_INT8, allowed_values=["0", "1"]
        ),
    )


def a_spec(**changes: Any) -> pb.PipelineSpec:
    spec = pb.PipelineSpec(
        dataset=pb.PipelineSpec.DatasetSpec(
            schema=a_schema(),
            cut=ingestion_pb2.Cut(rows=10),
            rejects=ingestion_pb2.Rejects(alert_share=0.1, hold_cut=True),
            retention=ingestion_pb2.Retention(versions=Duration(seconds=86_400)),
        ),
        training=pb.TrainingSpec(recipe="mlp", split=pb.Split(train=0.7, validation=0.15, test=0.15), seed=7),
        resources=pb.Resources(cpu=1, memory_bytes=GIBIBYTE),
        gates=[pb.Gate(metric="accuracy", split="test", min=0.9)],
        deployment=pb.PipelineSpec.DeploymentSpec(name="live", rollout=pb.RolloutSpec(steps=[10, 50, 100])),
        retrain_on_dataset_version=True,
    )
    spec.training.parameters.update({"hidden": [8], "loss": "cross_entropy", "epochs": 5})
    spec.MergeFrom(pb.PipelineSpec(**changes))
    return spec


class Ingestion(ingestion_pb2_grpc.IngestionServiceServicer):
    """Has every dataset that was applied, each with as many versions."""

    def __init__(self) -> None:
        self.latest_version = 2
        self.blocked_versions: set[int] = set()
        self.expired_versions: set[int] = set()
        self.applied: list[ingestion_pb2.ApplyDatasetRequest] = []
        self.refusal: errors.HeadraceError | None = None

    async def ApplyDataset(self, request: Any, context: Any) -> ingestion_pb2.Dataset:
        if self.refusal is not None:
            raise self.refusal
        self.applied.append(request)
        return ingestion_pb2.Dataset(name=request.name)

    async def GetDataset(self, request: Any, context: Any) -> ingestion_pb2.Dataset:
        return ingestion_pb2.Dataset(name=request.name, schema=a_schema(), latest_version=self.latest_version)

    async def CommitVersion(self, request: Any, context: Any) -> ingestion_pb2.DatasetVersion:
        newest = ingestion_pb2.GetVersionRequest(dataset=request.dataset, version=self.latest_version)
        return await self.GetVersion(newest, context)

    async def GetVersion(self, request: Any, context: Any) -> ingestion_pb2.DatasetVersion:
        if request.version > self.latest_version:
            raise errors.NotFound("DATASET_VERSION_NOT_FOUND", "there is no such version")
        if request.version in self.expired_versions:
            raise errors.NotFound("VERSION_EXPIRED", f"version {request.version} was forgotten")
        return ingestion_pb2.DatasetVersion(
            dataset=request.dataset,
            version=request.version,
            traceparent=TRACEPARENT,
            **(BLOCKED if request.version in self.blocked_versions else {}),
        )


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self) -> None:
        self.applied: list[registry_pb2.ApplyModelRequest] = []

    async def ApplyModel(self, request: Any, context: Any) -> registry_pb2.Model:
        self.applied.append(request)
        return registry_pb2.Model(name=request.name)


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self) -> None:
        self.applied: list[inference_pb2.ApplyDeploymentRequest] = []

    async def ApplyDeployment(self, request: Any, context: Any) -> inference_pb2.Deployment:
        self.applied.append(request)
        return inference_pb2.Deployment(name=request.name)


@dataclass
class Peers:
    """The three services that a pipeline spans, played in this process."""

    target: str
    ingestion: Ingestion
    registry: Registry
    inference: Inference


@asynccontextmanager
async def play_peers() -> AsyncIterator[Peers]:
    ingestion, registry, inference = Ingestion(), Registry(), Inference()
    bindings = [
        ServiceBinding(add, servicer, f"headrace.api.{name}.v1.{name.capitalize()}Service")
        for add, servicer, name in (
            (ingestion_pb2_grpc.add_IngestionServiceServicer_to_server, ingestion, "ingestion"),
            (registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry, "registry"),
            (inference_pb2_grpc.add_InferenceServiceServicer_to_server, inference, "inference"),
        )
    ]
    async with serve("127.0.0.1:0", bindings, health=Health(), drain_seconds=0.2) as server:
        yield Peers(f"127.0.0.1:{server.port}", ingestion, registry, inference)


@dataclass
class Process:
    """One running instance."""

    process: asyncio.subprocess.Process
    target: str
    http_port: int
    log: Path

    def _get(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as response:
                text: str = response.read().decode()
                return text
        except (urllib.error.URLError, OSError):
            return None

    async def is_ready(self) -> bool:
        assert self.process.returncode is None, f"the service ended by itself:\n{self.log.read_text()}"
        return await asyncio.to_thread(self._get, "/readyz") is not None

    async def metric(self, name: str) -> float:
        text = await asyncio.to_thread(self._get, "/metrics") or ""
        lines = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(lines[0].split()[1]) if lines else 0.0

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        self.process.kill()
        await self.ended()

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), PATIENCE_SECONDS)


class FakeNode:
    """A training agent that runs nothing: it reports what the test says."""

    def __init__(self, name: str, target: str, *, cpu: float = 1, memory: int = 8 * GIBIBYTE) -> None:
        self.name = name
        self.target = target
        self.capacity = pb.Resources(cpu=cpu, memory_bytes=memory)
        self.tasks: dict[str, pb.TaskStatus] = {}
        self.desired: list[pb.Task] = []
        self.received = 0
        self.error: errors.HeadraceError | None = None
        self._report = asyncio.Event()
        self._silent = False

    def set(self, job: str, attempt: int, phase: str, **fields: Any) -> None:
        """Say where a task is, at once and in every report from now on."""
        phase_value = pb.TaskPhase.Value(f"TASK_PHASE_{phase}")
        self.tasks[job] = pb.TaskStatus(job=job, attempt=attempt, phase=phase_value, **fields)
        self._report.set()

    def drop(self, job: str) -> None:
        self.tasks.pop(job, None)
        self._report.set()

    def fall_silent(self) -> None:
        self._silent = True

    async def _requests(self) -> AsyncIterator[pb.AttachNodeRequest]:
        while not self._silent:
            yield pb.AttachNodeRequest(
                node=self.name, version="test", capacity=self.capacity, tasks=self.tasks.values()
            )
            self._report.clear()
            try:
                async with asyncio.timeout(LEASE_SECONDS / 5):
                    await self._report.wait()
            except TimeoutError:
                pass
        await asyncio.Event().wait()

    async def run(self) -> None:
        """Stay attached; connect again when scheduling went away."""
        while True:
            try:
                async with channel(self.target) as connection:
                    stub = scheduling_pb2_grpc.SchedulingServiceStub(connection)
                    async for response in stub.AttachNode(self._requests()):
                        self.received += 1
                        self.desired = list(response.tasks)
            except errors.Unavailable:
                await asyncio.sleep(0.1)
            except errors.HeadraceError as error:
                self.error = error
                return

    async def wants(self, job: str, attempt: int = 1) -> pb.Task:
        """Wait until scheduling wants this attempt here."""

        async def ask() -> pb.Task | None:
            found = [task for task in self.desired if (task.job, task.attempt) == (job, attempt)]
            return found[0] if found else None

        task = await eventually(ask, lambda task: task is not None)
        assert task is not None
        return task

    async def wants_nothing(self) -> None:
        async def ask() -> list[pb.Task]:
            return self.desired

        await eventually(ask, lambda tasks: not tasks)


@dataclass
class Scheduling:
    """A database and a consumer group of their own, and processes on them."""

    bootstrap: str
    dsn: str
    folder: Path
    peers: Peers
    group: str = field(default_factory=lambda: f"test-{uuid.uuid4()}")
    # Many tests share the broker, and with it the topics.
    pipeline: str = field(default_factory=lambda: f"p-{uuid.uuid4()}")
    processes: list[Process] = field(default_factory=list)
    background: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self, *, grpc_port: int | None = None, **environment: str) -> Process:
        grpc_port, http_port = grpc_port or free_port(), free_port()
        log = self.folder / f"scheduling-{len(self.processes)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "headrace.scheduling",
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    "HEADRACE_KAFKA_BOOTSTRAP": self.bootstrap,
                    "HEADRACE_KAFKA_IDEMPOTENCE": "false",
                    "HEADRACE_KAFKA_SESSION_SECONDS": "1",
                    "HEADRACE_POSTGRES_DSN": self.dsn,
                    "HEADRACE_SCHEDULING_GRPC_ADDRESS": f"127.0.0.1:{grpc_port}",
                    "HEADRACE_SCHEDULING_HTTP_ADDRESS": f"127.0.0.1:{http_port}",
                    "HEADRACE_SCHEDULING_INGESTION_TARGET": self.peers.target,
                    "HEADRACE_SCHEDULING_REGISTRY_TARGET": self.peers.target,
                    "HEADRACE_SCHEDULING_INFERENCE_TARGET": self.peers.target,
                    "HEADRACE_SCHEDULING_CONSUMER_GROUP": self.group,
                    "HEADRACE_SCHEDULING_LEASE_SECONDS": str(LEASE_SECONDS),
                    **environment,
                },
            )
        started = Process(process, f"127.0.0.1:{grpc_port}", http_port, log)
        self.processes.append(started)
        return started

    async def start_ready(self, *, grpc_port: int | None = None, **environment: str) -> Process:
        process = await self.start(grpc_port=grpc_port, **environment)
        await eventually(process.is_ready, bool)
        await until_connected(process.target)
        return process

    async def restart(self, process: Process, **environment: str) -> Process:
        """Start anew at the same address."""
        return await self.start_ready(grpc_port=int(process.target.rpartition(":")[2]), **environment)

    def attach(self, process: Process, name: str = "node-a", **capacity: Any) -> FakeNode:
        node = FakeNode(name, process.target, **capacity)
        self.background.append(asyncio.create_task(node.run()))
        return node

    async def apply(self, stub: Stub, **changes: Any) -> pb.Pipeline:
        """Apply a pipeline whose dataset has no version yet; it has some afterwards."""
        ingestion = self.peers.ingestion
        ingestion.latest_version, later = 0, ingestion.latest_version
        applied = await self.apply_late(stub, **changes)
        ingestion.latest_version = later
        return applied

    async def apply_late(self, stub: Stub, **changes: Any) -> pb.Pipeline:
        """Apply a pipeline whose dataset has versions already."""
        return await stub.ApplyPipeline(pb.ApplyPipelineRequest(name=self.pipeline, spec=a_spec(**changes)))

    async def publish(self, topic: str, *keyed: tuple[str, Event]) -> None:
        async with Producer(self.bootstrap, client_id="test", idempotence=False) as producer:
            await producer.publish_all(topic, keyed)

    def version_committed(self, version: int, *, event_id: str | None = None, blocked: bool = False) -> Event:
        return protobuf_event(
            ingestion_events.DatasetVersionCommitted(
                dataset_version=ingestion_pb2.DatasetVersion(
                    dataset=self.pipeline,
                    version=version,
                    row_count=10,
                    traceparent=TRACEPARENT,
                    **(BLOCKED if blocked else {}),
                ),
                schema=a_schema(),
            ),
            type="headrace.ingestion.dataset-version-committed.v1",
            source="headrace/ingestion",
            subject=self.pipeline,
            id=event_id or f"{self.pipeline}-{version}",
            time=datetime.now(UTC),
            traceparent=TRACEPARENT,
        )

    async def commit_version(
        self, version: int, *, event_id: str | None = None, blocked: bool = False
    ) -> None:
        event = self.version_committed(version, event_id=event_id, blocked=blocked)
        await self.publish(topics.DATASET_VERSIONS, (self.pipeline, event))

    async def run_changed(self, **fields: Any) -> None:
        run = training_events.RunChanged(run=training_pb2.Run(**fields))
        event = protobuf_event(
            run,
            type="headrace.training.run-changed.v1",
            source="headrace/training",
            subject=fields["id"],
            id=str(uuid.uuid4()),
            time=datetime.now(UTC),
        )
        await self.publish(topics.RUNS, (fields["id"], event))

    async def count_jobs(self) -> int:
        connection = await asyncpg.connect(self.dsn)
        try:
            count: int = await connection.fetchval(
                "SELECT count(*) FROM scheduling.jobs WHERE pipeline = $1", self.pipeline
            )
            return count
        finally:
            await connection.close()

    async def handled(self, event_id: str) -> None:
        """Wait until an event has had its effect, whatever that is."""
        connection = await asyncpg.connect(self.dsn)
        try:

            async def known() -> bool:
                found: bool = await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM scheduling.inbox WHERE event_id LIKE '%' || $1)", event_id
                )
                return found

            await eventually(known, bool)
        finally:
            await connection.close()

    async def job_events(self, until: Callable[[Sequence[pb.Job]], bool]) -> list[pb.Job]:
        """The pipeline's events on the jobs topic, in order, each id once, until there are enough."""
        consumer = AIOKafkaConsumer(
            topics.JOBS, bootstrap_servers=self.bootstrap, auto_offset_reset="earliest", group_id=None
        )
        await consumer.start()
        seen: dict[str, pb.Job] = {}
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not until(list(seen.values())):
                    for records in (await consumer.getmany(timeout_ms=200)).values():
                        for record in records:
                            event = decode(record.headers, record.value, received=datetime.now(UTC))
                            job = parse(event, scheduling_events.JobChanged).job
                            if job.pipeline == self.pipeline:
                                assert record.key == job.id.encode()
                                seen.setdefault(event.id, job)
        except TimeoutError as error:
            raise AssertionError(f"only these events came: {list(seen)}") from error
        finally:
            await consumer.stop()
        return list(seen.values())

    async def close(self) -> None:
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        for process in self.processes:
            if process.process.returncode is None:
                process.process.kill()
                await process.ended()


@asynccontextmanager
async def stub_of(process: Process) -> AsyncIterator[Stub]:
    async with channel(process.target) as connection:
        yield scheduling_pb2_grpc.SchedulingServiceStub(connection)

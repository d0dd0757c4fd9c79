"""Real data as a dataset's table, and a control plane that a test plays to one training node."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import deltalake
import pyarrow as pa
from sklearn.datasets import load_breast_cancer
from tests.support.services import ServiceProcess
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2_grpc
from headrace.api.training.v1 import training_pb2_grpc
from headrace.rpc.client import channel
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health

KEY = "patient"
LABEL = "malignant"
LEASE_SECONDS = 2
Phase = api.TaskPhase


def features() -> list[str]:
    return [name.replace(" ", "_") for name in load_breast_cancer().feature_names]


def write_table(uri: str) -> None:
    """Wisconsin Diagnostic Breast Cancer as a table, 1 for a malignant sample."""
    data = load_breast_cancer()
    columns: dict[str, Any] = {KEY: [f"p{number:03}" for number in range(len(data.data))]}
    columns |= dict(zip(features(), data.data.astype("float32").T, strict=True))
    columns[LABEL] = pa.array(1 - data.target, pa.int8())
    deltalake.write_deltalake(uri, pa.table(columns))


def a_task(pipeline: str, table_uri: str, *, attempt: int = 1, job: str = "", **parameters: Any) -> api.Task:
    task = api.Task(
        job=job or f"job-{uuid.uuid4().hex[:8]}",
        attempt=attempt,
        pipeline=pipeline,
        training=api.TrainingSpec(
            recipe="mlp",
            split=api.Split(train=0.7, validation=0.15, test=0.15),
            normalise=api.NORMALISATION_STANDARD,
            seed=7,
        ),
        schema=ingestion_pb2.Schema(
            key=KEY,
            features=[
                ingestion_pb2.Field(name=name, type=ingestion_pb2.FIELD_TYPE_FLOAT32) for name in features()
            ],
            label=ingestion_pb2.Field(
                name=LABEL, type=ingestion_pb2.FIELD_TYPE_INT8, allowed_values=["0", "1"]
            ),
        ),
        dataset_version=ingestion_pb2.DatasetVersion(
            dataset=pipeline, version=1, table_uri=table_uri, table_version=0
        ),
        resources=api.Resources(cpu=1, memory_bytes=8 << 30),
        traceparent="00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
    )
    task.training.parameters.update({"hidden": [16], "epochs": 30, **parameters})
    return task


class Control(scheduling_pb2_grpc.SchedulingServiceServicer):
    """Scheduling as a node sees it: tasks that it shall run, and what it says of them."""

    def __init__(self) -> None:
        self.statuses: dict[tuple[str, int], api.TaskStatus] = {}
        self.capacity = api.Resources()
        self._tasks: list[api.Task] = []
        self._changed = asyncio.Event()

    def want(self, *tasks: api.Task) -> None:
        """Change what the node shall run."""
        self._tasks = list(tasks)
        self._changed.set()

    async def AttachNode(self, requests: Any, context: Any) -> AsyncIterator[api.AttachNodeResponse]:
        async def listen() -> None:
            async for request in requests:
                self.capacity = request.capacity
                for status in request.tasks:
                    self.statuses[status.job, status.attempt] = status

        listening = asyncio.create_task(listen())
        try:
            while not listening.done():
                self._changed.clear()
                response = api.AttachNodeResponse(tasks=self._tasks)
                response.lease_duration.FromSeconds(LEASE_SECONDS)
                yield response
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait([changed, listening], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            listening.cancel()

    async def until(self, task: api.Task, *phases: int, seconds: float = 120.0) -> api.TaskStatus:
        """Wait until the node says that the task is in one of these phases."""

        async def ask() -> api.TaskStatus | None:
            return self.statuses.get((task.job, task.attempt))

        status = await eventually(ask, lambda status: status is not None and status.phase in phases, seconds)
        assert status is not None
        return status


@dataclass
class Training:
    """A node under test, the registry that it registers with, and the control plane that it obeys."""

    node: ServiceProcess
    registry: ServiceProcess
    control: Control
    table_uri: str
    pipeline: str = field(default_factory=lambda: f"p-{uuid.uuid4().hex[:8]}")

    def task(self, **options: Any) -> api.Task:
        return a_task(self.pipeline, self.table_uri, **options)

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[training_pb2_grpc.TrainingServiceAsyncStub]:
        async with channel(self.node.target) as opened:
            yield training_pb2_grpc.TrainingServiceStub(opened)

    async def versions(self) -> list[registry_pb2.ModelVersion]:
        """The model's versions, newest first."""
        async with channel(self.registry.target) as opened:
            stub = registry_pb2_grpc.RegistryServiceStub(opened)
            listed = await stub.ListModelVersions(registry_pb2.ListModelVersionsRequest(model=self.pipeline))
            return list(listed.versions)

    async def apply_model(self, *gates: api.Gate) -> None:
        async with channel(self.registry.target) as opened:
            stub = registry_pb2_grpc.RegistryServiceStub(opened)
            await stub.ApplyModel(registry_pb2.ApplyModelRequest(name=self.pipeline, gates=gates))


@asynccontextmanager
async def playing_control() -> AsyncIterator[tuple[Control, str]]:
    """A control plane, and where it listens."""
    control = Control()
    binding = ServiceBinding(
        scheduling_pb2_grpc.add_SchedulingServiceServicer_to_server,
        control,
        "headrace.api.scheduling.v1.SchedulingService",
    )
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            serve("127.0.0.1:0", [binding], health=Health(), drain_seconds=0.2)
        )
        yield control, f"127.0.0.1:{server.port}"

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli import Headrace, Services
from typer.testing import CliRunner, Result

from headrace.api.inference.v1 import drift_pb2_grpc, inference_pb2_grpc, requests_pb2_grpc, tuning_pb2_grpc
from headrace.api.ingestion.v1 import erasure_pb2_grpc, ingestion_pb2_grpc, versions_pb2_grpc
from headrace.api.registry.v1 import registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2_grpc
from headrace.api.training.v1 import training_pb2_grpc
from headrace.cli.main import app
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """Serves from a thread of its own, since a command runs its own event loop."""
    answering, ports = Services(), list[int]()
    bindings = [
        ServiceBinding(add, answering, name)
        for add, name in (
            (
                ingestion_pb2_grpc.add_IngestionServiceServicer_to_server,
                "headrace.api.ingestion.v1.IngestionService",
            ),
            (
                versions_pb2_grpc.add_DatasetVersionServiceServicer_to_server,
                "headrace.api.ingestion.v1.DatasetVersionService",
            ),
            (
                erasure_pb2_grpc.add_ErasureServiceServicer_to_server,
                "headrace.api.ingestion.v1.ErasureService",
            ),
            (
                registry_pb2_grpc.add_RegistryServiceServicer_to_server,
                "headrace.api.registry.v1.RegistryService",
            ),
            (
                scheduling_pb2_grpc.add_SchedulingServiceServicer_to_server,
                "headrace.api.scheduling.v1.SchedulingService",
            ),
            (
                training_pb2_grpc.add_TrainingServiceServicer_to_server,
                "headrace.api.training.v1.TrainingService",
            ),
            (
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                "headrace.api.inference.v1.InferenceService",
            ),
            (
                requests_pb2_grpc.add_RequestServiceServicer_to_server,
                "headrace.api.inference.v1.RequestService",
            ),
            (
                drift_pb2_grpc.add_DriftServiceServicer_to_server,
                "headrace.api.inference.v1.DriftService",
            ),
            (
                tuning_pb2_grpc.add_TuningServiceServicer_to_server,
                "headrace.api.inference.v1.TuningService",
            ),
        )
    ]
    loop, up, down = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def run() -> None:
        async with serve("127.0.0.1:0", bindings, health=Health()) as server:
            ports.append(server.port)
            up.set()
            await down.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert up.wait(20)
    for service in ("INGESTION", "REGISTRY", "SCHEDULING", "TRAINING", "INFERENCE"):
        monkeypatch.setenv(f"HEADRACE_{service}_TARGET", f"127.0.0.1:{ports[0]}")
    yield answering
    loop.call_soon_threadsafe(down.set)
    thread.join(20)
    loop.close()


@pytest.fixture
def headrace(tmp_path: Path) -> Headrace:
    def command(*arguments: str, **options: Any) -> Result:
        env = {"HEADRACE_DATA": str(tmp_path / "no-stack")}
        return CliRunner().invoke(app, arguments, env=env, **options)

    return command

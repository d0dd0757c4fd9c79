"""The registry as a process, on a real PostgreSQL, a real broker and an object store."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from tests.support.services import ServiceProcess, platform

from headrace.api.registry.v1 import registry_pb2 as api
from headrace.api.registry.v1 import registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import DataLoss, FailedPrecondition, NotFound
from headrace.messaging.topics import MODEL_VERSIONS
from headrace.rpc.client import channel

pytestmark = pytest.mark.broker

BYTES = bytes(range(256)) * 5000


@pytest.fixture
async def registry(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[ServiceProcess]:
    service = ServiceProcess("registry", tmp_path, platform(kafka_bootstrap, postgres_dsn, store_uri))
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def stub(registry: ServiceProcess) -> AsyncIterator[registry_pb2_grpc.RegistryServiceAsyncStub]:
    async with channel(registry.target) as opened:
        yield registry_pb2_grpc.RegistryServiceStub(opened)


@pytest.fixture
def model() -> str:
    return f"model-{uuid.uuid4().hex[:8]}"


def gate(minimum: float) -> scheduling_pb2.Gate:
    return scheduling_pb2.Gate(metric="accuracy", split="test", min=minimum)


def parts(
    model: str, version: int, data: bytes = BYTES, sha256: str = ""
) -> Iterator[api.UploadArtifactRequest]:
    artifact = api.Artifact(
        path="model.onnx", size=len(data), sha256=sha256 or hashlib.sha256(data).hexdigest()
    )
    header = api.UploadArtifactRequest.Header(model=model, version=version, artifact=artifact)
    yield api.UploadArtifactRequest(header=header)
    for start in range(0, len(data), 65_536):
        yield api.UploadArtifactRequest(chunk=data[start : start + 65_536])


def creation(model: str, request_id: str, accuracy: float = 0.95) -> api.CreateModelVersionRequest:
    return api.CreateModelVersionRequest(
        model=model,
        request_id=request_id,
        lineage=api.Lineage(job="job", recipe="mlp"),
        metrics={"test/accuracy": accuracy},
        signature=api.Signature(features=["x"]),
    )


async def events_of(bootstrap: str, model: str, count: int) -> list[str]:
    """Types of the model's events, in order, repeated ones once."""
    types: dict[str, str] = {}
    consumer = AIOKafkaConsumer(MODEL_VERSIONS, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            while len(types) < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        headers = {name: value.decode() for name, value in record.headers}
                        if record.key == model.encode():
                            types[headers["ce_id"]] = headers["ce_type"].split(".")[2]
    finally:
        await consumer.stop()
    return list(types.values())


async def test_a_version_that_meets_its_gates_is_promoted_and_told(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, kafka_bootstrap: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
    created = await stub.CreateModelVersion(creation(model, "r1"))
    again = await stub.CreateModelVersion(creation(model, "r1"))
    assert (created.version, again.version) == (1, 1)

    stored = await stub.UploadArtifact(parts(model, 1))
    assert stored == await stub.UploadArtifact(parts(model, 1))
    request = api.CommitModelVersionRequest(model=model, version=1, artifacts=["model.onnx"])
    committed = await stub.CommitModelVersion(request)
    assert committed.state == api.MODEL_VERSION_STATE_PROMOTED
    assert committed == await stub.CommitModelVersion(request)

    by_alias = await stub.GetModelVersion(api.GetModelVersionRequest(model=model, alias="champion"))
    assert by_alias == committed
    download = stub.DownloadArtifact(api.DownloadArtifactRequest(model=model, version=1, path="model.onnx"))
    assert b"".join([part.chunk async for part in download]) == BYTES
    told = await events_of(kafka_bootstrap, model, 3)
    assert told == ["model-version-registered", "model-version-promoted", "alias-changed"]


async def test_a_version_that_misses_a_gate_is_refused_with_the_reason(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, kafka_bootstrap: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.99)]))
    await stub.CreateModelVersion(creation(model, "r1"))
    await stub.UploadArtifact(parts(model, 1))
    committed = await stub.CommitModelVersion(
        api.CommitModelVersionRequest(model=model, version=1, artifacts=["model.onnx"])
    )
    assert committed.state == api.MODEL_VERSION_STATE_REFUSED
    assert committed.gate_results[0].message == "accuracy on test is 0.95, at least 0.99 is asked for"
    assert not (await stub.GetModel(api.GetModelRequest(name=model))).aliases
    told = await events_of(kafka_bootstrap, model, 2)
    assert told == ["model-version-registered", "model-version-refused"]


async def test_damaged_bytes_are_refused_and_leave_nothing(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model))
    await stub.CreateModelVersion(creation(model, "r1"))
    with pytest.raises(DataLoss, match="arrived with"):
        await stub.UploadArtifact(parts(model, 1, sha256="0" * 64))
    with pytest.raises(FailedPrecondition) as missing:
        await stub.CommitModelVersion(
            api.CommitModelVersionRequest(model=model, version=1, artifacts=["model.onnx"])
        )
    assert missing.value.reason == "ARTIFACT_MISSING"


async def test_wrong_names_and_reserved_aliases_are_typed_errors(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    with pytest.raises(NotFound) as unknown:
        await stub.CreateModelVersion(creation(model, "r1"))
    assert unknown.value.reason == "MODEL_NOT_FOUND"
    await stub.ApplyModel(api.ApplyModelRequest(name=model))
    with pytest.raises(NotFound) as no_version:
        await stub.GetModelVersion(api.GetModelVersionRequest(model=model, version=7))
    assert no_version.value.reason == "MODEL_VERSION_NOT_FOUND"
    with pytest.raises(FailedPrecondition) as reserved:
        await stub.SetAlias(api.SetAliasRequest(model=model, alias="champion", version=1))
    assert reserved.value.reason == "ALIAS_RESERVED"


async def test_concurrent_requests_with_one_id_make_one_version(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model))
    versions = await asyncio.gather(*(stub.CreateModelVersion(creation(model, "r1")) for _ in range(8)))
    assert {version.version for version in versions} == {1}


@pytest.mark.kill
@pytest.mark.parametrize("fault", ["registry.after-commit", "outbox.before-publish", "outbox.after-publish"])
async def test_a_verdict_is_told_whenever_the_registry_dies(
    fault: str, kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path, model: str
) -> None:
    settings = platform(kafka_bootstrap, postgres_dsn, store_uri)
    armed = {**settings, "HEADRACE_FAULT": fault, "HEADRACE_FAULT_ONCE": str(tmp_path / "fired")}
    service = ServiceProcess("registry", tmp_path, armed)
    await service.start()
    async with channel(service.target) as opened:
        stub = registry_pb2_grpc.RegistryServiceStub(opened)
        await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
        await stub.CreateModelVersion(creation(model, "r1"))
        await stub.UploadArtifact(parts(model, 1))
        request = api.CommitModelVersionRequest(model=model, version=1, artifacts=["model.onnx"])
        commit = asyncio.ensure_future(stub.CommitModelVersion(request))
        await service.killed()
        await asyncio.gather(commit, return_exceptions=True)
    await service.start()
    try:
        told = await events_of(kafka_bootstrap, model, 3)
    finally:
        await service.stop()
    assert told == ["model-version-registered", "model-version-promoted", "alias-changed"]

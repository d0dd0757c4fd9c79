"""The registry as a process, on a real PostgreSQL, a real broker and an object store."""

from __future__ import annotations

import asyncio
import hashlib
import math
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer
from tests.conftest import Background, new_database
from tests.support.services import ServiceProcess, platform, until_outbox_empty

from headrace.api.registry.v1 import registry_pb2 as api
from headrace.api.registry.v1 import registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.embedded.parts.postgres import Postgres
from headrace.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from headrace.messaging.topics import MODEL_VERSIONS
from headrace.rpc.client import channel
from headrace.telemetry import names

pytestmark = pytest.mark.broker

BYTES = bytes(range(256)) * 5000
PROMOTION = ["model-version-registered", "model-version-promoted", "alias-changed"]


@asynccontextmanager
async def started(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, folder: Path
) -> AsyncIterator[ServiceProcess]:
    service = ServiceProcess("registry", folder, platform(kafka_bootstrap, postgres_dsn, store_uri))
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@asynccontextmanager
async def calling(registry: ServiceProcess) -> AsyncIterator[registry_pb2_grpc.RegistryServiceAsyncStub]:
    async with channel(registry.target) as opened:
        yield registry_pb2_grpc.RegistryServiceStub(opened)


@pytest.fixture(scope="module")
def shared_dsn(background: Background, postgres_server: Postgres) -> Iterator[str]:
    with background.holding(new_database(postgres_server)) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def shared_store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return (tmp_path_factory.mktemp("registry") / "store").as_uri()


@pytest.fixture(scope="module")
def shared_registry(
    background: Background,
    kafka_bootstrap: str,
    shared_dsn: str,
    shared_store_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServiceProcess]:
    """One registry for tests that harm nothing and look at nothing but their own models."""
    service = started(kafka_bootstrap, shared_dsn, shared_store_uri, tmp_path_factory.mktemp("registry"))
    with background.holding(service) as registry:
        yield registry


@pytest.fixture
async def stub(
    shared_registry: ServiceProcess,
) -> AsyncIterator[registry_pb2_grpc.RegistryServiceAsyncStub]:
    async with calling(shared_registry) as stub:
        yield stub


@pytest.fixture
async def registry(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[ServiceProcess]:
    """A registry of the test's own."""
    async with started(kafka_bootstrap, postgres_dsn, store_uri, tmp_path) as registry:
        yield registry


@pytest.fixture
async def own_stub(registry: ServiceProcess) -> AsyncIterator[registry_pb2_grpc.RegistryServiceAsyncStub]:
    async with calling(registry) as stub:
        yield stub


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


@dataclass(frozen=True)
class Told:
    """An event, as far as these tests look."""

    what: str
    trace: str


async def events_of(bootstrap: str, model: str, last: str, times: int = 1) -> list[Told]:
    """The model's events in order, repeated ones once, until `times` of type `last` have come."""
    told: dict[str, Told] = {}
    consumer = AIOKafkaConsumer(MODEL_VERSIONS, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            while sum(event.what == last for event in told.values()) < times:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        headers = {name: value.decode() for name, value in record.headers}
                        if record.key == model.encode():
                            what = headers["ce_type"].removeprefix("headrace.registry.").removesuffix(".v1")
                            trace = headers.get("traceparent", "--").split("-")[1]
                            told.setdefault(headers["ce_id"], Told(what, trace))
    finally:
        await consumer.stop()
    return list(told.values())


async def types_of(bootstrap: str, model: str, last: str, times: int = 1) -> list[str]:
    return [event.what for event in await events_of(bootstrap, model, last, times)]


async def fenced(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, bootstrap: str, model: str, changes: int = 1
) -> list[str]:
    """Every event so far, after `changes` of the model: another one follows them, and nothing after it."""
    await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.123)]))
    *told, last = await types_of(bootstrap, model, "model-changed", changes + 1)
    assert last == "model-changed"
    return told


async def register(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, version: int
) -> api.ModelVersion:
    """Upload to a version that was created, and commit it."""
    await stub.UploadArtifact(parts(model, version))
    return await stub.CommitModelVersion(committing(model, version))


def committing(model: str, version: int) -> api.CommitModelVersionRequest:
    return api.CommitModelVersionRequest(model=model, version=version, artifacts=["model.onnx"])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def stored_files(store_uri: str) -> list[str]:
    folder = Path(store_uri.removeprefix("file://"))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_a_version_that_meets_its_gates_is_promoted_and_told(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, kafka_bootstrap: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
    created = await stub.CreateModelVersion(creation(model, "r1"))
    again = await stub.CreateModelVersion(creation(model, "r1"))
    assert (created.version, again.version) == (1, 1)

    stored = await stub.UploadArtifact(parts(model, 1))
    assert stored == await stub.UploadArtifact(parts(model, 1))
    committed = await stub.CommitModelVersion(committing(model, 1))
    assert committed.state == api.MODEL_VERSION_STATE_PROMOTED
    assert committed == await stub.CommitModelVersion(committing(model, 1))

    by_alias = await stub.GetModelVersion(api.GetModelVersionRequest(model=model, alias="champion"))
    assert by_alias == committed
    download = stub.DownloadArtifact(api.DownloadArtifactRequest(model=model, version=1, path="model.onnx"))
    assert b"".join([part.chunk async for part in download]) == BYTES
    told = await types_of(kafka_bootstrap, model, "alias-changed")
    assert told == ["model-changed", *PROMOTION]


async def test_a_version_that_misses_a_gate_is_refused_with_the_reason(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, kafka_bootstrap: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.99)]))
    await stub.CreateModelVersion(creation(model, "r1"))
    committed = await register(stub, model, 1)
    assert committed.state == api.MODEL_VERSION_STATE_REFUSED
    assert committed.gate_results[0].message == "accuracy on test is 0.95, at least 0.99 is asked for"
    assert not (await stub.GetModel(api.GetModelRequest(name=model))).aliases
    told = await types_of(kafka_bootstrap, model, "model-version-refused")
    assert told == ["model-changed", "model-version-registered", "model-version-refused"]


async def test_a_versions_format_is_the_newest_requests(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model))
    request = creation(model, "r1")
    for form in (api.MODEL_FORMAT_TORCHSCRIPT, api.MODEL_FORMAT_ONNX):
        request.format = form
        assert (await stub.CreateModelVersion(request)).format == form
    assert (await register(stub, model, 1)).format == api.MODEL_FORMAT_ONNX
    stored = await stub.GetModelVersion(api.GetModelVersionRequest(model=model, version=1))
    assert stored.format == api.MODEL_FORMAT_ONNX


async def test_damaged_bytes_are_refused_and_leave_nothing(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, shared_store_uri: str
) -> None:
    before = stored_files(shared_store_uri)
    await stub.ApplyModel(api.ApplyModelRequest(name=model))
    await stub.CreateModelVersion(creation(model, "r1"))
    with pytest.raises(DataLoss, match="arrived with"):
        await stub.UploadArtifact(parts(model, 1, sha256="0" * 64))
    header, *chunks = parts(model, 1)
    with pytest.raises(DataLoss, match="arrived with"):
        await stub.UploadArtifact([header, *chunks[:-1]])
    with pytest.raises(DataLoss, match=r"more than the 1280000 bytes") as mismatch:
        await stub.UploadArtifact([header, *chunks, *chunks])
    assert mismatch.value.reason == "CHECKSUM_MISMATCH"
    assert stored_files(shared_store_uri) == before
    with pytest.raises(FailedPrecondition) as missing:
        await stub.CommitModelVersion(committing(model, 1))
    assert missing.value.reason == "ARTIFACT_MISSING"


async def test_an_upload_that_breaks_off_leaves_nothing_and_can_be_repeated(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, shared_store_uri: str
) -> None:
    before = stored_files(shared_store_uri)
    await stub.ApplyModel(api.ApplyModelRequest(name=model))
    await stub.CreateModelVersion(creation(model, "r1"))
    halfway = asyncio.Event()

    async def broken() -> AsyncIterator[api.UploadArtifactRequest]:
        header, *chunks = parts(model, 1)
        for part in (header, *chunks[:5]):
            yield part
        halfway.set()
        await asyncio.Event().wait()

    call = asyncio.ensure_future(stub.UploadArtifact(broken()))
    await halfway.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    opened = await stub.GetModelVersion(api.GetModelVersionRequest(model=model, version=1))
    assert not opened.artifacts

    stored = await stub.UploadArtifact(parts(model, 1))
    assert stored_files(shared_store_uri) == sorted(
        [*before, stored.uri.removeprefix(f"{shared_store_uri}/")]
    )


async def test_an_empty_artifact_and_a_replaced_one_are_kept_as_sent(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model))
    await stub.CreateModelVersion(creation(model, "r1"))
    for data in (b"", b"second"):
        await stub.UploadArtifact(parts(model, 1, data))
        request = api.DownloadArtifactRequest(model=model, version=1, path="model.onnx")
        assert b"".join([part.chunk async for part in stub.DownloadArtifact(request)]) == data
    await stub.CommitModelVersion(committing(model, 1))
    with pytest.raises(FailedPrecondition) as closed:
        await stub.UploadArtifact(parts(model, 1, b"third"))
    assert closed.value.reason == "VERSION_CLOSED"


async def test_a_stream_without_its_header_is_an_error(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    with pytest.raises(InvalidArgument) as missing:
        await stub.UploadArtifact(list(parts(model, 1))[1:])
    assert missing.value.reason == "HEADER_MISSING"
    with pytest.raises(InvalidArgument) as empty:
        await stub.UploadArtifact([])
    assert empty.value.reason == "HEADER_MISSING"


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
    with pytest.raises(NotFound) as no_alias:
        await stub.GetModelVersion(api.GetModelVersionRequest(model=model, alias="champion"))
    assert no_alias.value.reason == "ALIAS_NOT_FOUND"
    with pytest.raises(InvalidArgument) as neither:
        await stub.GetModelVersion(api.GetModelVersionRequest(model=model))
    assert neither.value.reason == "VERSION_MISSING"
    with pytest.raises(InvalidArgument) as no_bound:
        await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(math.nan)]))
    assert no_bound.value.reason == "INVALID_GATE"
    assert [field.field for field in no_bound.value.fields] == ["gates[0].min"]
    await stub.CreateModelVersion(creation(model, "r1"))
    with pytest.raises(FailedPrecondition) as still_open:
        await stub.SetAlias(api.SetAliasRequest(model=model, alias="candidate", version=1))
    assert still_open.value.reason == "VERSION_OPEN"
    with pytest.raises(FailedPrecondition) as reserved:
        await stub.SetAlias(api.SetAliasRequest(model=model, alias="champion", version=1))
    assert reserved.value.reason == "ALIAS_RESERVED"


async def test_the_champion_is_the_newest_promoted_version(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, kafka_bootstrap: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
    for number in (1, 2):
        await stub.CreateModelVersion(creation(model, f"r{number}"))
    await register(stub, model, 2)
    late = await register(stub, model, 1)
    assert late.state == api.MODEL_VERSION_STATE_PROMOTED
    changed = await stub.SetAlias(api.SetAliasRequest(model=model, alias="candidate", version=1))
    assert changed.aliases == {"champion": 2, "candidate": 1}
    removed = await stub.SetAlias(api.SetAliasRequest(model=model, alias="candidate", version=0))
    assert removed.aliases == {"champion": 2}
    assert await fenced(stub, kafka_bootstrap, model) == [
        "model-changed",
        *PROMOTION,
        "model-version-registered",
        "model-version-promoted",
        "alias-changed",
        "alias-changed",
    ]


async def test_gates_that_change_are_told_and_judge_only_what_comes(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, shared_dsn: str
) -> None:
    first = await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
    assert first == await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
    await stub.CreateModelVersion(creation(model, "r1", accuracy=0.95))
    await register(stub, model, 1)
    changed = await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.99)]))
    assert changed.update_time.ToDatetime() > first.update_time.ToDatetime()
    evaluation = await stub.EvaluateGates(api.EvaluateGatesRequest(model=model, version=1))
    assert not evaluation.passed
    kept = await stub.GetModelVersion(api.GetModelVersionRequest(model=model, version=1))
    assert kept.state == api.MODEL_VERSION_STATE_PROMOTED

    connection = await asyncpg.connect(shared_dsn)
    try:
        rows = await connection.fetch("SELECT * FROM registry.audit WHERE model = $1 ORDER BY id", model)
    finally:
        await connection.close()
    assert [(row["action"], row["version"], row["details"]) for row in rows] == [
        ("MODEL_CREATED", 0, "accuracy on test >= 0.9"),
        ("VERSION_OPENED", 1, "by request r1"),
        ("VERSION_PROMOTED", 1, "accuracy on test is 0.95"),
        ("ALIAS_MOVED", 1, "champion from nowhere to 1"),
        ("GATES_CHANGED", 0, "accuracy on test >= 0.99"),
    ]


async def test_a_metric_that_is_no_number_is_refused(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
    for number, value in enumerate((math.nan, math.inf), 1):
        await stub.CreateModelVersion(creation(model, f"r{number}", accuracy=value))
        committed = await register(stub, model, number)
        assert committed.state == api.MODEL_VERSION_STATE_REFUSED
        assert committed.gate_results[0].message == "accuracy on test is not a finite number"
        assert not committed.gate_results[0].HasField("value")


async def test_the_callers_trace_goes_on_in_the_version_and_its_events(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, kafka_bootstrap: str
) -> None:
    trace = uuid.uuid4().hex
    metadata = (("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),)
    await stub.ApplyModel(api.ApplyModelRequest(name=model), metadata=metadata)
    created = await stub.CreateModelVersion(creation(model, "r1"), metadata=metadata)
    assert created.traceparent.split("-")[1] == trace
    await stub.UploadArtifact(parts(model, 1), metadata=metadata)
    await stub.CommitModelVersion(committing(model, 1), metadata=metadata)
    told = await events_of(kafka_bootstrap, model, "alias-changed")
    assert {event.trace for event in told} == {trace}


async def test_versions_and_models_come_in_pages(
    own_stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await own_stub.ApplyModel(api.ApplyModelRequest(name=model))
    await own_stub.ApplyModel(api.ApplyModelRequest(name=f"{model}-b"))
    for number in range(1, 6):
        await own_stub.CreateModelVersion(creation(model, f"r{number}"))
    seen: list[int] = []
    request = api.ListModelVersionsRequest(model=model, page_size=2)
    while True:
        page = await own_stub.ListModelVersions(request)
        assert len(page.versions) <= 2
        seen += [version.version for version in page.versions]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [5, 4, 3, 2, 1]
    first = await own_stub.ListModels(api.ListModelsRequest(page_size=1))
    rest = await own_stub.ListModels(api.ListModelsRequest(page_token=first.next_page_token))
    assert [found.name for found in (*first.models, *rest.models)] == [model, f"{model}-b"]


async def test_it_counts_verdicts_and_uploads(
    registry: ServiceProcess, own_stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await own_stub.ApplyModel(api.ApplyModelRequest(name=model))
    await own_stub.CreateModelVersion(creation(model, "r1"))
    with pytest.raises(DataLoss):
        await own_stub.UploadArtifact(parts(model, 1, sha256="0" * 64))
    await own_stub.UploadArtifact(parts(model, 1))
    await register(own_stub, model, 1)
    text = await asyncio.to_thread(scrape, registry.http_port)
    assert f'{names.METRIC_REGISTRY_VERSIONS}{{state="PROMOTED"}} 1.0' in text
    for outcome in ("failed", "stored", "unchanged"):
        assert f'{names.METRIC_REGISTRY_UPLOADS}{{outcome="{outcome}"}} 1.0' in text
    assert f"{names.METRIC_REGISTRY_ARTIFACT_BYTES} {len(BYTES):.2e}" in text


async def test_concurrent_commits_and_models_are_told_once(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str, kafka_bootstrap: str
) -> None:
    apply = api.ApplyModelRequest(name=model, gates=[gate(0.9)])
    await asyncio.gather(*(stub.ApplyModel(apply) for _ in range(6)))
    await stub.CreateModelVersion(creation(model, "r1"))
    await asyncio.gather(*(stub.UploadArtifact(parts(model, 1)) for _ in range(4)))
    answers = await asyncio.gather(*(stub.CommitModelVersion(committing(model, 1)) for _ in range(6)))
    assert all(answer == answers[0] for answer in answers)
    assert await fenced(stub, kafka_bootstrap, model) == ["model-changed", *PROMOTION]


async def test_concurrent_requests_with_one_id_make_one_version(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model))
    versions = await asyncio.gather(*(stub.CreateModelVersion(creation(model, "r1")) for _ in range(8)))
    assert {version.version for version in versions} == {1}


async def test_a_repeated_request_is_judged_by_what_it_says_last(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, model: str
) -> None:
    await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
    first = await stub.CreateModelVersion(creation(model, "job-1", accuracy=0.95))
    again = creation(model, "job-1", accuracy=0.5)
    again.lineage.run = "job-1-2"
    again.signature.features.append("y")
    opened = await stub.CreateModelVersion(again)
    assert opened.version == first.version
    for version in (
        opened,
        await stub.GetModelVersion(api.GetModelVersionRequest(model=model, version=first.version)),
    ):
        assert version.metrics["test/accuracy"] == 0.5
        assert version.lineage.run == "job-1-2"
        assert version.signature.features == ["x", "y"]
    await stub.UploadArtifact(parts(model, first.version))
    committed = await stub.CommitModelVersion(committing(model, first.version))
    assert committed.state == api.MODEL_VERSION_STATE_REFUSED

    closed = await stub.CreateModelVersion(creation(model, "job-1", accuracy=0.99))
    assert closed == committed


@pytest.mark.kill
@pytest.mark.parametrize("fault", ["registry.after-commit", "outbox.before-publish", "outbox.after-publish"])
async def test_a_verdict_is_told_whenever_the_registry_dies(
    fault: str, kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path, model: str
) -> None:
    settings = platform(kafka_bootstrap, postgres_dsn, store_uri)
    service = ServiceProcess("registry", tmp_path, settings)
    await service.start()
    async with channel(service.target) as opened:
        stub = registry_pb2_grpc.RegistryServiceStub(opened)
        await stub.ApplyModel(api.ApplyModelRequest(name=model, gates=[gate(0.9)]))
        await stub.CreateModelVersion(creation(model, "r1"))
        await stub.UploadArtifact(parts(model, 1))
        # What is published but not yet taken off the outbox would be published again at the next start.
        await until_outbox_empty(postgres_dsn, "registry")
    await service.stop()

    # Only now, so that it dies of the verdict's events and not of those before.
    service.settings |= {"HEADRACE_FAULT": fault, "HEADRACE_FAULT_ONCE": str(tmp_path / "fired")}
    await service.start()
    async with channel(service.target) as opened:
        stub = registry_pb2_grpc.RegistryServiceStub(opened)
        commit = asyncio.ensure_future(stub.CommitModelVersion(committing(model, 1)))
        await service.killed()
        await asyncio.gather(commit, return_exceptions=True)

    await service.start()
    try:
        async with channel(service.target) as opened:
            stub = registry_pb2_grpc.RegistryServiceStub(opened)
            # As the caller does that got no answer.
            # The channel may still be in the pause after it found nobody there.
            again = await stub.CommitModelVersion(committing(model, 1), wait_for_ready=True)
            assert again.state == api.MODEL_VERSION_STATE_PROMOTED
            assert await fenced(stub, kafka_bootstrap, model) == ["model-changed", *PROMOTION]
    finally:
        await service.stop()

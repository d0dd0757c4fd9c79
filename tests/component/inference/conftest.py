"""A whole data plane: broker, PostgreSQL, Triton, Envoy and the inference service."""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tests.conftest import Background
from tests.support.brokers import new_broker
from tests.support.explaining import Explaining, MakeExplaining, workers
from tests.support.models import classifier, classifier_signature
from tests.support.services import ServiceProcess, platform
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.inference.v1 import inference_pb2_grpc
from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.registry.v1 import registry_pb2
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.embedded.parts import free_port
from headrace.embedded.parts.envoy import Envoy
from headrace.embedded.parts.postgres import Postgres
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.events.registry.v1 import events_pb2
from headrace.inference.explainer.pool import explainer_pool
from headrace.inference.settings import Settings
from headrace.messaging.events import protobuf_event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import MODEL_VERSIONS
from headrace.model_formats import ModelFormat
from headrace.objects import ObjectStore
from headrace.rpc.client import channel
from headrace.rpc.model_formats import to_model_format

TRITON_ENVIRONMENT = Path(__file__).parents[3] / ".venv-triton"
DEADLINE = 60.0
# The shared data plane's limit, so that no test has to send what the default allows.
MAX_REQUEST_BYTES = 1 << 20


@dataclass
class Plane:
    """A running data plane and what tests do with it; most have one Triton."""

    tritons: list[Triton]
    envoy: Envoy
    service: ServiceProcess
    address: str
    bootstrap: str
    store: ObjectStore
    stub: inference_pb2_grpc.InferenceServiceAsyncStub

    @property
    def triton(self) -> Triton:
        return self.tritons[0]

    async def deploy(
        self,
        name: str,
        *,
        steps: tuple[int, ...] = (100,),
        hold: float = 0.0,
        rollout: scheduling_pb2.RolloutSpec | None = None,
        scaling: scheduling_pb2.Scaling | None = None,
        log: scheduling_pb2.PredictionLogSpec | None = None,
        instances: int = 0,
    ) -> None:
        """Apply the deployment; steps and hold are those of its rollouts, beside what else `rollout` says."""
        rollout = scheduling_pb2.RolloutSpec() if rollout is None else rollout
        rollout.steps[:] = steps
        rollout.hold.FromMilliseconds(int(hold * 1000))
        await self.stub.ApplyDeployment(
            api.ApplyDeploymentRequest(
                name=name, model=name, rollout=rollout, scaling=scaling, log=log, instances=instances
            )
        )

    async def promote(
        self,
        name: str,
        version: int,
        model: bytes | None = None,
        traceparent: str = "",
        signature: registry_pb2.Signature | None = None,
        form: ModelFormat = ModelFormat.ONNX,
        dataset: str = "",
    ) -> None:
        """Tell of a promoted version, trained on that dataset, as the registry does."""
        data = classifier(0.5 if version % 2 else 3.0) if model is None else model
        path = f"models/{name}/{version}/{form.file}"
        await self.store.put(path, data)
        artifact = registry_pb2.Artifact(
            path=form.file,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            uri=self.store.uri(path),
        )
        promoted = registry_pb2.ModelVersion(
            model=name,
            version=version,
            artifacts=[artifact],
            signature=classifier_signature() if signature is None else signature,
            format=to_model_format(form),
            traceparent=traceparent,
            lineage=registry_pb2.Lineage(
                dataset_version=ingestion_pb2.DatasetVersion(dataset=dataset, version=1) if dataset else None
            ),
        )
        event = protobuf_event(
            events_pb2.ModelVersionPromoted(model_version=promoted),
            type="headrace.registry.model-version-promoted.v1",
            source="headrace/registry",
            subject=name,
            id=str(uuid.uuid4()),
            time=datetime.now(UTC),
            traceparent=traceparent,
        )
        async with Producer(self.bootstrap, client_id="tests", idempotence=False) as producer:
            await producer.publish(MODEL_VERSIONS, name, event)

    async def get(self, name: str) -> api.Deployment:
        return await self.stub.GetDeployment(api.GetDeploymentRequest(name=name))

    async def until(
        self, name: str, condition: Callable[[api.Deployment], bool], deadline: float = DEADLINE
    ) -> api.Deployment:
        return await eventually(lambda: self.get(name), condition, deadline)

    async def until_live(self, name: str, version: int) -> api.Deployment:
        """Wait until a version has all traffic, at the data plane too."""
        return await self.until(
            name,
            lambda d: (
                [(t.version, t.weight) for t in d.traffic] == [(version, 100)]
                and d.rollout.state == api.ROLLOUT_STATE_SUCCEEDED
                and d.ready
            ),
        )

    async def until_loaded(self, name: str, versions: set[int]) -> None:
        """Wait until these versions and no others are ready in Triton, in its own words."""
        async with triton.InferenceServerClient(f"127.0.0.1:{self.triton.ports.grpc}") as client:

            async def ready() -> set[int]:
                index = await client.get_model_repository_index()
                return {int(m.version) for m in index.models if m.name == name and m.state == "READY"}

            await eventually(ready, lambda found: found == versions, DEADLINE)

    async def until_logged(self, name: str, prediction_ids: set[str]) -> dict[str, api.Prediction]:
        """Wait until these predictions are in the log; returns the newest of all by id."""

        async def logged() -> dict[str, api.Prediction]:
            request = api.ListPredictionsRequest(deployment=name, page_size=1000)
            listed = await self.stub.ListPredictions(request)
            return {prediction.id: prediction for prediction in listed.predictions}

        return await eventually(logged, lambda found: prediction_ids <= set(found))

    def client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.address)


async def ask(
    client: triton.InferenceServerClient,
    model: str,
    *,
    version: str = "",
    request_id: str = "",
    rows: int = 1,
    feature: float = 1.0,
    parameters: dict[str, str | int] | None = None,
    headers: dict[str, str] | None = None,
    seconds: float = 10,
) -> triton.InferResult:
    tensor = triton.InferInput("features", [rows, 3], "FP32")
    tensor.set_data_from_numpy(np.full((rows, 3), feature, dtype=np.float32))
    return await client.infer(
        model,
        [tensor],
        model_version=version,
        request_id=request_id,
        client_timeout=seconds,
        parameters=parameters,
        headers=headers,
    )


def post(plane: Plane, path: str, document: object) -> tuple[int, dict[str, object]]:
    """Call REST; the status and the answer."""
    request = urllib.request.Request(
        f"http://{plane.address}{path}", json.dumps(document).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@dataclass
class Parts:
    """The processes of a data plane, and where it is."""

    tritons: list[Triton]
    envoy: Envoy
    service: ServiceProcess
    address: str
    bootstrap: str
    store_uri: str

    async def start(self) -> None:
        await asyncio.gather(self.service.start(), *(server.start() for server in self.tritons))
        # Without its control plane it cannot serve, and its deadline would pass.
        await self.envoy.start()

    async def stop(self) -> None:
        for part in (self.service, self.envoy, *self.tritons):
            await part.stop()

    @asynccontextmanager
    async def plane(self) -> AsyncIterator[Plane]:
        async with channel(self.service.target) as opened:
            yield Plane(
                self.tritons,
                self.envoy,
                self.service,
                self.address,
                self.bootstrap,
                ObjectStore.from_uri(self.store_uri),
                inference_pb2_grpc.InferenceServiceStub(opened),
            )


def inference_service(
    folder: Path, kafka: str, postgres: str, store_uri: str, **settings: str
) -> ServiceProcess:
    """The service; where nothing else is said, alone: no Triton answers it, and no Envoy asks it."""
    return ServiceProcess(
        "inference",
        folder,
        {
            **platform(kafka, postgres, store_uri),
            # The broker is shared: what belongs to another test's database must not come here.
            "HEADRACE_INFERENCE_CONSUMER_GROUP": f"inference-{uuid.uuid4().hex[:8]}",
            "HEADRACE_INFERENCE_XDS_ADDRESS": f"127.0.0.1:{free_port()}",
            "HEADRACE_INFERENCE_TRITON_GRPC": f"127.0.0.1:{free_port()}",
            "HEADRACE_INFERENCE_MODEL_REPOSITORY": str(folder / "models"),
            "HEADRACE_INFERENCE_PACKAGES_PYTHON": str(TRITON_ENVIRONMENT / "bin" / "python"),
            "HEADRACE_INFERENCE_PACKAGES_PATH": str(folder / "explained-packages"),
            **settings,
        },
    )


def parts(
    folder: Path,
    kafka: str,
    postgres: str,
    store_uri: str,
    *,
    trace_url: str = "",
    tritons: int = 1,
    model_memory_bytes: int = 0,
    **settings: str,
) -> Parts:
    xds, listen = free_port(), free_port()
    servers = [
        Triton(
            folder / f"triton-{number}",
            folder / f"triton-{number}",
            TritonPorts(free_port(), free_port(), free_port()),
            environment_folder=TRITON_ENVIRONMENT,
            model_repository=folder / "models",
            kafka_bootstrap=kafka,
            trace_url=trace_url,
            model_memory_bytes=model_memory_bytes,
        )
        for number in range(tritons)
    ]
    service = inference_service(
        folder,
        kafka,
        postgres,
        store_uri,
        **{
            "HEADRACE_INFERENCE_XDS_ADDRESS": f"127.0.0.1:{xds}",
            "HEADRACE_INFERENCE_TRITON_GRPC": _addresses(server.ports.grpc for server in servers),
            "HEADRACE_INFERENCE_TRITON_HTTP": _addresses(server.ports.http for server in servers),
            "HEADRACE_INFERENCE_ENVOY_ADDRESS": f"127.0.0.1:{listen}",
            **settings,
        },
    )
    envoy = Envoy(folder / "envoy", folder, admin_port=free_port(), xds_port=xds)
    return Parts(servers, envoy, service, f"127.0.0.1:{listen}", kafka, store_uri)


def _addresses(ports: Iterable[int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


@pytest.fixture(scope="session")
def shared_parts(
    background: Background, kafka_bootstrap: str, postgres_server: Postgres, session_folder: Path
) -> Iterator[Parts]:
    """One data plane for every test that harms none of its parts."""
    folder = session_folder / "inference"
    folder.mkdir()
    shared = parts(
        folder,
        kafka_bootstrap,
        postgres_server.dsn,
        (folder / "store").as_uri(),
        HEADRACE_INFERENCE_MAX_REQUEST_BYTES=str(MAX_REQUEST_BYTES),
    )
    background.runner.run(shared.start())
    yield shared
    background.runner.run(shared.stop())


@pytest.fixture
def working_parts(shared_parts: Parts, background: Background) -> Parts:
    """A test that has ended the shared Triton has failed; those after it are not to."""

    async def mend() -> None:
        [server] = shared_parts.tritons
        if await server.problem():
            await server.stop()
            await server.start()

    background.runner.run(mend())
    return shared_parts


@pytest.fixture
async def plane(working_parts: Parts) -> AsyncIterator[Plane]:
    async with working_parts.plane() as plane:
        yield plane
    for server in working_parts.tritons:
        assert server.running, server.failed(f"ended with exit code {await server.wait()}").report()


MakePlane = Callable[..., Awaitable[Plane]]


@asynccontextmanager
async def _planes(folder: Path, kafka: str, postgres: str, store_uri: str) -> AsyncIterator[MakePlane]:
    async with AsyncExitStack() as stack:

        async def make(*, tritons: int = 1, model_memory_bytes: int = 0, **settings: str) -> Plane:
            own = parts(
                folder,
                kafka,
                postgres,
                store_uri,
                tritons=tritons,
                model_memory_bytes=model_memory_bytes,
                **settings,
            )
            stack.push_async_callback(own.stop)
            await own.start()
            return await stack.enter_async_context(own.plane())

        yield make


@pytest.fixture
async def make_plane(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[MakePlane]:
    """A data plane of the test's own, to kill its parts or set them differently."""
    async with _planes(tmp_path, kafka_bootstrap, postgres_dsn, store_uri) as make:
        yield make


@pytest.fixture
async def own_broker(tmp_path: Path) -> AsyncIterator[str]:
    """A broker of the test's own, where no other service answers the test's requests, too."""
    broker = new_broker(tmp_path)
    await broker.start()
    yield broker.bootstrap
    await broker.stop()


@pytest.fixture
async def make_lone_plane(
    own_broker: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[MakePlane]:
    """A data plane with a broker of the test's own: every answer there is one of its service."""
    async with _planes(tmp_path, own_broker, postgres_dsn, store_uri) as make:
        yield make


@pytest.fixture
def name() -> str:
    return f"model-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def make_explaining(tmp_path: Path) -> AsyncIterator[MakeExplaining]:
    async with AsyncExitStack() as stack:

        async def make(**settings: float | str) -> Explaining:
            store = ObjectStore.from_uri(tmp_path.as_uri())
            pool = await stack.enter_async_context(
                explainer_pool(store, Settings.model_validate({"explain_seconds": 60.0, **settings}))
            )
            return Explaining(pool, store)

        yield make
    assert workers() == []

"""The inference data plane as benchmarks run it: everything that a deployment has is on."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ingestion import started_broker
from served import MODEL, ROWS, Served
from setting import Service

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.api.registry.v1 import registry_pb2
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.embedded.parts import free_port
from headrace.embedded.parts.envoy import Envoy
from headrace.embedded.parts.kafka import ApacheKafka
from headrace.embedded.parts.postgres import Postgres
from headrace.embedded.parts.tansu import Tansu
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.errors import DeadlineExceeded, Unavailable
from headrace.events.registry.v1 import events_pb2
from headrace.messaging.events import protobuf_event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import MODEL_VERSIONS
from headrace.model_formats import ModelFormat
from headrace.objects import ObjectStore
from headrace.rpc.client import channel
from headrace.rpc.load import Outcome, load
from headrace.rpc.model_formats import to_model_format

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
IN_FLIGHT: Final = 64
RETRY_SECONDS: Final = 0.2
TRITON_ENVIRONMENT: Final = Path(__file__).parents[1] / ".venv-triton"


@dataclass(frozen=True)
class Plane:
    """Where both sides are, what deployments are made with, and the parts."""

    direct: str
    envoy: str
    service: str
    ingestion: str
    bootstrap: str
    store: ObjectStore
    broker: ApacheKafka | Tansu
    database: Postgres
    tritons: list[Triton]
    envoys: list[Envoy]
    control: Service


@asynccontextmanager
async def running(
    folder: Path,
    *,
    traced: bool = False,
    served: Served = ROWS,
    tritons: int = 1,
    envoys: int = 1,
    broker_name: str = "embedded",
    ingestion: bool = False,
) -> AsyncIterator[Plane]:
    """Broker, PostgreSQL, Tritons, Envoys on one port, and the inference service with the model live.

    With `ingestion` that service, too, for predictions that become rows.
    """
    logs = folder / "logs"
    database = Postgres(folder / "postgres", logs, free_port(), durable=False)
    async with AsyncExitStack() as stack:
        otlp, trace_url = await stack.enter_async_context(trace_sink(traced))
        broker = await started_broker(folder, broker_name, stack)
        await database.start()
        stack.push_async_callback(database.stop)
        listen, xds = free_port(), free_port()
        servers = [
            Triton(
                folder / f"triton-{number}",
                logs / f"triton-{number}",
                TritonPorts(free_port(), free_port(), free_port()),
                environment_folder=TRITON_ENVIRONMENT,
                model_repository=folder / "models",
                kafka_bootstrap=broker.bootstrap,
                trace_url=trace_url,
            )
            for number in range(tritons)
        ]
        platform = {
            "HEADRACE_KAFKA_BOOTSTRAP": broker.bootstrap,
            "HEADRACE_KAFKA_IDEMPOTENCE": str(broker_name == "kafka"),
            "HEADRACE_POSTGRES_DSN": database.dsn,
            "HEADRACE_STORE_URI": f"file://{folder / 'store'}",
            "HEADRACE_OTLP_ENDPOINT": otlp,
        }
        rows = Service(
            "ingestion", folder / "rows", logs, {**platform, "HEADRACE_INGESTION_INFERENCE_TARGET": ""}
        )
        service = Service(
            "inference",
            folder / "service",
            logs,
            {
                **platform,
                "HEADRACE_INFERENCE_INGESTION_TARGET": f"127.0.0.1:{rows.grpc_port}",
                "HEADRACE_INFERENCE_XDS_ADDRESS": f"127.0.0.1:{xds}",
                "HEADRACE_INFERENCE_TRITON_GRPC": ",".join(
                    f"127.0.0.1:{server.ports.grpc}" for server in servers
                ),
                "HEADRACE_INFERENCE_TRITON_HTTP": ",".join(
                    f"127.0.0.1:{server.ports.http}" for server in servers
                ),
                "HEADRACE_INFERENCE_MODEL_REPOSITORY": str(folder / "models"),
                "HEADRACE_INFERENCE_ENVOY_ADDRESS": f"127.0.0.1:{listen}",
            },
        )
        fronts = [
            Envoy(folder / f"envoy-{number}", logs / f"envoy-{number}", admin_port=free_port(), xds_port=xds)
            for number in range(envoys)
        ]
        # Without its control plane an Envoy cannot serve, and its deadline would pass.
        for parts in ([*servers, service], fronts, [rows] if ingestion else []):
            for part in parts:
                stack.push_async_callback(part.stop)
            await asyncio.gather(*(part.start() for part in parts))
        (folder / "store").mkdir(exist_ok=True)
        plane = Plane(
            direct=f"127.0.0.1:{servers[0].ports.grpc}",
            envoy=f"127.0.0.1:{listen}",
            service=f"127.0.0.1:{service.grpc_port}",
            ingestion=f"127.0.0.1:{rows.grpc_port}",
            bootstrap=broker.bootstrap,
            store=ObjectStore.from_uri(f"file://{folder / 'store'}"),
            broker=broker,
            database=database,
            tritons=servers,
            envoys=fronts,
            control=service,
        )
        await deploy(plane, served)
        yield plane


def addresses(ports: Iterable[int]) -> str:
    """On loopback, with commas between."""
    return ",".join(f"127.0.0.1:{port}" for port in ports)


@asynccontextmanager
async def trace_sink(traced: bool) -> AsyncIterator[tuple[str, str]]:
    """Where spans go: nowhere, or to a collector that throws them away."""
    if not traced:
        yield "", ""
        return
    import grpc.aio
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    class Sink(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
        async def Export(self, request: object, context: object) -> object:  # noqa: N802
            return trace_service_pb2.ExportTraceServiceResponse()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line[16:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"
                )
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Sink(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    http = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield (
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{http.sockets[0].getsockname()[1]}/v1/traces",
        )
    finally:
        http.close()
        await server.stop(None)


async def deploy(
    plane: Plane,
    served: Served,
    *,
    model: str = MODEL,
    package: bytes | None = None,
    log: scheduling_pb2.PredictionLogSpec | None = None,
) -> None:
    """Promote the model, or a package that holds it, and wait until it is live."""
    form = ModelFormat.ONNX if package is None else ModelFormat.PYTHON
    data = served.onnx if package is None else package
    async with channel(plane.service) as opened:
        stub = inference_pb2_grpc.InferenceServiceStub(opened)
        await stub.ApplyDeployment(inference_pb2.ApplyDeploymentRequest(name=model, model=model, log=log))
        await promote(plane, 1, data, served.signature, model=model, form=form)
        async with asyncio.timeout(60):
            watch = stub.WatchDeployment(inference_pb2.WatchDeploymentRequest(name=model))
            async for deployment in watch:
                if deployment.ready:
                    break
            watch.cancel()


async def described(stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> inference_pb2.Deployment:
    """The model's deployment, as soon as the service answers: it may be restarting, or slow under load."""
    while True:
        try:
            return await stub.GetDeployment(inference_pb2.GetDeploymentRequest(name=MODEL))
        except (DeadlineExceeded, Unavailable):
            await asyncio.sleep(RETRY_SECONDS)


async def promote(
    plane: Plane,
    number: int,
    data: bytes,
    signature: registry_pb2.Signature = ROWS.signature,
    *,
    model: str = MODEL,
    form: ModelFormat = ModelFormat.ONNX,
) -> None:
    """Tell of a promoted version, as the registry does."""
    path = f"models/{model}/{number}/{form.file}"
    await plane.store.put(path, data)
    version = registry_pb2.ModelVersion(
        model=model,
        version=number,
        artifacts=[
            registry_pb2.Artifact(
                path=form.file,
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                uri=plane.store.uri(path),
            )
        ],
        signature=signature,
        format=to_model_format(form),
    )
    event = protobuf_event(
        events_pb2.ModelVersionPromoted(model_version=version),
        type="headrace.registry.model-version-promoted.v1",
        source="headrace/registry",
        subject=model,
        id=str(uuid.uuid4()),
        time=datetime.now(UTC),
        traceparent="",
    )
    async with Producer(plane.bootstrap, client_id="benchmark", idempotence=False) as producer:
        await producer.publish(MODEL_VERSIONS, model, event)


@dataclass(frozen=True)
class Compared:
    """What one of the sides that are compared is asked, and where."""

    address: str
    request: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)


async def in_turns(sides: Mapping[str, Compared], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Each side in turns, with many calls in flight and with one: figures by "SIDE.FIGURE", of each round."""
    found: dict[str, list[float]] = {}

    async def call(side: str, in_flight: int) -> Outcome:
        compared = sides[side]
        outcome = await load(
            compared.address,
            METHOD,
            compared.request,
            in_flight=in_flight,
            seconds=seconds,
            connections=min(2, in_flight),
            metadata=dict(compared.metadata),
        )
        if outcome.failed:
            raise SystemExit(f"{outcome.failed} calls of {side} failed")
        return outcome

    for side in sides:
        await call(side, IN_FLIGHT)
    for _ in range(rounds):
        for side in sides:
            many, one = await call(side, IN_FLIGHT), await call(side, 1)
            for name, value in {
                "requests_per_second": many.rate,
                "p50_ms": many.percentile(0.5),
                "p99_ms": many.percentile(0.99),
                "one_in_flight_p50_ms": one.percentile(0.5),
                "one_in_flight_p99_ms": one.percentile(0.99),
            }.items():
                found.setdefault(f"{side}.{name}", []).append(value)
    return found


def print_figures(medians: Mapping[str, float], titles: Mapping[str, str]) -> None:
    """A table of `in_turns`' figures; titles by side."""
    print(f"{'':12} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'1: p50':>8} {'1: p99':>8}")
    for side, title in titles.items():
        row = [medians[f"{side}.{name}"] for name in ("requests_per_second", "p50_ms", "p99_ms")]
        one = [medians[f"{side}.one_in_flight_{name}_ms"] for name in ("p50", "p99")]
        print(f"{title:12} {row[0]:9.0f} {row[1]:8.2f} {row[2]:8.2f} {one[0]:8.2f} {one[1]:8.2f}")

